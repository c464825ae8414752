"""Payloads of all ten event types with sensible defaults; every change is a keyword.

`ABSENT` as a value leaves the field out: `message(flow=ABSENT)`.
"""

from __future__ import annotations

import json
from typing import Any, Final

Payload = dict[str, Any]

ABSENT: Final = object()
COMPANY: Final = "KopiNusa01"
AGENT: Final = "agent-7f3a"
PHONE: Final = "6281234500011"
CHAT: Final = f"{AGENT}_{PHONE}"
JID: Final = f"{PHONE}@s.whatsapp.net"
SENT_AT: Final = 1_795_500_123  # 2026-11-24T06:02:03Z


def _changed(defaults: Payload, changes: Payload) -> Payload:
    return {name: value for name, value in {**defaults, **changes}.items() if value is not ABSENT}


def message(**changes: Any) -> Payload:
    """`v1.messages.upsert`, an incoming text; also an item of `v1.history.messages`."""
    defaults = {
        "message_id": "3EB0A1F2C4",
        "chat_id": CHAT,
        "jid": JID,
        "from_phone": PHONE,
        "to_phone": "628990002222",
        "flow": "IN",
        "message_type": "conversation",
        "message_text": "Apakah stok kopi gayo masih ada?",
        "company_id": COMPANY,
        "agent_id": AGENT,
        "key": {"id": "3EB0A1F2C4", "fromMe": False, "remoteJid": JID},
        "message_obj": {"conversation": "Apakah stok kopi gayo masih ada?"},
        "status": "delivered",
        "message_timestamp": SENT_AT,
    }
    return _changed(defaults, changes)


def message_update(**changes: Any) -> Payload:
    """`v1.messages.update`: read."""
    return _changed({"message_id": "3EB0A1F2C4", "company_id": COMPANY, "status": "read"}, changes)


def chat(**changes: Any) -> Payload:
    """`v1.chats.upsert`, also an item of `v1.history.chats`."""
    defaults = {
        "chat_id": CHAT,
        "jid": JID,
        "company_id": COMPANY,
        "agent_id": AGENT,
        "phone_number": PHONE,
        "push_name": "Sari W",
        "last_message": {"id": "3EB0A1F2C4", "text": "Apakah stok kopi gayo masih ada?"},
        "conversation_timestamp": SENT_AT,
        "unread_count": 2,
        "not_spam": True,
    }
    return _changed(defaults, changes)


def chat_update(**changes: Any) -> Payload:
    """`v1.chats.update`: one more unread message."""
    defaults = {
        "chat_id": CHAT,
        "company_id": COMPANY,
        "agent_id": AGENT,
        "unread_count": 1,
        "conversation_timestamp": SENT_AT + 337,
        "last_message": {"id": "3EB0A1F2D9", "text": "Halo?"},
    }
    return _changed(defaults, changes)


def contact(**changes: Any) -> Payload:
    """`v1.contacts.upsert`, also an item of `v1.history.contacts`."""
    defaults = {
        "chat_id": CHAT,
        "phone_number": PHONE,
        "company_id": COMPANY,
        "agent_id": AGENT,
        "push_name": "Sari W",
    }
    return _changed(defaults, changes)


def contact_update(**changes: Any) -> Payload:
    """`v1.contacts.update`: a new name."""
    defaults = {
        "phone_number": PHONE,
        "company_id": COMPANY,
        "agent_id": AGENT,
        "push_name": "Sari Wulandari",
    }
    return _changed(defaults, changes)


def connection(**changes: Any) -> Payload:
    """`v1.connection.update`: an agent that is connected."""
    defaults = {
        "agent_id": AGENT,
        "company_id": COMPANY,
        "status": "connected",
        "agent_name": "CS Utama",
        "host_name": "wa-node-3",
        "version": "2.14.0",
        "phone_number": "628990002222",
    }
    return _changed(defaults, changes)


def history_messages(*items: Any, **changes: Any) -> Payload:
    """`v1.history.messages`; without items: two messages."""
    two = (message(message_id="H1"), message(message_id="H2", flow="OUT"))
    return _changed({"messages": list(items or two)}, changes)


def history_chats(*items: Any, **changes: Any) -> Payload:
    """`v1.history.chats`; without items: a chat and a group."""
    group = chat(
        chat_id=f"{AGENT}_120363040101", jid="120363040101@g.us", is_group=True, group_name="Tim Gudang"
    )
    return _changed({"chats": list(items or (chat(), group))}, changes)


def history_contacts(*items: Any, **changes: Any) -> Payload:
    """`v1.history.contacts`; without items: one contact."""
    return _changed({"contacts": list(items or (contact(),))}, changes)


BUILDERS: Final = {
    "v1.messages.upsert": message,
    "v1.messages.update": message_update,
    "v1.chats.upsert": chat,
    "v1.chats.update": chat_update,
    "v1.contacts.upsert": contact,
    "v1.contacts.update": contact_update,
    "v1.connection.update": connection,
    "v1.history.messages": history_messages,
    "v1.history.chats": history_chats,
    "v1.history.contacts": history_contacts,
}


def envelope(payload: Any = ABSENT, **changes: Any) -> Payload:
    """A dead letter around `payload`, by default around a message update that found no row."""
    defaults = {
        "source_subject": f"v1.messages.update.{COMPANY}",
        "company": COMPANY,
        "original_payload": message_update() if payload is ABSENT else payload,
        "error": "fatal: message to update not found",
        "error_type": "fatal",
        "retry_count": 1,
        "max_retry": 5,
        "event_version": "1795500123000000000-7",
        "ts": "2026-11-24T07:15:30.123456Z",
    }
    return _changed(defaults, changes)


def body(payload: Any) -> bytes:
    """A payload as it is published."""
    return json.dumps(payload, ensure_ascii=False).encode()
