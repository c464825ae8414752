"""From a delivery to a checked event and the writes it asks for."""

from __future__ import annotations

import datetime
import json
import logging
import time
from collections.abc import Iterator
from typing import Final

from agents import rows
from agents.received_event import EventMetadata, PendingWrite, ReceivedEvent
from agents.retry_policy import RetryPolicy, is_poison
from events import envelope, models
from events.delivery import Delivery, MessageMetadata, message_id
from events.envelope import Envelope
from events.errors import EventError, MaxDeliveriesExceeded, UnexpectedError, UnknownSubject
from events.subjects import Tenant, event_type
from tables.last_writer_wins import EventStamp, Version, parse
from tables.mutations import PostScanRequest

logger = logging.getLogger(__name__)

UNKNOWN: Final = "unknown"
_quoted: Final = json.encoder.encode_basestring


def receive(tenant: Tenant, delivery: Delivery, policy: RetryPolicy, processed_at: str) -> ReceivedEvent:
    """The event of a delivery, not decoded yet. It has an error if its subject is unknown, or if it is poison."""
    position = delivery.metadata
    kind = event_type(delivery.subject)
    received = ReceivedEvent(
        tenant,
        delivery,
        EventMetadata(
            event_type=kind or UNKNOWN,
            last_metadata=last_metadata(position, message_id(delivery), delivery.subject, processed_at),
            stored_ns=position.stored_ns,
            sequence=position.stream_sequence,
            version=Version(position.stored_ns, position.stream_sequence, position.incarnation),
        ),
    )
    if kind is None or delivery.subject != tenant.subject(kind):
        received.error = UnknownSubject()
    elif is_poison(position.num_delivered, policy):
        received.error = MaxDeliveriesExceeded()
    return received


def replayed(tenant: Tenant, delivery: Delivery, letter: Envelope) -> ReceivedEvent:
    """The event of a dead letter, not decoded yet: its own version and subject, the dead letter's position."""
    position = delivery.metadata
    version = parse(letter.event_version)
    name = (delivery.headers or {}).get("Original-Nats-Msg-Id") or message_id(delivery)
    return ReceivedEvent(
        tenant,
        delivery,
        EventMetadata(
            event_type=event_type(letter.source_subject) or "",
            last_metadata=last_metadata(position, name, letter.source_subject, envelope.now()),
            stored_ns=version.ns if version else position.stored_ns,
            sequence=version.sequence if version else position.stream_sequence,
            version=version,
        ),
    )


def decode(received: ReceivedEvent, body: bytes, refs: Iterator[int], items: int | None = None) -> bool:
    """Decode and check the payload, and add the writes it asks for; an event with an error is left as it is.

    `refs` numbers the mutations of a batch. At most `items` items of a history batch are decoded; returns whether none
    are left. What is wrong with the event becomes its error.
    """
    if received.error is not None:
        return True
    started = time.perf_counter()
    over = _decode(received, body, refs, items)
    received.routing_seconds += time.perf_counter() - started
    return over


def _decode(received: ReceivedEvent, body: bytes, refs: Iterator[int], items: int | None) -> bool:
    metadata = received.metadata
    try:
        if received.payload is None:
            received.payload = models.begin(metadata.event_type, body, received.tenant.company)
        payload = received.payload
        if isinstance(payload, models.History):
            received.writes += _history(payload, metadata, refs, items)
            return payload.unpacked
        stamp = EventStamp(metadata.version, metadata.last_metadata)
        received.writes = [PendingWrite(rows.mutation(next(refs), payload, stamp, metadata.stored_ns))]
    except EventError as error:
        received.fail(error.kept())
    except Exception as error:
        logger.exception("unexpected exception while decoding an event")
        received.fail(UnexpectedError(f"unexpected {type(error).__name__} while decoding"))
    return True


def _history(
    history: models.History, metadata: EventMetadata, refs: Iterator[int], count: int | None
) -> Iterator[PendingWrite]:
    start = len(history.items)
    for index, item in enumerate(history.unpack(count), start):
        if not isinstance(item.event, EventError):
            stamp = EventStamp(_item_version(item.event, metadata), metadata.last_metadata, history=True)
            yield PendingWrite(rows.mutation(next(refs), item.event, stamp, metadata.stored_ns), index)
    if history.unpacked and history.is_last_batch and history.agent_id:
        stored = datetime.datetime.fromtimestamp(metadata.stored_ns / 1e9, datetime.UTC)
        request = PostScanRequest(next(refs), history.agent_id, stored, metadata.last_metadata)
        yield PendingWrite(request, len(history.items))


def _item_version(event: models.Event, metadata: EventMetadata) -> Version:
    """The version of a history item: its own time, at most the store time; the batch's sequence breaks ties."""
    match event:
        case models.MessageUpsert():
            seconds = event.sent_at
        case models.ChatUpsert():
            seconds = event.talked_at
        case _:
            seconds = 0
    return Version(max(0, min(seconds * 1_000_000_000, metadata.stored_ns)), metadata.sequence)


def last_metadata(position: MessageMetadata, name: str, subject: str, processed_at: str) -> str:
    """The column `last_metadata` without versions, as JSON text; `name` is the message's id."""
    return (
        f'{{"stream":{_quoted(position.stream)},"consumer":{_quoted(position.consumer)}'
        f',"stream_sequence":{position.stream_sequence},"consumer_sequence":{position.consumer_sequence}'
        f',"domain":{_quoted(position.domain)},"message_id":{_quoted(name)}'
        f',"message_subject":{_quoted(subject)},"processed_at":"{processed_at}"}}'
    )
