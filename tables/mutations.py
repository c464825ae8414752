"""What the tables are asked to write: one type for each kind of event; and the answer when no row takes it."""

from __future__ import annotations

import datetime
from typing import Literal, NamedTuple

from tables.last_writer_wins import EventStamp


class MessageRow(NamedTuple):
    """One `messages.upsert` or an item of a history batch: texts `""` when absent, objects as JSON text.

    In each mutation `ref` is the caller's name for it, which comes back in a `WriteRejection`, `stamp` the event behind
    it, and every other field a column.
    """

    ref: int
    stamp: EventStamp
    message_id: str
    from_phone: str
    to_phone: str
    chat_id: str
    jid: str
    flow: str
    message_text: str
    message_url: str
    message_type: str
    agent_id: str
    company_id: str
    message_obj: str | None
    key: str | None
    status: str
    message_timestamp: int
    message_date: datetime.date


class MessagePatch(NamedTuple):
    """One `messages.update`: `""` and None leave a column as it is."""

    ref: int
    stamp: EventStamp
    message_id: str
    company_id: str
    status: str
    edited_message_obj: str | None
    is_deleted: bool | None
    message_url: str


class ChatRow(NamedTuple):
    """One `chats.upsert` or an item of a history batch: texts `""` when absent, objects as JSON text.

    `unread_count` is always a value, 0 too.
    """

    ref: int
    stamp: EventStamp
    chat_id: str
    jid: str
    company_id: str
    agent_id: str
    phone_number: str
    push_name: str
    is_group: bool
    group_name: str
    last_message: str | None
    conversation_timestamp: int
    unread_count: int
    not_spam: bool


class ChatPatch(NamedTuple):
    """One `chats.update`; None leaves a column as it is.

    `is_step` counts one unread message more, instead of setting `unread_count`, which is None then.
    """

    ref: int
    stamp: EventStamp
    chat_id: str
    company_id: str
    is_step: bool
    unread_count: int | None
    conversation_timestamp: int
    last_message: str | None


class ContactRow(NamedTuple):
    """One `contacts.upsert` or an item of a history batch; an empty name leaves the name."""

    ref: int
    stamp: EventStamp
    chat_id: str
    phone_number: str
    company_id: str
    agent_id: str
    push_name: str


class ContactPatch(NamedTuple):
    """One `contacts.update`; an empty name leaves the name."""

    ref: int
    stamp: EventStamp
    phone_number: str
    company_id: str
    agent_id: str
    push_name: str


class AccountRow(NamedTuple):
    """One `connection.update`; `""` leaves what is stored."""

    ref: int
    stamp: EventStamp
    agent_id: str
    company_id: str
    qr_code: str
    status: str
    agent_name: str
    phone_number: str
    host_name: str
    version: str


class PostScanRequest(NamedTuple):
    """A last history batch: look at this account's contacts again later. `stored_at` is the batch's JetStream time."""

    ref: int
    agent_id: str
    stored_at: datetime.datetime
    metadata: str


class WriteRejection(NamedTuple):
    """A mutation that no row takes, by its `ref`.

    `not_found`: the row to update is not there; `company`: the stored row is another company's.
    """

    ref: int
    reason: Literal["not_found", "company"]


MessageMutation = MessageRow | MessagePatch
ChatMutation = ChatRow | ChatPatch
ContactMutation = ContactRow | ContactPatch
Mutation = MessageMutation | ChatMutation | ContactMutation | AccountRow | PostScanRequest
