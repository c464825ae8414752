"""What each event asks the tables for: the mutation of a row, and the sender to onboard."""

from __future__ import annotations

import datetime
import json
from functools import lru_cache
from typing import Final, assert_never

from events import models
from events.fields import Key, checked, object_text
from events.senders import is_to_many, sender_phone
from tables.attribution import CampaignAttribution, Incoming
from tables.contact_index import clean_phone
from tables.last_writer_wins import EventStamp
from tables.mutations import (
    AccountRow,
    ChatPatch,
    ChatRow,
    ContactPatch,
    ContactRow,
    MessagePatch,
    MessageRow,
    Mutation,
)

SECONDS_A_DAY: Final = 86_400
_EPOCH: Final = datetime.date(1970, 1, 1)
# Later days are taken for mistakes: no partition is made for them.
_LAST_DAY: Final = (datetime.date(2199, 12, 31) - _EPOCH).days
_quoted: Final = json.encoder.encode_basestring


def mutation(ref: int, event: models.Event, stamp: EventStamp, stored_ns: int) -> Mutation:
    """The row or patch for one event; `ref` identifies it in its batch, `stored_ns` is its store time, ns."""
    match event:
        case models.MessageUpsert():
            return _message_row(ref, event, stamp, stored_ns)
        case models.MessageUpdate():
            return _message_patch(ref, event, stamp)
        case models.ChatUpsert():
            return _chat_row(ref, event, stamp)
        case models.ChatUpdate():
            return _chat_patch(ref, event, stamp)
        case models.ContactUpsert():
            return _contact_row(ref, event, stamp)
        case models.ContactUpdate():
            return _contact_patch(ref, event, stamp)
        case models.ConnectionUpdate():
            return _account_row(ref, event, stamp)
        case _:
            assert_never(event)


def _message_row(ref: int, event: models.MessageUpsert, stamp: EventStamp, stored_ns: int) -> MessageRow:
    sent_at = checked(event.message_timestamp)
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


def _message_patch(ref: int, event: models.MessageUpdate, stamp: EventStamp) -> MessagePatch:
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


def _chat_row(ref: int, event: models.ChatUpsert, stamp: EventStamp) -> ChatRow:
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
        conversation_timestamp=checked(event.conversation_timestamp),
        unread_count=checked(event.unread_count),
        not_spam=bool(event.not_spam),
    )


def _chat_patch(ref: int, event: models.ChatUpdate, stamp: EventStamp) -> ChatPatch:
    # An `unread_count` of 1 is a step, 2 and more a value, anything else (also an absent one) the value 0.
    is_step = event.unread_count == 1
    return ChatPatch(
        ref=ref,
        stamp=stamp,
        chat_id=event.chat_id or "",
        company_id=event.company_id or "",
        is_step=is_step,
        unread_count=None if is_step else max(0, checked(event.unread_count)),
        conversation_timestamp=checked(event.conversation_timestamp),
        last_message=object_text(event.last_message),
    )


def _contact_row(ref: int, event: models.ContactUpsert, stamp: EventStamp) -> ContactRow:
    return ContactRow(
        ref=ref,
        stamp=stamp,
        chat_id=event.chat_id or "",
        phone_number=event.phone_number or "",
        company_id=event.company_id or "",
        agent_id=event.agent_id or "",
        push_name=event.push_name or "",
    )


def _contact_patch(ref: int, event: models.ContactUpdate, stamp: EventStamp) -> ContactPatch:
    # An empty name leaves the name.
    return ContactPatch(
        ref=ref,
        stamp=stamp,
        phone_number=event.phone_number or "",
        company_id=event.company_id or "",
        agent_id=event.agent_id or "",
        push_name=event.push_name or "",
    )


def _account_row(ref: int, event: models.ConnectionUpdate, stamp: EventStamp) -> AccountRow:
    # Empty fields leave what is stored.
    return AccountRow(
        ref=ref,
        stamp=stamp,
        agent_id=event.agent_id or "",
        company_id=event.company_id or "",
        qr_code=event.qr_code or "",
        status=event.status or "",
        agent_name=event.agent_name or "",
        phone_number=event.phone_number or "",
        host_name=event.host_name or "",
        version=event.version or "",
    )


def incoming(event: models.MessageUpsert, stamp: EventStamp) -> Incoming | None:
    """What is onboarded of an incoming message with a phone, from a person or group; None for all others."""
    if event.flow != "IN":
        return None
    jid = event.jid or ""
    phone = sender_phone(event.from_phone or "", jid, event, event.key)
    if not phone or is_to_many(jid):
        return None
    campaign, attribution = event.campaign, None
    if campaign is not None and campaign.is_campaign:
        attribution = CampaignAttribution(
            campaign.tags or "", campaign.assigned_to or "", campaign.origin or ""
        )
    return Incoming(
        event.agent_id or "",
        clean_phone(phone),
        event.message_id or "",
        checked(event.message_timestamp),
        event.chat_id or "",
        jid,
        attribution,
        stamp,
    )


def key_text(key: Key) -> str:
    """Exactly `id`, `fromMe` and `remoteJid`, as JSON text."""
    from_me = "true" if key.fromMe or key.from_me else "false"
    remote_jid = _quoted(key.remoteJid or key.remote_jid or "")
    return f'{{"id":{_quoted(key.id or "")},"fromMe":{from_me},"remoteJid":{remote_jid}}}'


def message_date(sent_at: int, stored_ns: int) -> datetime.date:
    """The UTC day of a message: its own, or that of its store time when its own cannot be."""
    day = sent_at // SECONDS_A_DAY
    if sent_at <= 0 or day > _LAST_DAY:
        day = stored_ns // (SECONDS_A_DAY * 1_000_000_000)
    return _date(day)


@lru_cache(maxsize=4096)
def _date(day: int) -> datetime.date:
    return _EPOCH + datetime.timedelta(days=day)
