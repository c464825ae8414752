"""Chat events as rows of `chats` (contract 2.4, 2.5, 3.3, 3.4)."""

from __future__ import annotations

from events.fields import object_text
from events.models import ChatUpdate, ChatUpsert
from tables.last_writer_wins import EventStamp
from tables.mutations import ChatPatch, ChatRow


def row(ref: int, event: ChatUpsert, stamp: EventStamp) -> ChatRow:
    """The row of a chat."""
    return ChatRow(
        ref=ref,
        stamp=stamp,
        chat_id=event.chat_id or "",
        jid=event.jid or "",
        company_id=event.company_id or "",
        agent_id=event.agent_id or "",
        phone_number=event.phone_number or "",
        push_name=event.push_name or "",
        is_group=bool(event.is_group),
        group_name=event.group_name or "",
        last_message=object_text(event.last_message),
        conversation_timestamp=event.talked_at,
        unread_count=event.unread,
        not_spam=bool(event.not_spam),
    )


def patch(ref: int, event: ChatUpdate, stamp: EventStamp) -> ChatPatch:
    """What a chat update changes: an `unread_count` of 1 is a step, 2 and more a value, anything else the value 0."""
    is_step = event.unread == 1
    return ChatPatch(
        ref=ref,
        stamp=stamp,
        chat_id=event.chat_id or "",
        company_id=event.company_id or "",
        is_step=is_step,
        unread_count=None if is_step else max(0, event.unread),
        conversation_timestamp=event.talked_at,
        last_message=object_text(event.last_message),
    )
