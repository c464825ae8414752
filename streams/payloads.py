"""Who an incoming message is from, however its gateway writes addresses (what is stored: docs/payloads.md).

Rows keep jids and phones as they were received. Only onboarding, which needs one phone for one person, asks here:
gateways write the same person with and without a device (`4912:67@s.whatsapp.net`), or behind an opaque linked id
(`…@lid`) with the number in a field beside it, whose name changes with the gateway's version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from streams.fields import NOTHING, Beside, Key

# Servers whose users are phone numbers, and servers whose users are opaque ids.
_PHONES: Final = frozenset(("s.whatsapp.net", "c.us", "hosted"))
_LINKED: Final = ("@lid", "@hosted.lid")
_GROUPS: Final = "g.us"
_TO_MANY: Final = ("@broadcast", "@newsletter")
# Number, then perhaps an agent and a device, as in `4912_1:67`.
_USER: Final = re.compile(r"(?P<user>[^_:]+)(?:_\d+)?(?::\d+)?")
_NUMBER: Final = re.compile(r"[+0-9 ()-]*[0-9][+0-9 ()-]*")
_NO_KEY: Final = Key()


class Jid(NamedTuple):
    """A WhatsApp address without its device; `server` is empty where the text has none."""

    user: str
    server: str


def jid(text: str) -> Jid:
    """The address in `text`: `4912:67@s.whatsapp.net` is 4912 at s.whatsapp.net."""
    user, _, server = text.partition("@")
    parts = _USER.fullmatch(user)
    return Jid(parts["user"] if parts else user, server)


def is_to_many(address: str) -> bool:
    """Whether it is a status, a broadcast list or a newsletter: no one to have a contact (design 6)."""
    return address.endswith(_TO_MANY)


def sender_phone(from_phone: str, address: str, message: Beside, key: Key | None) -> str:
    """The phone to onboard the sender of a message with, not cleaned; empty when it names none.

    `from_phone` counts (contract 5.1), without a device. If it is empty, or no phone but the user of a linked id, the
    first number among the other addresses of `key` and `message` does. `address` is the message's jid.
    """
    key = key or _NO_KEY
    key_address = key.remoteJid or key.remote_jid or ""
    if is_to_many(key_address) or is_to_many(from_phone):
        return ""
    if from_phone.isdigit() and address == f"{from_phone}@s.whatsapp.net":
        return from_phone  # nearly every message; the rest takes longer
    opaque = set(_opaque(address, key_address, *_texts(message.linked), *_texts(key.linked)))
    given = _without_device(from_phone)
    if given and _bare(given) not in opaque:
        found = jid(given)
        if found.server in _PHONES:
            return found.user
        if not given.endswith(_LINKED):
            return given
    return next(_numbers(_alternatives(jid(address).server == _GROUPS, message, key), opaque), "")


def _opaque(*addresses: str) -> Iterator[str]:
    """The users of the linked ids among the addresses."""
    return (jid(address).user for address in addresses if address.endswith(_LINKED))


def _without_device(phone: str) -> str:
    number, colon, device = phone.partition(":")
    return number if colon and device.isdigit() and _NUMBER.fullmatch(number) else phone


def _bare(phone: str) -> str:
    return phone.removeprefix("+")


def _alternatives(in_group: bool, message: Beside, key: Key) -> Iterator[str]:
    """In a group the sender is the participant; elsewhere it is the other side of the chat."""
    for side in (key, message):
        chat, person = (side.remote_jid_alt,), (side.participant_alt, side.participant_pn, side.sender_pn)
        yield from _texts((*person, *chat) if in_group else (*chat, *reversed(person)))


def _numbers(addresses: Iterable[str], opaque: set[str]) -> Iterator[str]:
    for address in addresses:
        user, server = jid(address)
        if (server in _PHONES or not server) and _NUMBER.fullmatch(user) and _bare(user) not in opaque:
            yield user


def _texts(fields: Iterable[msgspec.Raw]) -> Iterator[str]:
    """The fields that are strings: the contract does not know them, so what else they are is no error."""
    for field in fields:
        if field is not NOTHING and bytes(field)[:1] == b'"':
            yield msgspec.json.decode(field, type=str)
