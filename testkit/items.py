"""What an event contains: itself, or the items of a history batch; and the columns that these have values for."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

Table = Literal["messages", "chats", "contacts", "agents"]
Payload = dict[str, Any]

# History batches: the field that has the items, and the real-time type that these look like.
HISTORY: Final = {
    "v1.history.messages": ("messages", "v1.messages.upsert"),
    "v1.history.chats": ("chats", "v1.chats.upsert"),
    "v1.history.contacts": ("contacts", "v1.contacts.upsert"),
}
_TABLES: Final[dict[str, Table]] = {
    "messages": "messages",
    "chats": "chats",
    "contacts": "contacts",
    "connection": "agents",
}
KEYS: Final[dict[Table, str]] = {"messages": "message_id", "chats": "chat_id", "agents": "agent_id"}

# Columns that the newest event decides, and those that keep the first value that is not empty.
NEWEST: Final = {
    "v1.messages.upsert": ("status", "message_text", "message_url", "message_type", "message_obj"),
    "v1.messages.update": ("status", "edited_message_obj", "is_deleted", "message_url"),
    "v1.chats.upsert": ("push_name", "group_name", "last_message"),
    "v1.chats.update": ("last_message",),
    "v1.contacts.upsert": ("push_name",),
    "v1.contacts.update": ("push_name",),
    "v1.connection.update": ("qr_code", "status", "agent_name", "phone_number", "host_name", "version"),
}
FIXED: Final = {
    "v1.messages.upsert": (
        "from_phone",
        "to_phone",
        "chat_id",
        "jid",
        "flow",
        "agent_id",
        "company_id",
        "key",
    ),
    "v1.chats.upsert": ("jid", "agent_id", "company_id", "phone_number"),
    "v1.contacts.upsert": ("chat_id", "phone_number", "company_id"),
    "v1.connection.update": ("company_id",),
}
# What columns hold as long as no event has a value for them.
EMPTY: Final[dict[Table, Payload]] = {
    "messages": {
        **dict.fromkeys(("status", "message_text", "message_url", "message_type"), ""),
        **{"message_obj": None, "edited_message_obj": None, "is_deleted": False},
    },
    "chats": {"push_name": "", "group_name": "", "last_message": None, "conversation_timestamp": 0},
    "contacts": {
        **dict.fromkeys(("push_name", "assigned_to", "origin", "first_message_id"), ""),
        "first_message_timestamp": 0,
    },
    "agents": dict.fromkeys(NEWEST["v1.connection.update"], ""),
}


class Item(NamedTuple):
    """A real-time event, or one item of a history batch.

    `type` is the event type of the payload: `v1.chats.upsert` for an item of `v1.history.chats`. `key` names the row
    that it is about, "" if that is not known. The payload has the values in their stored form. `refused`: it can never
    be stored.
    """

    type: str
    key: str
    payload: Any
    refused: bool = False

    @property
    def table(self) -> Table:
        """Where events of this type are stored."""
        return _TABLES[self.type.split(".")[1]]

    @property
    def onboards(self) -> str:
        """The cleaned phone of an incoming message whose sender can have a contact, if it is no history; else empty."""
        if self.refused or self.type != "v1.messages.upsert" or self.payload["flow"] != "IN":
            return ""
        unaddressed = self.payload["jid"].endswith(("@broadcast", "@newsletter"))
        return "" if unaddressed else cleaned(self.payload.get("from_phone") or "")


def good(event_type: str, payload: Payload, stored: Payload | None = None) -> Item:
    """The item of a payload that must be stored; `stored` has the values that are stored in another form."""
    item = refused(event_type, payload={**payload, **(stored or {})})
    return item._replace(key=row_key(item.table, item.payload), refused=False)


def refused(event_type: str, key: str = "", payload: object = None) -> Item:
    """The item of an event, or of one in a batch, that must end as a dead letter."""
    _, item_type = HISTORY.get(event_type, ("", event_type))
    return Item(item_type, key, payload, refused=True)


def row_key(table: Table, columns: Payload) -> str:
    """What names a row of a table, and the items about it."""
    if table == "contacts":
        return contact_key(columns["agent_id"], columns["phone_number"] or "")
    return str(columns[KEYS[table]])


def cleaned(phone: str) -> str:
    """A phone as contacts are looked up by it."""
    return "".join(char for char in phone if char not in "+ ()")


def contact_key(agent: str, phone: str) -> str:
    """What names a contact: its agent and its cleaned phone."""
    return f"{agent} {cleaned(phone)}"
