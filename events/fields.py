"""Kinds of fields that need more than a JSON type: numbers, timestamps, objects (contract 2.1)."""

from __future__ import annotations

from typing import Final, cast

import msgspec

from events.errors import Malformed

Number = int | float | None

INT32_MAX: Final = 2**31 - 1
INT64_MAX: Final = 2**63 - 1
# Anything this large is taken for milliseconds (contract B3, OC12); as seconds it would be the year 5138.
MILLISECONDS_FROM: Final = 100_000_000_000


class Long(msgspec.Struct):
    """A protobuf 64-bit integer as some senders write it (design 11)."""

    low: int
    high: int = 0
    unsigned: bool = False

    def value(self) -> int:
        """The number the two halves stand for."""
        number = ((self.high & 0xFFFFFFFF) << 32) | (self.low & 0xFFFFFFFF)
        return number if self.unsigned or number <= INT64_MAX else number - 2**64


Timestamp = int | float | str | Long | None


NOTHING: Final = msgspec.Raw()


def _also(name: str) -> msgspec.Raw:
    return msgspec.field(default=NOTHING, name=name)


class AlternateAddresses(msgspec.Struct):
    """Further addresses of a sender, which some gateways put beside the contract's fields (see `events.senders`).

    Raw, because outside the contract nothing is of a wrong type.
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
        # Asked of every incoming message: several times faster than comparing tuples.
        return (
            NOTHING
            is self.participant
            is self.participant_lid
            is self.sender_lid
            is self.remote_jid_alt
            is self.participant_alt
            is self.participant_pn
            is self.sender_pn
            is self.snake_participant_lid
            is self.snake_sender_lid
            is self.snake_remote_jid_alt
            is self.snake_participant_alt
            is self.snake_participant_pn
            is self.snake_sender_pn
        )


class Key(AlternateAddresses):
    """WhatsApp's own key of a message; snake_case members are accepted as well (OC3)."""

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


def integer(value: float | None, name: str, bound: int) -> int:
    """`value` as an integer, 0 when absent. Raises `Malformed` when it is none, or out of range."""
    if value is None:
        return 0
    if type(value) is float:
        if not value.is_integer():
            raise Malformed(f"cannot decode: {name} must be an integer")
        value = int(value)
    if not -bound - 1 <= value <= bound:
        raise Malformed(f"cannot decode: {name} is out of range")
    return cast(int, value)


def seconds(value: Timestamp, name: str) -> int:
    """A timestamp in Unix seconds: number, digits or protobuf Long; milliseconds are divided (contract B3)."""
    if type(value) is str:
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
            raise Malformed(f"cannot decode: {name} must be an integer")
        value = int(value)
    elif type(value) is Long:
        value = value.value()
    number = integer(cast(Number, value), name, INT64_MAX)
    return number // 1000 if number >= MILLISECONDS_FROM else number
