"""Who an incoming message is from, however its gateway writes addresses (ONB-3).

Rows keep jids and phones as they were received. Only onboarding, which needs one phone for one person, asks here:
gateways write the same person with and without a device (`4912:67@s.whatsapp.net`), or behind an opaque linked id
(`…@lid`). Number and linked id stand in `from_phone`, in the chat's address and in fields beside them, whose names
change with the gateway's version, and so does which of the two stands where. One of them says which is the linked id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from events.fields import NOTHING, AlternateAddresses, Key

# Servers whose users are phone numbers, and servers whose users are opaque ids.
_PHONES: Final = frozenset(("s.whatsapp.net", "c.us", "hosted"))
_LINKED: Final = ("@lid", "@hosted.lid")
_GROUPS: Final = "g.us"
_TO_MANY: Final = ("@broadcast", "@newsletter")
# Number, then perhaps an agent and a device, as in `4912_1:67` and `4912.0:67`.
_USER: Final = re.compile(r"(?P<user>[^_:.]+)(?:[_.]\d+)?(?::\d+)?")
_SEPARATORS: Final = re.compile(r"[+ ()-]")
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
    """Whether it is a status, a broadcast list or a newsletter: no one to have a contact (ONB-12)."""
    return address.endswith(_TO_MANY)


def sender_phone(from_phone: str, address: str, message: AlternateAddresses, key: Key | None) -> str:
    """The phone to onboard the sender of a message with, not cleaned; empty when it names none.

    `from_phone` counts, without a device. If it is empty, or no phone but a linked id, the first number among the
    other addresses of `key` and `message` does. `address` is the message's jid.
    """
    key = key or _NO_KEY
    remote = key.remoteJid or key.remote_jid or address
    if (
        remote == address == f"{from_phone}@s.whatsapp.net"
        and from_phone.isdigit()
        and message.alone
        and key.alone
    ):
        return from_phone  # nearly every message; the rest takes longer
    chats = [text for text in (key.remoteJid, key.remote_jid, address) if text]
    if any(map(is_to_many, (*chats, from_phone))):
        return ""
    opaque = set(_opaque(from_phone, chats, message, key))
    given = _without_device(from_phone)
    found = jid(given)
    if given and not given.endswith(_LINKED) and _bare(found.user) not in opaque:
        return found.user if found.server in _PHONES else given
    return next(_numbers(_alternatives(chats, message, key, linked=bool(opaque)), opaque), "")


def _opaque(from_phone: str, chats: Iterable[str], *sides: AlternateAddresses) -> Iterator[str]:
    """The users of all linked ids that are named anywhere."""
    beside = (field for side in sides for field in (*side.chats, *side.persons))
    for address in (from_phone, *chats, *_texts(beside)):
        if address.endswith(_LINKED):
            yield jid(address).user
    for address in _texts(field for side in sides for field in side.linked):
        found = jid(address)
        if found.server not in _PHONES:  # also without any server
            yield found.user


def _without_device(phone: str) -> str:
    number, colon, device = phone.partition(":")
    return number if colon and device.isdigit() and _NUMBER.fullmatch(number) else phone


def _bare(phone: str) -> str:
    return _SEPARATORS.sub("", phone)


def _alternatives(chats: list[str], message: AlternateAddresses, key: Key, *, linked: bool) -> Iterator[str]:
    """Where the number may stand. In a group the sender is the participant; elsewhere the other side of the chat.

    The chat's own addresses count only beside a linked id: without any, an empty `from_phone` means nobody.
    """
    beside_chat = [*_texts(key.chats), *_texts(message.chats)]
    main = chats if linked else []
    if any(jid(address).server == _GROUPS for address in (*chats, *beside_chat)):
        yield from (*_texts(key.persons), *_texts(message.persons), *beside_chat, *main)
    else:
        yield from (*main, *beside_chat, *_texts(reversed(key.persons)), *_texts(reversed(message.persons)))
    yield from _texts(field for side in (key, message) for field in side.linked)


def _numbers(addresses: Iterable[str], opaque: set[str]) -> Iterator[str]:
    for address in addresses:
        user, server = jid(address)
        if (server in _PHONES or not server) and _NUMBER.fullmatch(user) and _bare(user) not in opaque:
            yield user


def _texts(fields: Iterable[msgspec.Raw]) -> Iterator[str]:
    """The fields that are strings: the specification does not name them, so what else they are is no error."""
    for field in fields:
        if field is not NOTHING and bytes(field)[:1] == b'"':
            yield msgspec.json.decode(field, type=str)
