"""Kinds of fields that need more than a JSON type: numbers, timestamps, objects, addresses."""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, ClassVar, Final

import msgspec

from events.errors import Malformed

Number = int | float | None

INT32_MAX: Final = 2**31 - 1
INT64_MAX: Final = 2**63 - 1
# Anything this large is taken for milliseconds (PAY-8); as seconds it would be the year 5138.
MILLISECONDS_FROM: Final = 100_000_000_000


class Long(msgspec.Struct):
    """A protobuf 64-bit integer as some senders write it (PAY-8)."""

    low: int
    high: int = 0
    unsigned: bool = False

    def value(self) -> int:
        """The number the two halves stand for."""
        number = ((self.high & 0xFFFFFFFF) << 32) | (self.low & 0xFFFFFFFF)
        return number if self.unsigned or number <= INT64_MAX else number - 2**64


Timestamp = int | float | str | Long | None


FreeObject = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": ["object", "null"]})]

NOTHING: Final = msgspec.Raw()


def _also(name: str) -> msgspec.Raw:
    return msgspec.field(default=NOTHING, name=name)


class AlternateAddresses(msgspec.Struct):
    """Further addresses of a sender, which some gateways put beside the documented fields (see `events.senders`).

    Raw, because nothing in an undocumented field is of a wrong type.
    """

    participant: msgspec.Raw = NOTHING
    participant_lid: msgspec.Raw = _also("participantLid")
    sender_lid: msgspec.Raw = _also("senderLid")
    remote_jid_alt: msgspec.Raw = _also("remoteJidAlt")
    participant_alt: msgspec.Raw = _also("participantAlt")
    participant_pn: msgspec.Raw = _also("participantPn")
    sender_pn: msgspec.Raw = _also("senderPn")
    snake_participant_lid: msgspec.Raw = _also("participant_lid")
    snake_sender_lid: msgspec.Raw = _also("sender_lid")
    snake_remote_jid_alt: msgspec.Raw = _also("remote_jid_alt")
    snake_participant_alt: msgspec.Raw = _also("participant_alt")
    snake_participant_pn: msgspec.Raw = _also("participant_pn")
    snake_sender_pn: msgspec.Raw = _also("sender_pn")

    @property
    def chats(self) -> tuple[msgspec.Raw, ...]:
        """Where the other address of the chat may stand."""
        return self.remote_jid_alt, self.snake_remote_jid_alt

    @property
    def persons(self) -> tuple[msgspec.Raw, ...]:
        """Where an address of the sender may stand, most telling first."""
        return (
            self.participant_alt,
            self.snake_participant_alt,
            self.participant_pn,
            self.snake_participant_pn,
            self.sender_pn,
            self.snake_sender_pn,
            self.participant,
        )

    @property
    def linked(self) -> tuple[msgspec.Raw, ...]:
        """Where only a linked id should stand."""
        return self.participant_lid, self.snake_participant_lid, self.sender_lid, self.snake_sender_lid

    @property
    def alone(self) -> bool:
        """Whether none of them is given, as for nearly every message."""
        return _alternates(self) == _NONE


_ALTERNATES: Final = AlternateAddresses.__struct_fields__
_alternates: Final = attrgetter(*_ALTERNATES)
_NONE: Final = (NOTHING,) * len(_ALTERNATES)


class Key(AlternateAddresses):
    """WhatsApp's own key of a message; snake_case members are accepted as well (PAY-13)."""

    required: ClassVar = ("id",)

    id: str | None = None
    fromMe: bool | None = None
    remoteJid: str | None = None
    from_me: bool | None = None
    remote_jid: str | None = None


class Campaign(msgspec.Struct):
    """What a campaign adds to onboarding; counts only when `is_campaign` is true."""

    is_campaign: bool | None = None
    tags: str | None = None
    assigned_to: str | None = None
    origin: str | None = None


def check_object(raw: msgspec.Raw, name: str) -> None:
    """Raises `Malformed` unless the field is an object, `null` or absent."""
    if bytes(raw)[:1] not in (b"{", b"n", b""):
        raise Malformed(f"cannot decode: {name} must be an object")


def object_text(raw: msgspec.Raw) -> str | None:
    """A free object as JSON text, numbers kept exactly; None for absent and `null`."""
    text = bytes(raw)
    return text.decode() if text[:1] == b"{" else None


def integer(value: Number, name: str, bound: int) -> int:
    """`value` as an integer, 0 when absent. Raises `Malformed` when it is none, or out of range."""
    if value is None:
        return 0
    if isinstance(value, float):
        if not value.is_integer():
            raise Malformed(f"cannot decode: {name} must be an integer")
        value = int(value)
    if not -bound - 1 <= value <= bound:
        raise Malformed(f"cannot decode: {name} is out of range")
    return value


def seconds(value: Timestamp, name: str) -> int:
    """A timestamp in Unix seconds: number, digits or protobuf Long; milliseconds are divided (PAY-8)."""
    if isinstance(value, str):
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
            raise Malformed(f"cannot decode: {name} must be an integer")
        value = int(value)
    elif isinstance(value, Long):
        value = value.value()
    number = integer(value, name, INT64_MAX)
    return number // 1000 if number >= MILLISECONDS_FROM else number


def checked(value: Timestamp) -> int:
    """A number or time that the event's `check` has brought into its stored form. Raises `TypeError` before that."""
    if isinstance(value, int):
        return value
    raise TypeError("the event was not checked yet")
