"""Payloads of all event types: the examples of docs/specification, in which every change is a keyword.

`ABSENT` as a value leaves the field out: `message(flow=ABSENT)`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

from testkit.items import Payload as Payload

ABSENT: Final = object()
COMPANY: Final = "KopiNusa01"
AGENT: Final = "agent-7f3a"
PHONE: Final = "6281234500011"
CHAT: Final = f"{AGENT}_{PHONE}"
JID: Final = f"{PHONE}@s.whatsapp.net"
SENT_AT: Final = 1_795_500_123  # 2026-11-24T06:02:03Z
_EXAMPLES: Final = Path(__file__).parents[1] / "docs" / "specification" / "examples"


def _changed(payload: Payload, changes: Payload) -> Payload:
    return {name: value for name, value in {**payload, **changes}.items() if value is not ABSENT}


def _builder(example: str, **defaults: Any) -> Callable[..., Payload]:
    text = (_EXAMPLES / f"{example}.json").read_text(encoding="utf-8")
    return lambda **changes: _changed(json.loads(text), {**defaults, **changes})


# An incoming text; also an item of `v1.history.messages`.
message = _builder("v1.messages.upsert", campaign=ABSENT)
# It was read.
message_update = _builder("v1.messages.update")
# Also an item of `v1.history.chats`.
chat = _builder("v1.chats.upsert")
# One more unread message.
chat_update = _builder("v1.chats.update")
# Also an item of `v1.history.contacts`.
contact = _builder("v1.contacts.upsert")
# A new name.
contact_update = _builder("v1.contacts.update")
# An agent that is connected.
connection = _builder("v1.connection.update")
_envelope = _builder("dead-letter", event_version="1795500123000000000-7")


def _history(field: str, *defaults: Payload) -> Callable[..., Payload]:
    return lambda *items, **changes: _changed({field: deepcopy(list(items or defaults))}, changes)


_group = chat(
    chat_id=f"{AGENT}_120363040101", jid="120363040101@g.us", is_group=True, group_name="Tim Gudang"
)
# Batches of these items; without items: two messages, a chat and a group, one contact.
history_messages = _history("messages", message(message_id="H1"), message(message_id="H2", flow="OUT"))
history_chats = _history("chats", chat(), _group)
history_contacts = _history("contacts", contact())

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
    original = message_update() if payload is ABSENT else payload
    return _envelope(**{"original_payload": original, **changes})


def body(payload: Any) -> bytes:
    """A payload as it is published."""
    return json.dumps(payload, ensure_ascii=False).encode()
