"""The dead-letter agent: replays envelopes, and stores what stays broken (contract 4, design 7)."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Final, Protocol

from agents import retry_policy
from agents.backoff import Backoff
from agents.batch_writer import Aside
from agents.dead_letter_publisher import store_exhausted
from agents.received_event import ReceivedEvent, plan
from agents.replays import exhausted_row, replayed, stranger, unreadable
from agents.retry_policy import RetryPolicy
from agents.routing import Routing
from agents.slots import Slot
from events import envelope
from events.delivery import Batch, Delivery
from events.envelope import Envelope
from events.errors import BrokerError, EventError, Malformed, MaxDeliveriesExceeded, UnexpectedError
from events.subjects import Tenant
from tables.errors import StorageError
from tables.exhausted import ExhaustedRow
from tables.tenant import TenantTables

logger = logging.getLogger(__name__)

# Envelopes of one company that wait for a worker.
BUFFER: Final = 10


class DlqMeter(Protocol):
    """What is counted here (contract 9, rows 12-17)."""

    def dlq_submitted(self, company: str) -> None:
        """An envelope was handed to the workers."""
        ...

    def dlq_finished(self, company: str, seconds: float) -> None:
        """An envelope was handled, whatever came of it."""
        ...

    def dlq_retried(self, company: str) -> None:
        """A replay was put off."""
        ...

    def dlq_acked(self, company: str) -> None:
        """A replay worked and was acknowledged."""
        ...

    def dlq_ack_failed(self, company: str) -> None:
        """An envelope was ended without success, or the broker could not be told."""
        ...

    def dlq_dropped(self, company: str) -> None:
        """An envelope was stored in `exhausted_events`."""
        ...


class DeadLetterReplayer:
    """Replays through the routing code, a few at a time; a delayed one waits in JetStream, not here.

    Each company has its own queue, and a replay that waits for an outage to end leaves its place to others: no company
    waits for another one's tables.
    """

    def __init__(
        self,
        *,
        routing: Routing,
        tables: Callable[[Tenant], TenantTables],
        limits: RetryPolicy,
        workers: int,
        meter: DlqMeter,
    ) -> None:
        self._routing = routing
        self._tables = tables
        self._limits = limits
        self._workers = workers
        self._meter = meter
        self._queues: dict[Tenant, asyncio.Queue[Delivery]] = {}
        self._places = asyncio.Semaphore(workers)
        self._tasks: set[asyncio.Task[None]] = set()
        self._active = 0

    @property
    def queue_length(self) -> int:
        """Envelopes waiting for a worker."""
        return sum(queue.qsize() for queue in self._queues.values())

    @property
    def active(self) -> int:
        """Replays in progress."""
        return self._active

    async def run(self, stream: AsyncIterable[Batch]) -> AsyncIterator[int]:
        """The agent's body: hand the envelopes of each batch to the workers.

        Each source hands over its next batch only when the one before is released.
        """
        try:
            async for batch in stream:
                self._begin(self._hand_over(batch))
                yield len(batch.deliveries)
        finally:
            for task in self._tasks:
                task.cancel()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hand_over(self, batch: Batch) -> None:
        for delivery in batch.deliveries:
            self._meter.dlq_submitted(batch.tenant.company)
            await self._queue_of(batch.tenant).put(delivery)
        batch.release()

    def _queue_of(self, tenant: Tenant) -> asyncio.Queue[Delivery]:
        if tenant not in self._queues:
            queue = self._queues[tenant] = asyncio.Queue(BUFFER)
            for _ in range(self._workers):
                self._begin(self._work(tenant, queue))
        return self._queues[tenant]

    async def _work(self, tenant: Tenant, queue: asyncio.Queue[Delivery]) -> None:
        while True:
            delivery = await queue.get()
            async with Slot(self._places) as place:
                await self._attend(tenant, delivery, place)

    async def _attend(self, tenant: Tenant, delivery: Delivery, place: Slot) -> None:
        started = time.perf_counter()
        self._active += 1
        try:
            await self.handle(tenant, delivery, aside=partial(self._aside, place))
        except BrokerError as error:
            logger.warning("dead letter not settled, it comes again: %s", error)
            self._meter.dlq_ack_failed(tenant.company)
        except Exception:
            logger.exception("unexpected exception with a dead letter; it comes again")
            await self._hand_back(tenant, delivery)
        finally:
            self._active -= 1
            self._meter.dlq_finished(tenant.company, time.perf_counter() - started)

    @asynccontextmanager
    async def _aside(self, place: Slot) -> AsyncIterator[None]:
        self._active -= 1
        try:
            async with place.left():
                yield
        finally:
            self._active += 1

    async def _hand_back(self, tenant: Tenant, delivery: Delivery) -> None:
        # Left unsettled it would stay in our hands for ever.
        self._meter.dlq_ack_failed(tenant.company)
        with suppress(Exception):
            await delivery.nak(self._limits.maximum)

    async def handle(self, tenant: Tenant, delivery: Delivery, *, aside: Aside = nullcontext) -> None:
        """Replay one envelope and settle it (contract 4.3). Raises `BrokerFailed`.

        `aside()` is entered while it waits for others.
        """
        try:
            letter = envelope.decode(delivery.data)
        except Malformed as error:
            return await self._exhaust(tenant, delivery, unreadable(delivery), error, aside)
        if (refused := stranger(tenant, letter)) is not None:
            return await self._exhaust(tenant, delivery, letter, refused, aside)
        attempt = delivery.metadata.num_delivered
        if retry_policy.is_poison(attempt, self._limits):
            return await self._exhaust(tenant, delivery, letter, MaxDeliveriesExceeded(), aside)
        outcome = await self._replay(tenant, delivery, letter, aside)
        decision = retry_policy.decide_replay(outcome, letter.retry_count, attempt, self._limits)
        if outcome is None:
            await delivery.ack()
            self._meter.dlq_acked(tenant.company)
        elif decision.outcome == "nak":
            await delivery.nak(decision.delay)
            self._meter.dlq_retried(tenant.company)
        else:
            await self._exhaust(tenant, delivery, letter, outcome, aside)

    async def on_max_deliveries(self, tenant: Tenant, delivery: Delivery) -> None:
        """Store an envelope that the server will not deliver again (contract C14, OC13). Raises `BrokerFailed`."""
        error = MaxDeliveriesExceeded("the consumer's own limit of deliveries (max_deliver) was reached")
        try:
            letter = envelope.decode(delivery.data)
        except Malformed:
            letter = unreadable(delivery)
        await self._exhaust(tenant, delivery, letter, error)

    async def _replay(
        self, tenant: Tenant, delivery: Delivery, letter: Envelope, aside: Aside
    ) -> EventError | None:
        try:
            work = ReceivedEvent(tenant, delivery, replayed(delivery, letter))
            plan(work, envelope.original(letter), itertools.count())
            return await self._routing.replay(work, aside=aside)
        except EventError as error:
            return error.kept()
        except Exception as error:
            logger.exception("unexpected exception while replaying a dead letter")
            return UnexpectedError(f"unexpected {type(error).__name__} while replaying")

    async def _exhaust(
        self,
        tenant: Tenant,
        delivery: Delivery,
        letter: Envelope,
        error: EventError,
        aside: Aside = nullcontext,
    ) -> None:
        """Store the row, then end the envelope; while that fails it is put off, at the last delivery it is kept."""
        row = exhausted_row(tenant, delivery, letter, error)
        if not await self._stored(tenant, row, delivery.metadata.num_delivered, aside):
            await delivery.nak(self._limits.delay(delivery.metadata.num_delivered))
            self._meter.dlq_ack_failed(tenant.company)
            return
        await delivery.term()
        self._meter.dlq_dropped(tenant.company)
        self._meter.dlq_ack_failed(tenant.company)
        logger.warning(
            "dead letter given up and stored in exhausted_events: %s",
            error,
            extra={"company_id": tenant.company, "subject": row.source_subject},
        )

    async def _stored(self, tenant: Tenant, row: ExhaustedRow, attempt: int, aside: Aside) -> bool:
        pauses = Backoff()
        while True:
            try:
                await store_exhausted(self._tables(tenant), row)
                return True
            except StorageError as trouble:
                logger.warning("exhausted event not stored yet: %s", trouble)
            if attempt < self._limits.max_deliver:
                return False
            async with aside():
                await pauses.wait()
