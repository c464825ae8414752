"""What is published, or stored in `exhausted_events`, of an event that failed: fixed once, before the first attempt."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from agents.received_event import ReceivedEvent
from agents.retry_policy import envelope_retry_count
from events import envelope
from events.delivery import message_id
from events.errors import EventError
from events.history import History
from tables.exhausted import ExhaustedRow

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter. It owns all that it carries, so its event may be released while it waits.

    Each attempt publishes the same bytes under the same `Nats-Msg-Id`: a repeat is no second dead letter.
    """

    company: str
    event_type: str
    subject: str
    headers: Mapping[str, str]
    envelope: envelope.Envelope
    stored_at: datetime.datetime  # JetStream's store time of the event
    log_fields: Mapping[str, str | int]

    @classmethod
    def of(cls, received: ReceivedEvent, error: EventError, base_subject: str) -> DeadLetter:
        """The dead letter of an event whose outcome is known, and which is not released yet."""
        payload, encoding = envelope.embed(_payload(received))
        position = received.delivery.metadata
        return cls(
            company=received.tenant.company,
            event_type=received.event_type,
            subject=received.tenant.subject(base_subject),
            headers=_headers(received),
            envelope=envelope.Envelope(
                source_subject=received.delivery.subject,
                company=received.tenant.company,
                original_payload=msgspec.Raw(payload),
                original_payload_encoding=encoding,
                error=str(error),
                error_type=error.error_type,
                retry_count=envelope_retry_count(error, position.num_delivered),
                max_retry=received.policy.max_deliver,
                ts=envelope.now(),
                event_version=str(received.stamp.version),
            ),
            stored_at=datetime.datetime.fromtimestamp(position.stored_ns / 1e9, datetime.UTC),
            log_fields=received.log_fields,
        )

    @property
    def size(self) -> int:
        """Bytes of the payload that it keeps in memory."""
        return len(self.envelope.original_payload)

    @property
    def body(self) -> bytes:
        """What is published. Encoded for each attempt: dead letters that wait would take twice the memory."""
        return envelope.encode(self.envelope)

    @property
    def row(self) -> ExhaustedRow:
        """The row for a dead letter that no stream takes."""
        # The event's own time, not the present: a repeat after a crash must make the same row.
        wire = msgspec.structs.replace(self.envelope, ts=envelope.written(self.stored_at))
        return ExhaustedRow(
            company_id=self.company,
            source_subject=wire.source_subject or "",
            last_error=wire.error or "",
            retry_count=wire.retry_count or 0,
            event_timestamp=self.stored_at,
            dlq_payload=envelope.encode(wire).decode(),
            original_payload=bytes(wire.original_payload).decode(),
        )


def remaining_payload(received: ReceivedEvent) -> bytes:
    """The payload of the dead letter: the event as it came, or the history batch with only the items that failed."""
    history = received.payload
    if not isinstance(history, History):
        return received.delivery.data
    failed = [index for index, _ in received.failures]
    items = b",".join(history.items[index].raw for index in failed if index < len(history.items))
    body = b'{"%s":[%s]' % (history.field.encode(), items)
    if len(history.items) in failed:  # the post-scan request itself was not stored
        body += b',"is_last_batch":true,"agent_id":' + json.dumps(history.agent_id).encode()
    return body + b"}"


def _payload(received: ReceivedEvent) -> bytes:
    try:
        return remaining_payload(received)
    except Exception:
        # All items of a history batch instead of the failed ones: a stored one is stored again without effect.
        logger.exception("unexpected exception with a dead letter's payload; it carries the whole event")
        return received.delivery.data


def _headers(received: ReceivedEvent) -> dict[str, str]:
    position = received.delivery.metadata
    return {
        # Store time as well: a stream that is made anew starts again at sequence 1.
        "Nats-Msg-Id": f"{position.stream}-{position.stream_sequence}-{position.stored_ns}",
        "Original-Nats-Msg-Id": message_id(received.delivery),
    }
