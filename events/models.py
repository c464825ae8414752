"""The payloads of the event types: their fields, and the checks that come before anything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Final, TypeVar

import msgspec

from events.errors import Invalid, Malformed
from events.fields import (
    INT32_MAX,
    AlternateAddresses,
    Campaign,
    FreeObject,
    Key,
    Number,
    Timestamp,
    check_object,
    integer,
    seconds,
)

T = TypeVar("T")


class Payload(msgspec.Struct):
    """The payload of an event: what is required of it, and its check."""

    required: ClassVar[tuple[str, ...]] = ()

    @property
    def account(self) -> tuple[str, str]:
        """WhatsApp account and jid that it names; empty where there is none."""
        return getattr(self, "agent_id", None) or "", getattr(self, "jid", None) or ""

    def check(self, problems: list[str]) -> None:
        """Add what is wrong to `problems`, and bring the numbers into their stored form."""
        problems.extend(f"{name} is required" for name in self.required if not getattr(self, name))


class MessageUpsert(AlternateAddresses, Payload):
    """`v1.messages.upsert`, and an item of `v1.history.messages`."""

    required: ClassVar = ("message_id", "chat_id", "jid", "flow", "agent_id")

    message_id: str | None = None
    chat_id: str | None = None
    jid: str | None = None
    flow: Annotated[str | None, msgspec.Meta(extra_json_schema={"enum": ["IN", "OUT"]})] = None
    company_id: str | None = None
    agent_id: str | None = None
    from_phone: str | None = None
    to_phone: str | None = None
    message_type: str | None = None
    message_text: str | None = None
    message_url: str | None = None
    message_obj: FreeObject = msgspec.Raw()
    key: Key | None = None
    status: str | None = None
    message_timestamp: Timestamp = None
    campaign: Campaign | None = None

    def check(self, problems: list[str]) -> None:
        """See `Payload.check`."""
        super().check(problems)
        if self.flow and self.flow not in ("IN", "OUT"):
            problems.append("flow must be IN or OUT")
        if self.key is not None and not self.key.id:
            problems.append("key.id is required")
        check_object(self.message_obj, "message_obj")
        self.message_timestamp = seconds(self.message_timestamp, "message_timestamp")


class MessageUpdate(Payload):
    """`v1.messages.update`."""

    required: ClassVar = ("message_id",)

    message_id: str | None = None
    company_id: str | None = None
    status: str | None = None
    edited_message_obj: FreeObject = msgspec.Raw()
    is_deleted: bool | None = None
    message_url: str | None = None

    def check(self, problems: list[str]) -> None:
        """See `Payload.check`."""
        super().check(problems)
        check_object(self.edited_message_obj, "edited_message_obj")


class ChatUpsert(Payload):
    """`v1.chats.upsert`, and an item of `v1.history.chats`."""

    required: ClassVar = ("chat_id", "jid", "agent_id", "phone_number")

    chat_id: str | None = None
    jid: str | None = None
    company_id: str | None = None
    agent_id: str | None = None
    phone_number: str | None = None
    push_name: str | None = None
    is_group: bool | None = None
    group_name: str | None = None
    last_message: FreeObject = msgspec.Raw()
    conversation_timestamp: Timestamp = None
    unread_count: Number = None
    not_spam: bool | None = None

    def check(self, problems: list[str]) -> None:
        """See `Payload.check`."""
        super().check(problems)
        check_object(self.last_message, "last_message")
        self.unread_count = integer(self.unread_count, "unread_count", INT32_MAX)
        self.conversation_timestamp = seconds(self.conversation_timestamp, "conversation_timestamp")
        if self.conversation_timestamp < 0:
            problems.append("conversation_timestamp must not be negative")


class ChatUpdate(Payload):
    """`v1.chats.update`; `unread_count` 1 is a step, anything else a value."""

    required: ClassVar = ("chat_id", "agent_id")

    chat_id: str | None = None
    company_id: str | None = None
    agent_id: str | None = None
    unread_count: Number = None
    last_message: FreeObject = msgspec.Raw()
    conversation_timestamp: Timestamp = None

    def check(self, problems: list[str]) -> None:
        """See `Payload.check`."""
        super().check(problems)
        check_object(self.last_message, "last_message")
        self.unread_count = integer(self.unread_count, "unread_count", INT32_MAX)
        self.conversation_timestamp = seconds(self.conversation_timestamp, "conversation_timestamp")


class ContactUpsert(Payload):
    """`v1.contacts.upsert`, and an item of `v1.history.contacts`."""

    required: ClassVar = ("chat_id", "phone_number", "agent_id", "push_name")

    chat_id: str | None = None
    phone_number: str | None = None
    company_id: str | None = None
    agent_id: str | None = None
    push_name: str | None = None


class ContactUpdate(Payload):
    """`v1.contacts.update`: `push_name` must be there, and may be empty."""

    required: ClassVar = ("phone_number", "agent_id")
    present: ClassVar = ("push_name",)

    phone_number: str | None = None
    company_id: str | None = None
    agent_id: str | None = None
    push_name: str | None = None

    def check(self, problems: list[str]) -> None:
        """See `Payload.check`."""
        super().check(problems)
        if self.push_name is None:
            problems.append("push_name is required")


class ConnectionUpdate(Payload):
    """`v1.connection.update`: the state of a WhatsApp account."""

    required: ClassVar = ("agent_id",)

    agent_id: str | None = None
    company_id: str | None = None
    qr_code: str | None = None
    status: str | None = None
    agent_name: str | None = None
    host_name: str | None = None
    version: str | None = None
    phone_number: str | None = None


Event = (
    MessageUpsert | MessageUpdate | ChatUpsert | ChatUpdate | ContactUpsert | ContactUpdate | ConnectionUpdate
)

REALTIME: Final[Mapping[str, type[Event]]] = {
    "v1.connection.update": ConnectionUpdate,
    "v1.chats.update": ChatUpdate,
    "v1.chats.upsert": ChatUpsert,
    "v1.messages.update": MessageUpdate,
    "v1.messages.upsert": MessageUpsert,
    "v1.contacts.update": ContactUpdate,
    "v1.contacts.upsert": ContactUpsert,
}
_DECODERS: Final[Mapping[type[Event], Callable[[bytes], Event]]] = {
    kind: msgspec.json.Decoder(kind).decode for kind in REALTIME.values()
}


def event(kind: type[Event], body: bytes, company: str) -> Event:
    """The event in a sanitised body, checked; an absent `company_id` is filled in.

    Raises `Malformed` (not JSON, or a field of the wrong type) or `Invalid` (names every failing field).
    """
    parsed = parse(_DECODERS[kind], body)
    _check(parsed, company)
    return parsed


def parse(decoder: Callable[[bytes], T], body: bytes) -> T:
    """What `decoder` reads in `body`, where `null` is `{}`. Raises `Malformed`."""
    if body.strip() == b"null":
        body = b"{}"
    try:
        return decoder(body)
    except RecursionError as error:
        raise Malformed("JSON is nested too deeply") from error
    except msgspec.DecodeError as error:
        raise Malformed(f"cannot decode: {error}" if body.strip() else "the body is empty") from error


def _check(event: Event, company: str) -> None:
    problems: list[str] = []
    event.check(problems)
    if not event.company_id:
        event.company_id = company
    elif event.company_id != company:
        problems.append("company_id is not the company of the subject")
    if problems:
        raise Invalid("validation failed: " + "; ".join(problems), account=event.account)
