"""What a published event is expected to come to: its items, each of which must end in exactly one place."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

Table = Literal["messages", "chats", "contacts", "agents"]
Payload = dict[str, Any]

# Columns that an event feeds only where it has something to say (VER-9).
_FED: dict[Table, tuple[str, ...]] = {
    "messages": (
        *("chat_id", "jid", "flow", "agent_id", "company_id", "from_phone", "to_phone", "key"),
        *("message_type", "message_text", "message_url", "message_obj", "status"),
        *("edited_message_obj", "is_deleted", "message_timestamp"),
    ),
    "chats": (
        *("jid", "company_id", "agent_id", "phone_number", "is_group"),
        *("push_name", "group_name", "last_message", "conversation_timestamp"),
    ),
    "contacts": ("company_id", "agent_id", "chat_id", "push_name"),
    "agents": ("company_id", "qr_code", "status", "agent_name", "host_name", "version", "phone_number"),
}
_KEYS: dict[Table, str] = {"messages": "message_id", "chats": "chat_id", "agents": "agent_id"}
_UNONBOARDED = ("@broadcast", "@newsletter")


class Item(NamedTuple):
    """A real-time event, or one item of a history batch.

    `values` are the column values it feeds, in their stored form. `seconds` is a history item's own time,
    None for a real-time event. `step`: it adds one to `unread_count`. `onboards`: the cleaned phone of an
    incoming message, which must have a contact. `refused`: it can never be stored; in a batch, `text` is then
    its JSON.
    """

    table: Table
    key: str
    values: Payload
    seconds: int | None = None
    step: bool = False
    onboards: str = ""
    refused: bool = False
    text: str = ""


def table_of(event_type: str) -> Table:
    """Where the events of this type are stored."""
    if "messages" in event_type:
        return "messages"
    if "contacts" in event_type:
        return "contacts"
    return "chats" if "chats" in event_type else "agents"


def cleaned(phone: str) -> str:
    """A phone as contacts are looked up by it (ONB-2)."""
    return re.sub(r"[+ ()]", "", phone)


def key_of(table: Table, payload: Payload) -> str:
    """What names the row that a payload is about."""
    if table == "contacts":
        return f"{payload['agent_id']} {cleaned(payload['phone_number'])}"
    return str(payload[_KEYS[table]])


def good(event_type: str, payload: Payload, stored: Payload | None = None) -> Item:
    """The item of a payload that must be stored; `stored` has the values that are stored in another form."""
    table = table_of(event_type)
    history = event_type.startswith("v1.history.")
    seen = {**payload, **(stored or {})}
    values = {name: seen[name] for name in _FED[table] if seen.get(name) not in (None, "")}
    step = event_type == "v1.chats.update" and seen.get("unread_count") == 1
    if table == "chats" and not step:
        values["unread_count"] = seen.get("unread_count", 0)
    own_time = seen.get("message_timestamp", seen.get("conversation_timestamp", 0))
    return Item(
        table,
        key_of(table, seen),
        values,
        seconds=own_time if history else None,
        step=step,
        onboards=_onboards(seen) if event_type == "v1.messages.upsert" else "",
    )


def refused(event_type: str, key: str = "", text: str = "") -> Item:
    """The item of an event, or of one in a batch, that must end as a dead letter."""
    return Item(table_of(event_type), key, {}, refused=True, text=text)


def _onboards(payload: Payload) -> str:
    if payload["flow"] != "IN" or str(payload["jid"]).endswith(_UNONBOARDED):
        return ""
    return cleaned(payload.get("from_phone", ""))
