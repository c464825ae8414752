"""Message events as rows of `messages` (contract 2.2, 2.3, 3.2)."""

from __future__ import annotations

import datetime
import json
from functools import lru_cache
from typing import Final

from events.fields import Key, object_text
from events.models import MessageUpdate, MessageUpsert
from tables.last_writer_wins import EventStamp
from tables.mutations import MessagePatch, MessageRow

SECONDS_A_DAY: Final = 86_400
_EPOCH: Final = datetime.date(1970, 1, 1)
# 2199-12-31 is the last day that contract B3 takes for real.
_LAST_DAY: Final = (datetime.date(2199, 12, 31) - _EPOCH).days
_quoted: Final = json.encoder.encode_basestring


def row(ref: int, event: MessageUpsert, stamp: EventStamp, stored_ns: int) -> MessageRow:
    """The row of a message; `stored_ns` is the event's JetStream time, ns."""
    sent_at = event.sent_at
    return MessageRow(
        ref,
        stamp,
        event.message_id or "",
        event.from_phone or "",
        event.to_phone or "",
        event.chat_id or "",
        event.jid or "",
        event.flow or "",
        event.message_text or "",
        event.message_url or "",
        event.message_type or "",
        event.agent_id or "",
        event.company_id or "",
        object_text(event.message_obj),
        None if event.key is None else key_text(event.key),
        event.status or "",
        sent_at,
        message_date(sent_at, stored_ns),
    )


def patch(ref: int, event: MessageUpdate, stamp: EventStamp) -> MessagePatch:
    """The columns that a message update changes."""
    return MessagePatch(
        ref,
        stamp,
        event.message_id or "",
        event.company_id or "",
        event.status or "",
        object_text(event.edited_message_obj),
        event.is_deleted,
        event.message_url or "",
    )


def key_text(key: Key) -> str:
    """Exactly `id`, `fromMe` and `remoteJid`, as JSON text (contract 2.2, OC3)."""
    from_me = "true" if key.fromMe or key.from_me else "false"
    remote_jid = _quoted(key.remoteJid or key.remote_jid or "")
    return f'{{"id":{_quoted(key.id or "")},"fromMe":{from_me},"remoteJid":{remote_jid}}}'


def message_date(sent_at: int, stored_ns: int) -> datetime.date:
    """The UTC day of a message: its own, or that of its store time when its own cannot be (contract B3)."""
    day = sent_at // SECONDS_A_DAY
    if sent_at <= 0 or day > _LAST_DAY:
        day = stored_ns // (SECONDS_A_DAY * 1_000_000_000)
    return _date(day)


@lru_cache(maxsize=4096)
def _date(day: int) -> datetime.date:
    return _EPOCH + datetime.timedelta(days=day)
