"""From a delivery to a checked event and the writes it asks for."""

from __future__ import annotations

import datetime
import json
import logging
import time
from collections.abc import Iterator
from typing import Final

from agents import rows
from agents.received_event import ReceivedEvent
from agents.retry_policy import RetryPolicy, is_poison
from events import envelope, models, payloads
from events.delivery import Delivery, MessageMetadata, message_id
from events.envelope import Envelope
from events.errors import EventError, MaxDeliveriesExceeded, UnexpectedError, UnknownSubject
from events.fields import checked
from events.history import History
from events.subjects import Tenant, event_type
from tables.last_writer_wins import EventStamp, Version, parse
from tables.mutations import Mutation, PostScanRequest

logger = logging.getLogger(__name__)

UNKNOWN: Final = "unknown"
_quoted: Final = json.encoder.encode_basestring


def receive(tenant: Tenant, delivery: Delivery, policy: RetryPolicy, processed_at: str) -> ReceivedEvent:
    """The event of a delivery, not decoded yet. It has an error if its subject is unknown, or if it is poison."""
    position = delivery.metadata
    kind = event_type(delivery.subject)
    stamp = EventStamp(
        _version(position),
        last_metadata(position, message_id(delivery), delivery.subject, processed_at),
    )
    received = ReceivedEvent(tenant, delivery, policy, kind or UNKNOWN, stamp)
    if kind is None or delivery.subject != tenant.subject(kind):
        received.error = UnknownSubject()
    elif is_poison(position.num_delivered, policy):
        received.error = MaxDeliveriesExceeded()
    return received


def replayed(tenant: Tenant, delivery: Delivery, policy: RetryPolicy, dead_letter: Envelope) -> ReceivedEvent:
    """The event of a dead letter, not decoded yet: its own version and subject, the dead letter's position."""
    name = (delivery.headers or {}).get("Original-Nats-Msg-Id") or message_id(delivery)
    subject = dead_letter.source_subject or ""
    metadata = last_metadata(delivery.metadata, name, subject, envelope.now())
    stamp = EventStamp(parse(dead_letter.event_version), metadata)
    return ReceivedEvent(tenant, delivery, policy, event_type(subject) or UNKNOWN, stamp)


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
    stamp = received.stamp
    try:
        if received.payload is None:
            received.payload = payloads.decode(received.event_type, body, received.tenant.company)
        payload = received.payload
        place = stamp.version or _version(received.delivery.metadata)
        if isinstance(payload, History):
            received.writes += _history(payload, place, stamp.metadata, refs, items)
            return payload.unpacked
        received.writes = [rows.mutation(next(refs), payload, stamp, place.ns)]
        if isinstance(payload, models.MessageUpsert):
            received.incoming = rows.incoming(payload, stamp)
    except EventError as error:
        received.fail(error.kept())
    except Exception as error:
        logger.exception("unexpected exception while decoding an event")
        received.fail(UnexpectedError(f"unexpected {type(error).__name__} while decoding"))
    return True


def _history(
    history: History, place: Version, metadata: str, refs: Iterator[int], count: int | None
) -> Iterator[Mutation]:
    for item in history.unpack(count):
        if not isinstance(item.event, EventError):
            stamp = EventStamp(_item_version(item.event, place), metadata, history=True)
            yield rows.mutation(next(refs), item.event, stamp, place.ns)
    if history.unpacked and history.is_last_batch and history.agent_id:
        stored = datetime.datetime.fromtimestamp(place.ns / 1e9, datetime.UTC)
        yield PostScanRequest(next(refs), history.agent_id, stored, metadata)


def _version(position: MessageMetadata) -> Version:
    return Version(position.stored_ns, position.stream_sequence, position.incarnation)


def _item_version(event: models.Event, batch: Version) -> Version:
    """The version of a history item: its own time, at most the store time; the batch's sequence breaks ties."""
    match event:
        case models.MessageUpsert():
            seconds = checked(event.message_timestamp)
        case models.ChatUpsert():
            seconds = checked(event.conversation_timestamp)
        case _:
            seconds = 0
    return Version(max(0, min(seconds * 1_000_000_000, batch.ns)), batch.sequence)


def last_metadata(position: MessageMetadata, name: str, subject: str, processed_at: str) -> str:
    """The column `last_metadata` without versions, as JSON text; `name` is the message's id."""
    return (
        f'{{"stream":{_quoted(position.stream)},"consumer":{_quoted(position.consumer)}'
        f',"stream_sequence":{position.stream_sequence},"consumer_sequence":{position.consumer_sequence}'
        f',"domain":{_quoted(position.domain)},"message_id":{_quoted(name)}'
        f',"message_subject":{_quoted(subject)},"processed_at":"{processed_at}"}}'
    )
