"""What real senders get wrong: events that can never be stored, and odd ones that nevertheless are."""

from __future__ import annotations

import json
from typing import Final

from testkit.account import Account, Draft, encoded
from testkit.items import Payload, good, refused

_NESTED: Final = 20_000
_ABSENT: Final = object()
# Stands for what is no UTF-8.
_MARK: Final = b"caf@"


def invalid(account: Account, only: str | None = None) -> Draft:
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
    return _refused(event_type, encoded(payload), _key(event_type, message, chat.id))


def malformed(account: Account, only: str | None = None) -> Draft:
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
    return _refused(event_type, invalid_body)


def orphan(account: Account) -> Draft:
    """An update of what never comes."""
    chat = account.stranger()
    choices: tuple[tuple[str, Payload], ...] = (
        ("v1.messages.update", {"message_id": account.message_id(), "status": "read"}),
        ("v1.chats.update", {"chat_id": chat.id, "agent_id": chat.agent.id, "unread_count": 2}),
        ("v1.contacts.update", account.contact(chat)),
    )
    event_type, payload = account.rng.choice(choices)
    return _refused(event_type, encoded(payload), _key(event_type, payload, chat.id))


def oversized(account: Account, room: int) -> Draft:
    """An invalid message that just fits (`room`: bytes of its body), while its dead letter does not."""
    message = account.message(account.stranger(), incoming=True)
    message |= {"flow": "SIDEWAYS", "message_obj": {"thumbnail": ""}}
    message["message_obj"]["thumbnail"] = "A" * (room - len(encoded(message)))
    return _refused("v1.messages.upsert", encoded(message), message["message_id"])


def odd(account: Account) -> Draft:
    """A message with one of the oddities that senders are known for; it is stored all the same."""
    message, now = account.message(account.person(), incoming=True), account.now
    hidden = f"{account.rng.randrange(10**14)}@lid"
    # What the sender writes, and what is stored in another form.
    oddities: tuple[tuple[Payload, Payload], ...] = (
        ({"message_text": "apa\x00kabar"}, {"message_text": "apakabar"}),
        ({"message_text": "halo \ud83d"}, {"message_text": "halo \ufffd"}),
        ({"message_text": _MARK.decode()}, {"message_text": "caf\ufffd"}),
        ({"message_timestamp": now * 1000}, {"message_timestamp": now}),
        ({"message_timestamp": str(now)}, {"message_timestamp": now}),
        ({"message_timestamp": {"low": now, "high": 0, "unsigned": True}}, {"message_timestamp": now}),
        ({"message_timestamp": _ABSENT}, {}),
        ({"message_obj": {"fileLength": 12345678901234567890}}, {}),
        ({"from_phone": f"+62 {message['from_phone'][2:]}"}, {}),
        ({"from_phone": _ABSENT, **_addressed(message, hidden)}, {}),
        ({"chat_id": f"{message['agent_id']}_status", **_addressed(message, "status@broadcast")}, {}),
        ({"company_id": _ABSENT}, {"company_id": account.company}),
        ({"message_obj": None, "pushName": "Sari", "labels": [1, None]}, {}),
    )
    changes, stored = account.rng.choice(oddities)
    payload = {name: value for name, value in {**message, **changes}.items() if value is not _ABSENT}
    # In ASCII, which has a form for half a surrogate pair.
    body = json.dumps(payload).encode().replace(_MARK, b"caf\xe9")
    return Draft("v1.messages.upsert", body, (good("v1.messages.upsert", payload, stored),))


def _addressed(message: Payload, jid: str) -> Payload:
    return {"jid": jid, "key": {**message["key"], "remoteJid": jid}}


def _refused(event_type: str, body: bytes, key: str = "") -> Draft:
    return Draft(event_type, body, (refused(event_type, key),))


def _key(event_type: str, message: Payload, chat_id: str) -> str:
    """The row that must not be there afterwards."""
    if event_type.startswith("v1.messages."):
        return str(message.get("message_id", ""))
    return chat_id if event_type.startswith("v1.chats.") else ""
