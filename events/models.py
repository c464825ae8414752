"""The ten event types: their fields, and the checks that come before anything else (contract section 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, Final, NamedTuple, cast

import msgspec

from events.errors import EventError, Invalid, Malformed
from events.fields import (
    INT32_MAX,
    AlternateAddresses,
    Campaign,
    Key,
    Number,
    Timestamp,
    check_object,
    integer,
    seconds,
)
from events.sanitize import sanitize


class MessageUpsert(AlternateAddresses):
    """`v1.messages.upsert`, and an item of `v1.history.messages` (contract 2.2)."""

    message_id: str | None = None
    chat_id: str | None = None
    jid: str | None = None
    flow: str | None = None
    company_id: str | None = None
    agent_id: str | None = None
    from_phone: str | None = None
    to_phone: str | None = None
    message_type: str | None = None
    message_text: str | None = None
    message_url: str | None = None
    message_obj: msgspec.Raw = msgspec.Raw()
    key: Key | None = None
    status: str | None = None
    message_timestamp: Timestamp = None
    campaign: Campaign | None = None

    @property
    def sent_at(self) -> int:
        """`message_timestamp`, seconds, after the checks."""
        return cast(int, self.message_timestamp)

    def check(self, problems: list[str]) -> None:
        """Add what is wrong to `problems`, and bring the numbers into their stored form."""
        _require(self, ("message_id", "chat_id", "jid", "flow", "agent_id"), problems)
        if self.flow and self.flow not in ("IN", "OUT"):
            problems.append("flow must be IN or OUT")
        if self.key is not None and not self.key.id:
            problems.append("key.id is required")
        check_object(self.message_obj, "message_obj")
        self.message_timestamp = seconds(self.message_timestamp, "message_timestamp")


class MessageUpdate(msgspec.Struct):
    """`v1.messages.update` (contract 2.3)."""

    message_id: str | None = None
    company_id: str | None = None
    status: str | None = None
    edited_message_obj: msgspec.Raw = msgspec.Raw()
    is_deleted: bool | None = None
    message_url: str | None = None

    def check(self, problems: list[str]) -> None:
        """Add what is wrong to `problems`."""
        _require(self, ("message_id",), problems)
        check_object(self.edited_message_obj, "edited_message_obj")


class ChatUpsert(msgspec.Struct):
    """`v1.chats.upsert`, and an item of `v1.history.chats` (contract 2.4)."""

    chat_id: str | None = None
    jid: str | None = None
    company_id: str | None = None
    agent_id: str | None = None
    phone_number: str | None = None
    push_name: str | None = None
    is_group: bool | None = None
    group_name: str | None = None
    last_message: msgspec.Raw = msgspec.Raw()
    conversation_timestamp: Timestamp = None
    unread_count: Number = None
    not_spam: bool | None = None

    @property
    def talked_at(self) -> int:
        """`conversation_timestamp`, seconds, after the checks."""
        return cast(int, self.conversation_timestamp)

    @property
    def unread(self) -> int:
        """`unread_count` after the checks."""
        return cast(int, self.unread_count)

    def check(self, problems: list[str]) -> None:
        """Add what is wrong to `problems`, and bring the numbers into their stored form."""
        _require(self, ("chat_id", "jid", "agent_id", "phone_number"), problems)
        check_object(self.last_message, "last_message")
        self.unread_count = integer(self.unread_count, "unread_count", INT32_MAX)
        self.conversation_timestamp = seconds(self.conversation_timestamp, "conversation_timestamp")
        if self.conversation_timestamp < 0:
            problems.append("conversation_timestamp must not be negative")


class ChatUpdate(msgspec.Struct):
    """`v1.chats.update` (contract 2.5); `unread_count` 1 is a step, anything else a value."""

    chat_id: str | None = None
    company_id: str | None = None
    agent_id: str | None = None
    unread_count: Number = None
    last_message: msgspec.Raw = msgspec.Raw()
    conversation_timestamp: Timestamp = None

    @property
    def talked_at(self) -> int:
        """`conversation_timestamp`, seconds, after the checks."""
        return cast(int, self.conversation_timestamp)

    @property
    def unread(self) -> int:
        """`unread_count` after the checks."""
        return cast(int, self.unread_count)

    def check(self, problems: list[str]) -> None:
        """Add what is wrong to `problems`, and bring the numbers into their stored form."""
        _require(self, ("chat_id", "agent_id"), problems)
        check_object(self.last_message, "last_message")
        self.unread_count = integer(self.unread_count, "unread_count", INT32_MAX)
        self.conversation_timestamp = seconds(self.conversation_timestamp, "conversation_timestamp")


class ContactUpsert(msgspec.Struct):
    """`v1.contacts.upsert`, and an item of `v1.history.contacts` (contract 2.6)."""

    chat_id: str | None = None
    phone_number: str | None = None
    company_id: str | None = None
    agent_id: str | None = None
    push_name: str | None = None

    def check(self, problems: list[str]) -> None:
        """Add what is wrong to `problems`."""
        _require(self, ("chat_id", "phone_number", "agent_id", "push_name"), problems)


class ContactUpdate(msgspec.Struct):
    """`v1.contacts.update` (contract 2.7): `push_name` must be there, and may be empty."""

    phone_number: str | None = None
    company_id: str | None = None
    agent_id: str | None = None
    push_name: str | None = None

    def check(self, problems: list[str]) -> None:
        """Add what is wrong to `problems`."""
        _require(self, ("phone_number", "agent_id"), problems)
        if self.push_name is None:
            problems.append("push_name is required")


class ConnectionUpdate(msgspec.Struct):
    """`v1.connection.update`: the state of an agent (contract 2.8)."""

    agent_id: str | None = None
    company_id: str | None = None
    qr_code: str | None = None
    status: str | None = None
    agent_name: str | None = None
    host_name: str | None = None
    version: str | None = None
    phone_number: str | None = None

    def check(self, problems: list[str]) -> None:
        """Add what is wrong to `problems`."""
        _require(self, ("agent_id",), problems)


Event = (
    MessageUpsert | MessageUpdate | ChatUpsert | ChatUpdate | ContactUpsert | ContactUpdate | ConnectionUpdate
)


class Item(NamedTuple):
    """One item of a history batch: its JSON text, and the event in it or what is wrong with it."""

    raw: bytes
    event: Event | EventError


@dataclass(frozen=True, slots=True)
class History:
    """A history batch (contract 2.9). `field` is the name of its array; `items` are those unpacked so far."""

    field: str
    company: str
    packed: Sequence[msgspec.Raw]
    agent_id: str = ""
    is_last_batch: bool = False
    items: list[Item] = dataclass_field(default_factory=list)

    @property
    def unpacked(self) -> bool:
        """Whether all items are."""
        return len(self.items) == len(self.packed)

    def unpack(self, count: int | None = None) -> list[Item]:
        """Decode and check the next `count` items, or all that are left; each carries its own error."""
        start = len(self.items)
        end = None if count is None else start + count
        decoder = _ITEMS[self.field]
        items = [_item(decoder, bytes(raw), self.company) for raw in self.packed[start:end]]
        self.items.extend(items)
        return items


class _HistoryMessages(msgspec.Struct):
    messages: list[msgspec.Raw] | None = None
    is_last_batch: bool | None = None
    agent_id: str | None = None


class _HistoryChats(msgspec.Struct):
    chats: list[msgspec.Raw] | None = None


class _HistoryContacts(msgspec.Struct):
    contacts: list[msgspec.Raw] | None = None


def _decoder(kind: type[Any]) -> Callable[[bytes | msgspec.Raw], Any]:
    return msgspec.json.Decoder(kind).decode


_REALTIME: Final = {
    "v1.messages.upsert": _decoder(MessageUpsert),
    "v1.messages.update": _decoder(MessageUpdate),
    "v1.chats.upsert": _decoder(ChatUpsert),
    "v1.chats.update": _decoder(ChatUpdate),
    "v1.contacts.upsert": _decoder(ContactUpsert),
    "v1.contacts.update": _decoder(ContactUpdate),
    "v1.connection.update": _decoder(ConnectionUpdate),
}
_HISTORICAL: Final = {
    "v1.history.messages": ("messages", _decoder(_HistoryMessages)),
    "v1.history.chats": ("chats", _decoder(_HistoryChats)),
    "v1.history.contacts": ("contacts", _decoder(_HistoryContacts)),
}
_ITEMS: Final = {
    "messages": _REALTIME["v1.messages.upsert"],
    "chats": _REALTIME["v1.chats.upsert"],
    "contacts": _REALTIME["v1.contacts.upsert"],
}


def decode(event_type: str, body: bytes, company: str) -> Event | History:
    """The event in `body`, checked; `company_id` is filled in where it is absent.

    Raises `Malformed` (not JSON, or a field of the wrong type) or `Invalid` (every failing field is named).
    The items of a history batch carry their own errors instead.
    """
    event = begin(event_type, body, company)
    if isinstance(event, History):
        event.unpack()
    return event


def begin(event_type: str, body: bytes, company: str) -> Event | History:
    """What `decode` does, but a history batch is still to be unpacked: a megabyte takes some ten milliseconds."""
    body = sanitize(body)
    if event_type in _HISTORICAL:
        return _history(event_type, body, company)
    event: Event = _parse(_REALTIME[event_type], body)
    _check(event, company)
    return event


def _history(event_type: str, body: bytes, company: str) -> History:
    field, decoder = _HISTORICAL[event_type]
    batch = _parse(decoder, body)
    return History(
        field=field,
        company=company,
        packed=getattr(batch, field) or (),
        agent_id=getattr(batch, "agent_id", None) or "",
        is_last_batch=bool(getattr(batch, "is_last_batch", None)),
    )


def _item(decoder: Callable[[bytes], Any], raw: bytes, company: str) -> Item:
    try:
        event: Event = _parse(decoder, raw)
        _check(event, company)
    except EventError as error:
        return Item(raw, error.kept())
    return Item(raw, event)


def _parse(decoder: Callable[[bytes], Any], body: bytes) -> Any:
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
        raise Invalid(
            "validation failed: " + "; ".join(problems),
            agent_id=getattr(event, "agent_id", None) or "",
            jid=getattr(event, "jid", None) or "",
        )


def _require(event: Event, names: tuple[str, ...], problems: list[str]) -> None:
    for name in names:
        if not getattr(event, name):
            problems.append(f"{name} is required")
