"""The fields of the events that the model needs."""

from __future__ import annotations

from typing import Final

HISTORY: Final = {
    "v1.history.messages": ("messages", "v1.messages.upsert"),
    "v1.history.chats": ("chats", "v1.chats.upsert"),
    "v1.history.contacts": ("contacts", "v1.contacts.upsert"),
}
REQUIRED: Final = {
    "v1.messages.upsert": ("message_id", "chat_id", "jid", "flow", "agent_id"),
    "v1.messages.update": ("message_id",),
    "v1.chats.upsert": ("chat_id", "jid", "agent_id", "phone_number"),
    "v1.chats.update": ("chat_id", "agent_id"),
    "v1.contacts.upsert": ("chat_id", "phone_number", "agent_id", "push_name"),
    "v1.contacts.update": ("phone_number", "agent_id"),
    "v1.connection.update": ("agent_id",),
}
# Per type the columns that the newest event decides (VER-9), and those that the first one keeps.
NEWEST: Final = {
    "v1.messages.upsert": ("status", "message_text", "message_url", "message_type", "message_obj"),
    "v1.messages.update": ("status", "edited_message_obj", "is_deleted", "message_url"),
    "v1.chats.upsert": ("push_name", "group_name", "last_message"),
    "v1.chats.update": ("last_message",),
    "v1.contacts.upsert": ("push_name",),
    "v1.contacts.update": ("push_name",),
    "v1.connection.update": ("qr_code", "status", "agent_name", "phone_number", "host_name", "version"),
}
KEPT: Final = {
    "v1.messages.upsert": ("from_phone", "to_phone", "chat_id", "jid", "flow", "agent_id", "company_id"),
    "v1.chats.upsert": ("jid", "agent_id", "company_id", "phone_number"),
}
OBJECTS: Final = ("message_obj", "edited_message_obj", "last_message", "is_deleted")
