"""Writes decoded events to the tables of their company; each write that fails gets its error."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from agents.batch_writer import BatchWriter, WhileWaiting
from agents.history_throttle import HistoryThrottle
from agents.received_event import ReceivedEvent
from events.errors import (
    DatabaseError,
    EventError,
    Invalid,
    NotFound,
    Rejected,
    TimedOut,
    UnexpectedError,
)
from events.subjects import Tenant
from tables.errors import DataError, QueryTimeout, StorageError
from tables.mutation_writer import table_of
from tables.mutations import (
    Mutation,
    PostScanRequest,
    WriteRejection,
)
from tables.tenant import TenantTables
from tables.write_probe import kind_of

logger = logging.getLogger(__name__)

# A few milliseconds of writing history, before others have their time slice.
ROWS_A_SLICE: Final = 25


class EventWriter:
    """Writes events of one company together; history in time slices, when real-time events leave it time."""

    def __init__(
        self, *, tables: Callable[[Tenant], TenantTables], writer: BatchWriter, throttle: HistoryThrottle
    ) -> None:
        self._tables = tables
        self._writer = writer
        self._throttle = throttle

    async def write(
        self,
        events: Sequence[ReceivedEvent],
        *,
        history: bool,
        replayed: bool = False,
        while_waiting: WhileWaiting = nullcontext,
    ) -> None:
        """Return when each event is stored or has its error; an outage is waited out.

        `while_waiting()` is entered for each wait.
        """
        if not events:
            return
        writes = [write for event in events for write in event.writes]
        tenant = events[0].tenant
        sink = EventSink(tenant.company, self._tables(tenant), history=history, replayed=replayed)
        try:
            if history:
                await self._write_in_slices(writes, sink, while_waiting)
            else:
                with self._throttle.realtime():
                    await self._writer.store(writes, sink, while_waiting=partial(self._paused, while_waiting))
        except Exception as error:
            logger.exception("unexpected exception while storing a batch")
            unexpected = UnexpectedError(f"unexpected {type(error).__name__} while storing")
            for write in writes:
                sink.errors.setdefault(write.ref, unexpected)
        for event in events:
            event.conclude(sink.errors)

    @asynccontextmanager
    async def _paused(self, while_waiting: WhileWaiting) -> AsyncIterator[None]:
        async with while_waiting():
            with self._throttle.paused():
                yield

    async def _write_in_slices(
        self, writes: Sequence[Mutation], sink: EventSink, while_waiting: WhileWaiting
    ) -> None:
        start = 0
        while start < len(writes):
            async with self._throttle.time_slice():
                # All at once is a third faster, but others would wait for the commit.
                end = len(writes) if self._throttle.idle else start + ROWS_A_SLICE
                await self._writer.store(writes[start:end], sink, while_waiting=while_waiting)
            start = end


@dataclass(frozen=True, slots=True)
class EventSink:
    """A `Sink` for the writes of events; `errors` are those of the writes that are not stored, by `ref`.

    `history` marks an import. A replayed event was blamed before: it does not count for the circuit breaker.
    """

    company: str
    tables: TenantTables
    history: bool = False
    replayed: bool = False
    errors: dict[int, EventError] = field(default_factory=dict)

    async def write(self, items: Sequence[Mutation]) -> bool:
        """Write the mutations; whether any was taken. Raises `StorageError`."""
        rejections = await self.tables.write(items, bulk=self.history)
        if rejections:
            self._reject(items, rejections)
        return len(rejections) < len(items)

    async def probe(self, item: Mutation) -> None:
        """Store a test row in the table of this write. Raises `StorageError`."""
        await self.tables.probe.store(item, self.company)

    def kind(self, item: Mutation) -> Hashable:
        """Its table."""
        return kind_of(item)

    def event(self, item: Mutation) -> Hashable:
        """Stream and sequence of its event: all items of a history batch are of one, and so are its redeliveries."""
        if self.replayed:
            return None
        return event_of(item.metadata if isinstance(item, PostScanRequest) else item.stamp.metadata)

    def blame(self, item: Mutation, error: Exception) -> None:
        """Give the write its error."""
        self.errors[item.ref] = event_error(error)

    def _reject(self, items: Sequence[Mutation], rejections: Sequence[WriteRejection]) -> None:
        by_ref = {item.ref: item for item in items}
        for rejection in rejections:
            self.errors[rejection.ref] = (
                NotFound(f"{table_of(by_ref[rejection.ref]).removesuffix('s')} to update not found")
                if rejection.reason == "not_found"
                else Invalid("validation failed: company_id is not the company of the stored row")
            )


def event_of(metadata: str) -> Hashable:
    """Stream and sequence of the event behind a `last_metadata`."""
    members = json.loads(metadata)
    return members.get("stream"), members.get("stream_sequence")


def event_error(error: Exception) -> EventError:
    """The outcome of an event that is to blame for `error`."""
    if isinstance(error, DataError):
        return Rejected(f"database: {error}")
    if isinstance(error, QueryTimeout):
        return TimedOut(f"database: {error}")
    if isinstance(error, StorageError):
        return DatabaseError(f"database: {error}")
    logger.error("unexpected exception while storing an event", exc_info=error)
    return UnexpectedError(f"unexpected {type(error).__name__} while storing")
