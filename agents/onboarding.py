"""The onboarding agent: the first contact of a phone number, as a second stage of a routing batch.

The senders of a batch are stored in one transaction by a `BatchWriter`, as in the routing: an outage is waited out, a
refused batch is bisected.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from agents.batch_writer import BatchWriter
from agents.event_writer import event_error, event_of
from agents.meter import Meter
from agents.onboarding_queue import TASK_BYTES, KnownPairs, TaskQueue, nothing_new
from agents.received_event import ReceivedEvent
from agents.settlement import Settlement
from agents.slots import Slot
from events.errors import EventError
from events.subjects import Tenant
from tables.attribution import Incoming
from tables.errors import StorageError
from tables.tenant import TenantTables
from tables.write_probe import kind_of

logger = logging.getLogger(__name__)

POOL_SIZE: Final = 10
QUEUE_SIZE: Final = 10_000
MAX_BLOCK: Final = 1.0

Status = Literal["success_created", "success_exists", "error_db", "error_other"]


class Onboarding:
    """Takes stored messages from the routing, some batches at a time, and settles their events when they are done.

    `submit` sends those of one routing batch through a channel; a replayed dead letter waits for its place by itself.
    """

    def __init__(
        self,
        *,
        tables: Callable[[Tenant], TenantTables],
        writer: BatchWriter,
        settlement: Settlement,
        meter: Meter,
        send: Callable[[Sequence[ReceivedEvent]], Awaitable[None]],
        pool_size: int = POOL_SIZE,
        queue_size: int = QUEUE_SIZE,
        max_block: float = MAX_BLOCK,
    ) -> None:
        """`send` puts events on the agent's channel; `queue_size` counts them, `max_block` is in seconds."""
        self._tables = tables
        self._writer = writer
        self._settlement = settlement
        self._meter = meter
        self._send = send
        self._known = KnownPairs()
        self._queue = TaskQueue(queue_size, max_block)
        self._slots = asyncio.Semaphore(pool_size)
        self._company_locks: defaultdict[Tenant, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def waiting(self) -> int:
        """Tasks that no worker has taken yet."""
        return self._queue.waiting

    async def submit(self, events: Sequence[ReceivedEvent]) -> None:
        """Queue stored events of one company with an `incoming` message; they are settled when they are onboarded.

        A full queue is waited for, with a warning after `max_block`.
        """
        for event in events:
            event.release()
        await self._enter(events, _bytes(events))
        try:
            await self._send(events)
        except BaseException:
            self._queue.leave(events[0].tenant, len(events), _bytes(events))
            raise

    async def replay(self, event: ReceivedEvent) -> None:
        """Onboard the `incoming` message of a dead letter; returns when it is done, and `event.error` its outcome."""
        await self._enter([event], TASK_BYTES)
        async with self._slot([event], TASK_BYTES) as slot:
            await self._onboard([event], slot, replayed=True)

    async def run(self, stream: AsyncIterable[Sequence[ReceivedEvent]]) -> AsyncIterator[int]:
        """The agent's body. No exception of a batch ends the loop."""
        running: set[asyncio.Task[None]] = set()
        try:
            async for events in stream:
                # They wait for a slot here, not in the channel, which is short: our own queue is the limit.
                worker = asyncio.create_task(self._process(events))
                running.add(worker)
                worker.add_done_callback(running.discard)
                yield len(events)
            await asyncio.gather(*running)
        finally:
            for worker in running:
                worker.cancel()

    async def _process(self, events: Sequence[ReceivedEvent]) -> None:
        async with self._slot(events, _bytes(events)) as slot:
            await self._onboard(events, slot)
            # With the slot: events whose dead letters have to wait hold the next ones back.
            await self._settlement.settle(events)

    async def _enter(self, events: Sequence[ReceivedEvent], size: int) -> None:
        self._meter.onboarding_submitted(events[0].tenant.company, len(events))
        submitted = time.perf_counter()
        for event in events:
            event.submitted = submitted
        await self._queue.enter(events[0].tenant, len(events), size)

    @asynccontextmanager
    async def _slot(self, events: Sequence[ReceivedEvent], size: int) -> AsyncIterator[Slot]:
        """In an `async with` statement: no longer in the queue, with a slot, and alone of its company."""
        tenant = events[0].tenant
        async with AsyncExitStack() as stack:
            try:
                # Jobs of one company would only wait for each other's locks, each with a connection in use.
                await stack.enter_async_context(self._company_locks[tenant])
                slot = await stack.enter_async_context(Slot(self._slots))
            finally:
                self._queue.leave(tenant, len(events), size)
            yield slot

    async def _onboard(self, events: Sequence[ReceivedEvent], slot: Slot, *, replayed: bool = False) -> None:
        """Give each event its error, or none: also when its sender cannot be onboarded, which is final then."""
        tenant = events[0].tenant
        messages = [event.incoming for event in events if event.incoming is not None]
        sink = OnboardingSink(tenant, self._known, self._tables(tenant), replayed)
        try:
            complete = [message for message in messages if _is_complete(message)]
            # An outage of one company's tables must not keep the others from being onboarded.
            await self._writer.store(complete, sink, while_waiting=slot.yielded)
        except Exception:
            logger.exception("unexpected exception while onboarding")
        now = time.perf_counter()
        for event, message in zip(events, messages, strict=True):
            event.error = sink.errors.get(message)
            status = sink.statuses.get(message, "error_other")
            self._meter.onboarding_ended(tenant.company, status, now - event.submitted)


@dataclass(frozen=True, slots=True)
class OnboardingSink:
    """A `Sink` for incoming messages; each gets its status, unless we fail, and an error if the database refuses it.

    A replay was blamed before: it does not count for the circuit breaker.
    """

    tenant: Tenant
    known_pairs: KnownPairs
    tables: TenantTables
    replayed: bool = False
    statuses: dict[Incoming, Status] = field(default_factory=dict)
    errors: dict[Incoming, EventError] = field(default_factory=dict)

    @property
    def company(self) -> str:
        """Whose messages they are."""
        return self.tenant.company

    async def write(self, items: Sequence[Incoming]) -> bool:
        """Onboard the senders. Raises `StorageError`."""
        known = await self._known(items)
        new = [message for message in items if message not in known]
        outcomes = await self.tables.onboarding.onboard(self.company, new)
        self.statuses.update(dict.fromkeys(known, "success_exists"))
        for message, outcome in zip(new, outcomes, strict=True):
            self.statuses[message] = "success_created" if outcome.created else "success_exists"
            if outcome.complete:
                self.known_pairs.add(self.tenant, message.pair, outcome.since)
        return bool(new)

    async def _known(self, items: Sequence[Incoming]) -> set[Incoming]:
        """The messages that have nothing to add to what is stored."""
        likely = [
            message
            for message in items
            if message.campaign is None
            and self.known_pairs.has(self.tenant, message.pair, message.stamp.version)
        ]
        if not likely:
            return set()
        logged = await self.tables.onboarding.known(self.company, {message.pair for message in likely})
        return {message for message in likely if nothing_new(message, logged)}

    async def probe(self, item: Incoming) -> None:
        """Onboard a sender that cannot exist. Raises `StorageError`."""
        await self.tables.probe.store(item, self.company)

    def kind(self, item: Incoming) -> Hashable:
        """All messages are of one kind."""
        return kind_of(item)

    def event(self, item: Incoming) -> Hashable:
        """Stream and sequence of the message."""
        return None if self.replayed else event_of(item.stamp.metadata)

    def blame(self, item: Incoming, error: Exception) -> None:
        """Its event is dead-lettered if the database refused it, and acknowledged if we failed."""
        if isinstance(error, StorageError):
            self.statuses[item] = "error_db"
            self.errors[item] = event_error(error)
        else:
            logger.error("unexpected exception while onboarding a message", exc_info=error)


def _bytes(events: Sequence[ReceivedEvent]) -> int:
    """What they hold in memory while they wait. (The message of a replay is held by the replay.)"""
    return sum(len(event.delivery.data) + TASK_BYTES for event in events)


def _is_complete(message: Incoming) -> bool:
    if message.agent_id and message.phone:
        return True
    logger.warning("message names no agent, or no phone that is left after cleaning")
    return False
