"""One delivery on its way through the routing agent, and the rows it asks for."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from agents import accounts, chats, contacts, messages
from events import models
from events.delivery import Delivery, MessageMetadata
from events.errors import EventError, UnexpectedError
from events.subjects import Tenant
from tables.last_writer_wins import EventStamp, Version
from tables.mutations import Mutation, PostScanRequest

logger = logging.getLogger(__name__)

_quoted: Final = json.encoder.encode_basestring
# Errors of single items that one text names: a batch may have a few hundred thousand of them.
NAMED: Final = 1000


@dataclass(frozen=True, slots=True)
class EventMetadata:
    """What a row remembers of its event, whether it came live or out of a dead letter."""

    event_type: str
    metadata: str
    stored_ns: int
    sequence: int
    version: Version | None  # None: an envelope of the existing service, which has no version


@dataclass(slots=True, eq=False)
class PendingWrite:
    """What is stored or refused as one: a real-time event, or one item of a history batch."""

    change: Mutation
    index: int = 0
    error: EventError | None = None


@dataclass(slots=True, eq=False)
class ReceivedEvent:
    """One delivery: its event, the units it is made of, and what became of it."""

    tenant: Tenant
    delivery: Delivery
    source: EventMetadata
    event: models.Event | models.History | None = None
    units: list[PendingWrite] = field(default_factory=list)
    error: EventError | None = None
    routing_seconds: float = 0.0

    @property
    def incoming(self) -> models.MessageUpsert | None:
        """The real-time message in it, if it is one."""
        return self.event if isinstance(self.event, models.MessageUpsert) else None

    def conclude(self) -> EventError | None:
        """Fold the units' outcomes into one error: None when everything is stored."""
        if self.error is None:
            failures = sorted(self.failures(), key=itemgetter(0))
            if failures:
                self.error = self._combined(failures)
        return self.error

    def fail(self, error: EventError) -> None:
        """Give it up as a whole: nothing of it is stored, and its dead letter carries all of it."""
        self.error = error
        self.release()

    def release(self) -> None:
        """Forget what was made of the body: thousands may wait for onboarding, and a dead letter has the body."""
        self.event = None
        self.units = []

    def forget(self, count: int) -> bool:
        """Forget up to so many units and items of a history batch that is settled; returns whether none are left."""
        items = self.event.items if isinstance(self.event, models.History) else []
        del self.units[-count:], items[-count:]
        return not self.units and not items

    def failures(self) -> Iterator[tuple[int, EventError]]:
        """Index and error of each item that is not stored."""
        if isinstance(self.event, models.History):
            for index, item in enumerate(self.event.items):
                if isinstance(item.event, EventError):
                    yield index, item.event
        for unit in self.units:
            if unit.error is not None:
                yield unit.index, unit.error

    def _combined(self, failures: list[tuple[int, EventError]]) -> EventError:
        if not isinstance(self.event, models.History):
            return failures[0][1]
        # One that may pass keeps the whole remainder in line: its items are stored again harmlessly.
        chosen = next((error for _, error in failures if error.retryable), failures[0][1])
        named = [f"{self.event.field}[{index}]: {_bare(error)}" for index, error in failures[:NAMED]]
        if len(failures) > NAMED:
            named.append(f"and {len(failures) - NAMED} more")
        return type(chosen)("; ".join(named))


def _bare(error: EventError) -> str:
    return str(error).partition(": ")[2]


def plan(work: ReceivedEvent, body: bytes, refs: Iterator[int]) -> ReceivedEvent:
    """Decode and check the event of `work`, and lay out the rows it asks for; its own errors go into it.

    `refs` numbers the rows, over all the works that are stored together.
    """
    advance(work, body, refs)
    return work


def advance(work: ReceivedEvent, body: bytes, refs: Iterator[int], items: int | None = None) -> bool:
    """What `plan` does, but at most so many items of a history batch; returns whether none are left."""
    try:
        if work.event is None:
            work.event = models.begin(work.source.event_type, body, work.tenant.company)
        event = work.event
        if isinstance(event, models.History):
            work.units += _history(event, work.source, refs, items)
            return event.unpacked
        stamp = EventStamp(work.source.version, work.source.metadata)
        work.units = [PendingWrite(change(next(refs), event, stamp, work.source.stored_ns))]
    except EventError as error:
        work.fail(error.kept())
    except Exception as error:
        logger.exception("unexpected exception while decoding an event")
        work.fail(UnexpectedError(f"unexpected {type(error).__name__} while decoding"))
    return True


def change(ref: int, event: models.Event, stamp: EventStamp, stored_ns: int) -> Mutation:
    """The row or patch for one event."""
    match event:
        case models.MessageUpsert():
            return messages.row(ref, event, stamp, stored_ns)
        case models.MessageUpdate():
            return messages.patch(ref, event, stamp)
        case models.ChatUpsert():
            return chats.row(ref, event, stamp)
        case models.ChatUpdate():
            return chats.patch(ref, event, stamp)
        case models.ContactUpsert():
            return contacts.row(ref, event, stamp)
        case models.ContactUpdate():
            return contacts.patch(ref, event, stamp)
        case models.ConnectionUpdate():
            return accounts.row(ref, event, stamp)


def _history(
    history: models.History, source: EventMetadata, refs: Iterator[int], count: int | None
) -> Iterator[PendingWrite]:
    start = len(history.items)
    for index, item in enumerate(history.unpack(count), start):
        if not isinstance(item.event, EventError):
            stamp = EventStamp(_item_version(item.event, source), source.metadata, history=True)
            yield PendingWrite(change(next(refs), item.event, stamp, source.stored_ns), index)
    if history.unpacked and history.is_last_batch and history.agent_id:
        stored = datetime.datetime.fromtimestamp(source.stored_ns / 1e9, datetime.UTC)
        yield PendingWrite(
            PostScanRequest(next(refs), history.agent_id, stored, source.metadata), len(history.items)
        )


def _item_version(event: models.Event, source: EventMetadata) -> Version:
    """A history item's own time, at most its store time (design 5); the batch's sequence breaks ties."""
    match event:
        case models.MessageUpsert():
            seconds = event.sent_at
        case models.ChatUpsert():
            seconds = event.talked_at
        case _:
            seconds = 0
    return Version(max(0, min(seconds * 1_000_000_000, source.stored_ns)), source.sequence)


def metadata(origin: MessageMetadata, message_id: str, subject: str, processed_at: str) -> str:
    """`last_metadata` of contract 3.1 as JSON text."""
    return (
        f'{{"stream":{_quoted(origin.stream)},"consumer":{_quoted(origin.consumer)}'
        f',"stream_sequence":{origin.stream_sequence},"consumer_sequence":{origin.consumer_sequence}'
        f',"domain":{_quoted(origin.domain)},"message_id":{_quoted(message_id)}'
        f',"message_subject":{_quoted(subject)},"processed_at":"{processed_at}"}}'
    )


def remainder(work: ReceivedEvent) -> bytes:
    """The payload of the dead letter: the event as it came, or the history batch with only its bad items (B1)."""
    if not isinstance(work.event, models.History):
        return work.delivery.data
    history = work.event
    bad = sorted(index for index, _ in work.failures())
    items = b",".join(history.items[index].raw for index in bad if index < len(history.items))
    body = b'{"%s":[%s]' % (history.field.encode(), items)
    if len(history.items) in bad:  # the post-scan request itself was not stored
        body += b',"is_last_batch":true,"agent_id":' + json.dumps(history.agent_id).encode()
    return body + b"}"
