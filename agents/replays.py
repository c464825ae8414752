"""What a dead letter says of its event: where it came from, whose it is, and the row if it is given up for good."""

from __future__ import annotations

import datetime
from contextlib import suppress

from agents import retry_policy
from agents.dead_letter import message_id
from agents.received_event import EventMetadata, metadata
from agents.routing import UnknownSubject
from events import envelope
from events.delivery import Delivery
from events.envelope import Envelope
from events.errors import EventError, Invalid
from events.fields import INT32_MAX
from events.subjects import Tenant, event_type
from tables.exhausted import ExhaustedRow
from tables.last_writer_wins import parse


def replayed(delivery: Delivery, letter: Envelope) -> EventMetadata:
    """The source of a replayed event: its own version and subject, the dead letter's stream (contract B9)."""
    origin = delivery.metadata
    version = parse(letter.event_version)
    original_id = (delivery.headers or {}).get("Original-Nats-Msg-Id")
    name = original_id or message_id(delivery.headers, origin.stream_sequence)
    return EventMetadata(
        event_type=event_type(letter.source_subject) or "",
        metadata=metadata(origin, name, letter.source_subject, envelope.now()),
        stored_ns=version.ns if version else origin.stored_ns,
        sequence=version.sequence if version else origin.stream_sequence,
        version=version,
    )


def stranger(tenant: Tenant, letter: Envelope) -> EventError | None:
    """Why a dead letter is never replayed: it is another company's, or of no known event type (contract 4.3).

    The existing service wrote full subjects; a bare base subject names no company, and counts as ours.
    """
    if letter.company not in ("", tenant.company):
        return Invalid("validation failed: company is not the company of the dead-letter subject")
    kind = event_type(letter.source_subject)
    if kind is None:
        return UnknownSubject("source_subject is unknown")
    if letter.source_subject not in (kind, tenant.subject(kind)):
        return Invalid("validation failed: source_subject is not of the company of the dead-letter subject")
    return None


def unreadable(delivery: Delivery) -> Envelope:
    """What can be said of a dead letter that is no envelope (contract 4.4)."""
    return Envelope(
        source_subject=delivery.subject,
        company="",
        original_payload=None,
        error="",
        error_type="",
        retry_count=0,
        max_retry=0,
        ts=None,
        event_version=None,
    )


def exhausted_row(tenant: Tenant, delivery: Delivery, letter: Envelope, error: EventError) -> ExhaustedRow:
    """The row of contract 4.4."""
    payload, _ = envelope.embed(delivery.data)
    return ExhaustedRow(
        company_id=letter.company or tenant.company,
        source_subject=letter.source_subject or delivery.subject,
        last_error=str(error),
        retry_count=min(
            max(0, retry_policy.total_attempts(letter.retry_count, delivery.metadata.num_delivered)),
            INT32_MAX,
        ),
        event_timestamp=_moment(letter.ts),
        dlq_payload=payload.decode(),
        original_payload=None if letter.original_payload is None else letter.original_payload.decode(),
    )


def _moment(text: str | None) -> datetime.datetime | None:
    with suppress(ValueError, OverflowError):
        moment = datetime.datetime.fromisoformat(text or "")
        return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)
    return None
