"""What real senders get wrong: events that can never be stored, and odd ones that nevertheless are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from testkit.account import Account, encoded
from testkit.items import Item, Payload, good, refused

# A body and what is to become of it.
Fault = tuple[str, bytes, Item]

_NESTED: Final = 20_000


def of_type(account: Account, event_type: str) -> Fault:
    """An event of this type that can never be stored."""
    return (invalid if account.chance(0.7) else malformed)(account, event_type)


def invalid(account: Account, only: str | None = None) -> Fault:
    """Proper JSON with a missing, wrong or foreign value. Its keys are used nowhere else.

    `only`: of this event type; if there is no such fault of it, a malformed one.
    """
    chat = account.stranger()
    message = account.message(chat, incoming=True)
    choices: tuple[tuple[str, Payload], ...] = (
        ("v1.messages.upsert", {**message, "chat_id": ""}),
        ("v1.messages.upsert", {**message, "flow": "SIDEWAYS"}),
        ("v1.messages.upsert", {**message, "company_id": f"{account.company}Other"}),
        ("v1.messages.upsert", {**message, "message_text": 7}),
        ("v1.messages.upsert", {**message, "key": {"fromMe": True}}),
        ("v1.messages.upsert", {**message, "message_obj": ["a", "list"]}),
        ("v1.messages.update", {"company_id": account.company, "status": "read"}),
        ("v1.chats.upsert", {**account.chat(chat), "unread_count": "3"}),
        ("v1.chats.upsert", {**account.chat(chat), "conversation_timestamp": -1}),
        ("v1.chats.update", {"chat_id": chat.id, "unread_count": 2}),
        ("v1.contacts.upsert", {**account.contact(chat), "push_name": ""}),
        ("v1.contacts.update", {"agent_id": chat.agent.id, "push_name": chat.name}),
        ("v1.connection.update", {"status": "connected", "host_name": "wa-node-1"}),
        ("v1.history.chats", {"chats": "none"}),
    )
    if not (fitting := [choice for choice in choices if only in (None, choice[0])]):
        return malformed(account, only)
    event_type, payload = account.rng.choice(fitting)
    return event_type, encoded(payload), refused(event_type, _key(event_type, message, chat.id))


def malformed(account: Account, only: str | None = None) -> Fault:
    """Not the JSON object that was promised, or no JSON at all; `only`: of this event type."""
    message = encoded(account.message(account.stranger(), incoming=True))
    invalid_body = account.rng.choice(
        (
            b"",
            b"not json",
            message[:-9],
            message + b"}",
            b"[1,2]",
            b'"text"',
            b"\x00\x01\xfe",
            b'{"message_id":"' + b"\x00" + b'"}',
            b"\xff\xfe{}",
            b'{"message_obj":' + b"[" * _NESTED,
        )
    )
    types = ("v1.messages.upsert", "v1.chats.upsert", "v1.history.messages")
    event_type = account.rng.choice(types if only is None else (only,))
    return event_type, invalid_body, refused(event_type)


def orphan(account: Account) -> Fault:
    """An update of what never comes."""
    chat = account.stranger()
    choices: tuple[tuple[str, Payload], ...] = (
        ("v1.messages.update", {"message_id": account.message_id(), "status": "read"}),
        ("v1.chats.update", {"chat_id": chat.id, "agent_id": chat.agent.id, "unread_count": 2}),
        ("v1.contacts.update", account.contact(chat)),
    )
    event_type, payload = account.rng.choice(choices)
    return event_type, encoded(payload), refused(event_type, _key(event_type, payload, chat.id))


def oversized(account: Account, room: int) -> Fault:
    """An invalid message that just fits (`room`: bytes of its body), while its dead letter does not."""
    message = account.message(account.stranger(), incoming=True)
    message |= {"flow": "SIDEWAYS", "message_obj": {"thumbnail": ""}}
    message["message_obj"]["thumbnail"] = "A" * (room - len(encoded(message)))
    return "v1.messages.upsert", encoded(message), refused("v1.messages.upsert", message["message_id"])


def odd(account: Account) -> Fault:
    """A message with one of the oddities that senders are known for; it is stored all the same."""
    payload = account.message(account.person(), incoming=True)
    return account.rng.choice(_ODDITIES)(account, payload)


def _stored(payload: Payload, raw: bytes | None = None, **stored: Any) -> Fault:
    event_type = "v1.messages.upsert"
    return event_type, encoded(payload) if raw is None else raw, good(event_type, payload, stored)


def _nul(_: Account, payload: Payload) -> Fault:
    return _stored({**payload, "message_text": "apa\x00kabar"}, message_text="apakabar")


def _surrogate(_: Account, payload: Payload) -> Fault:
    odd_one = {**payload, "message_text": "halo \ud83d"}
    return _stored(odd_one, json.dumps(odd_one).encode(), message_text="halo \ufffd")


def _bad_utf8(_: Account, payload: Payload) -> Fault:
    marked = {**payload, "message_text": "caf@"}
    return _stored(marked, encoded(marked).replace(b"caf@", b"caf\xe9"), message_text="caf\ufffd")


def _milliseconds(account: Account, payload: Payload) -> Fault:
    return _stored({**payload, "message_timestamp": account.now * 1000}, message_timestamp=account.now)


def _digits(account: Account, payload: Payload) -> Fault:
    return _stored({**payload, "message_timestamp": str(account.now)}, message_timestamp=account.now)


def _long(account: Account, payload: Payload) -> Fault:
    halves = {"low": account.now, "high": 0, "unsigned": True}
    return _stored({**payload, "message_timestamp": halves}, message_timestamp=account.now)


def _no_time(_: Account, payload: Payload) -> Fault:
    return _stored({name: value for name, value in payload.items() if name != "message_timestamp"})


def _big_number(_: Account, payload: Payload) -> Fault:
    return _stored({**payload, "message_obj": {"fileLength": 12345678901234567890}})


def _plus_phone(_: Account, payload: Payload) -> Fault:
    return _stored({**payload, "from_phone": f"+62 {payload['from_phone'][2:]}"})


def _hidden_number(account: Account, payload: Payload) -> Fault:
    jid = f"{account.rng.randrange(10**14)}@lid"
    payload = {**payload, "jid": jid, "key": {**payload["key"], "remoteJid": jid}}
    return _stored({name: value for name, value in payload.items() if name != "from_phone"})


def _status_post(account: Account, payload: Payload) -> Fault:
    jid = "status@broadcast"
    key = {**payload["key"], "remoteJid": jid}
    return _stored({**payload, "chat_id": f"{payload['agent_id']}_status", "jid": jid, "key": key})


def _no_company(account: Account, payload: Payload) -> Fault:
    bare = {name: value for name, value in payload.items() if name != "company_id"}
    return _stored(bare, company_id=account.company)


def _null_and_unknown(_: Account, payload: Payload) -> Fault:
    return _stored({**payload, "message_obj": None, "pushName": "Sari", "labels": [1, None]})


_ODDITIES: Final[tuple[Callable[[Account, Payload], Fault], ...]] = (
    *(_nul, _surrogate, _bad_utf8, _milliseconds, _digits, _long, _no_time, _big_number),
    *(_plus_phone, _hidden_number, _status_post, _no_company, _null_and_unknown),
)


def _key(event_type: str, message: Payload, chat_id: str) -> str:
    """The row that must not be there afterwards."""
    if event_type.startswith("v1.messages."):
        return str(message.get("message_id", ""))
    return chat_id if event_type.startswith("v1.chats.") else ""
