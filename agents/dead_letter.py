"""What is published, or kept in `exhausted_events`, of an event that was given up: fixed once, before any try."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from agents.received_event import ReceivedEvent, remainder
from agents.retry_policy import RetryPolicy, envelope_retry_count
from events import envelope
from events.errors import EventError
from tables.exhausted import ExhaustedRow

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter. It owns all that it carries, so its event may be released while it waits.

    Each try publishes the same bytes under the same `Nats-Msg-Id`: a repeat is no second letter.
    """

    company: str
    subject: str
    headers: Mapping[str, str]
    envelope: envelope.Envelope
    stored_at: datetime.datetime  # JetStream's store time of the event

    @classmethod
    def of(cls, work: ReceivedEvent, error: EventError, base_subject: str, limits: RetryPolicy) -> DeadLetter:
        """The letter of an event whose outcome is known, and which is not released yet."""
        payload, encoding = envelope.embed(_payload(work))
        return cls(
            company=work.tenant.company,
            subject=work.tenant.subject(base_subject),
            headers=_headers(work),
            envelope=envelope.Envelope(
                source_subject=work.delivery.subject,
                company=work.tenant.company,
                original_payload=payload,
                original_payload_encoding=encoding,
                error=str(error),
                error_type=error.error_type,
                retry_count=envelope_retry_count(error, work.delivery.metadata.num_delivered),
                max_retry=limits.max_deliver,
                ts=envelope.now(),
                event_version=None if work.source.version is None else str(work.source.version),
            ),
            stored_at=datetime.datetime.fromtimestamp(work.source.stored_ns / 1e9, datetime.UTC),
        )

    @property
    def size(self) -> int:
        """Bytes of the payload that it keeps in memory."""
        return len(self.envelope.original_payload or b"")

    @property
    def body(self) -> bytes:
        """What is published. Made for each try: the letters that wait would take twice the memory."""
        return envelope.encode(self.envelope)

    @property
    def row(self) -> ExhaustedRow:
        """The row for a letter that no stream takes."""
        # The event's own time, not the present: a repeat after a crash must make the same row.
        letter = replace(self.envelope, ts=envelope.written(self.stored_at))
        return ExhaustedRow(
            company_id=self.company,
            source_subject=letter.source_subject,
            last_error=letter.error,
            retry_count=letter.retry_count,
            event_timestamp=self.stored_at,
            dlq_payload=envelope.encode(letter).decode(),
            original_payload=(letter.original_payload or envelope.NULL).decode(),
        )


def message_id(headers: Mapping[str, str] | None, sequence: int) -> str:
    """The publisher's `Nats-Msg-Id`, else `msg-<stream sequence>`; always storable text."""
    name = (headers or {}).get("Nats-Msg-Id") or f"msg-{sequence}"
    return str(name).replace("\0", "").encode(errors="replace").decode()


def _payload(work: ReceivedEvent) -> bytes:
    try:
        return remainder(work)
    except Exception:
        # All items of a history batch instead of the bad ones: those that are stored are stored again harmlessly.
        logger.exception("unexpected exception with a dead letter's payload; it carries the whole event")
        return work.delivery.data


def _headers(work: ReceivedEvent) -> dict[str, str]:
    origin = work.delivery.metadata
    return {
        # Store time as well: a stream that is made anew starts again at sequence 1.
        "Nats-Msg-Id": f"{origin.stream}-{origin.stream_sequence}-{origin.stored_ns}",
        "Original-Nats-Msg-Id": message_id(work.delivery.headers, origin.stream_sequence),
    }
