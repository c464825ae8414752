"""Which of the drawn events, and items of history batches, can be stored."""

from __future__ import annotations

from typing import Final

from testkit.items import HISTORY, Item, Payload, good, refused

_REQUIRED: Final = {
    "v1.messages.upsert": ("message_id", "chat_id", "jid", "flow", "agent_id"),
    "v1.messages.update": ("message_id",),
    "v1.chats.upsert": ("chat_id", "jid", "agent_id", "phone_number"),
    "v1.chats.update": ("chat_id", "agent_id"),
    "v1.contacts.upsert": ("chat_id", "phone_number", "agent_id", "push_name"),
    "v1.contacts.update": ("phone_number", "agent_id"),
    "v1.connection.update": ("agent_id",),
}


def items_of(event_type: str, payload: Payload, company: str) -> tuple[Item, ...]:
    """The items of an event whose values have the right types."""
    field, item_type = HISTORY.get(event_type, ("", event_type))
    return tuple(
        good(item_type, one) if _valid(item_type, one, company) else refused(item_type, payload=one)
        for one in (payload[field] if field else [payload])
    )


def _valid(item_type: str, payload: Payload, company: str) -> bool:
    return (
        all(payload.get(name) for name in _REQUIRED[item_type])
        and payload.get("company_id", company) in ("", company)
        and payload.get("flow", "IN") in ("IN", "OUT")
        and (item_type != "v1.contacts.update" or payload.get("push_name") is not None)
    )
