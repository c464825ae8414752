"""The DLQ agent: replays dead letters, and parks those whose attempts are used up."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Final

from agents import retry_policy
from agents.batch_writer import WhileWaiting
from agents.decode import decode, replayed
from agents.event_writer import EventWriter
from agents.meter import Meter
from agents.onboarding import Onboarding
from agents.retry_policy import RetryPolicy
from agents.settlement import DeadLetterSettlement
from agents.slots import Slot
from events import envelope
from events.delivery import Batch, Delivery
from events.envelope import Envelope
from events.errors import (
    BrokerError,
    EventError,
    Invalid,
    Malformed,
    MaxDeliveriesExceeded,
    UnexpectedError,
    UnknownSubject,
)
from events.history import History
from events.subjects import Tenant, event_type

logger = logging.getLogger(__name__)

# Dead letters of one company that wait for a worker.
QUEUE_SIZE: Final = 10


class DeadLetterReplayer:
    """Replays dead letters, a few at a time; a delayed one waits in JetStream, not here.

    Each company has its own queue, and a replay that waits for an outage to end yields its slot to others: no company
    waits for another one's tables.
    """

    def __init__(
        self,
        *,
        writer: EventWriter,
        onboarding: Onboarding,
        settlement: DeadLetterSettlement,
        policy: RetryPolicy,
        workers: int,
        meter: Meter,
    ) -> None:
        self._writer = writer
        self._onboarding = onboarding
        self._settlement = settlement
        self._policy = policy
        self._workers = workers
        self._meter = meter
        self._queues: dict[Tenant, asyncio.Queue[Delivery]] = {}
        self._slots = asyncio.Semaphore(workers)
        self._tasks: set[asyncio.Task[None]] = set()
        self._active = 0

    @property
    def queue_length(self) -> int:
        """Dead letters waiting for a worker."""
        return sum(queue.qsize() for queue in self._queues.values())

    @property
    def active(self) -> int:
        """Replays in progress."""
        return self._active

    async def run(self, stream: AsyncIterable[Batch]) -> AsyncIterator[int]:
        """The agent's body: hand the dead letters of each batch to the workers, then release it."""
        try:
            async for batch in stream:
                self._start(self._hand_over(batch))
                yield len(batch.deliveries)
        finally:
            for task in self._tasks:
                task.cancel()

    async def on_max_deliveries(self, tenant: Tenant, delivery: Delivery) -> None:
        """Park a dead letter that the server will not deliver again. Raises `BrokerError`."""
        error = MaxDeliveriesExceeded("the consumer's own limit of deliveries (max_deliver) was reached")
        try:
            dead_letter = envelope.decode(delivery.data)
        except Malformed:
            dead_letter = Envelope()
        await self._settlement.park(tenant, delivery, dead_letter, error)

    async def handle(
        self, tenant: Tenant, delivery: Delivery, *, while_waiting: WhileWaiting = nullcontext
    ) -> None:
        """Replay one dead letter and settle it. Raises `BrokerError`. `while_waiting()` is entered for each wait."""
        park = partial(self._settlement.park, tenant, delivery, while_waiting=while_waiting)
        try:
            dead_letter = envelope.decode(delivery.data)
        except Malformed as malformed:
            return await park(Envelope(), malformed)
        if (rejection := _rejection(tenant, dead_letter)) is not None:
            return await park(dead_letter, rejection)
        if retry_policy.is_poison(delivery.metadata.num_delivered, self._policy):
            return await park(dead_letter, MaxDeliveriesExceeded())
        error = await self._replay(tenant, delivery, dead_letter, while_waiting)
        await self._settlement.settle(tenant, delivery, dead_letter, error, while_waiting=while_waiting)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hand_over(self, batch: Batch) -> None:
        for delivery in batch.deliveries:
            self._meter.dlq_submitted(batch.tenant.company)
            await self._queue_of(batch.tenant).put(delivery)
        batch.finish()

    def _queue_of(self, tenant: Tenant) -> asyncio.Queue[Delivery]:
        if tenant not in self._queues:
            queue = self._queues[tenant] = asyncio.Queue(QUEUE_SIZE)
            for _ in range(self._workers):
                self._start(self._work(tenant, queue))
        return self._queues[tenant]

    async def _work(self, tenant: Tenant, queue: asyncio.Queue[Delivery]) -> None:
        while True:
            delivery = await queue.get()
            async with Slot(self._slots) as slot:
                await self._process(tenant, delivery, slot)

    async def _process(self, tenant: Tenant, delivery: Delivery, slot: Slot) -> None:
        started = time.perf_counter()
        self._active += 1
        try:
            await self.handle(tenant, delivery, while_waiting=partial(self._inactive, slot))
        except BrokerError as error:
            logger.warning("dead letter not settled, it comes again: %s", error)
            self._meter.dlq_ack_failed(tenant.company)
        except Exception:
            logger.exception("unexpected exception with a dead letter; it comes again")
            await self._nak(tenant, delivery)
        finally:
            self._active -= 1
            self._meter.dlq_finished(tenant.company, time.perf_counter() - started)

    @asynccontextmanager
    async def _inactive(self, slot: Slot) -> AsyncIterator[None]:
        self._active -= 1
        try:
            async with slot.yielded():
                yield
        finally:
            self._active += 1

    async def _nak(self, tenant: Tenant, delivery: Delivery) -> None:
        # Left unsettled it would stay in flight for ever.
        self._meter.dlq_ack_failed(tenant.company)
        with suppress(Exception):
            await delivery.nak(self._policy.maximum)

    async def _replay(
        self, tenant: Tenant, delivery: Delivery, dead_letter: Envelope, while_waiting: WhileWaiting
    ) -> EventError | None:
        try:
            event = replayed(tenant, delivery, self._policy, dead_letter)
            decode(event, envelope.original(dead_letter), itertools.count())
            history = isinstance(event.payload, History)
            await self._writer.write([event], history=history, replayed=True, while_waiting=while_waiting)
            if event.incoming is not None:
                async with while_waiting():
                    await self._onboarding.replay(event)
            return event.error
        except EventError as error:
            return error.kept()
        except Exception as error:
            logger.exception("unexpected exception while replaying a dead letter")
            return UnexpectedError(f"unexpected {type(error).__name__} while replaying")


def _rejection(tenant: Tenant, dead_letter: Envelope) -> EventError | None:
    """Why a dead letter is never replayed: it is another company's, or of no known event type.

    The existing service wrote full subjects; a bare base subject names no company, and counts as ours.
    """
    if dead_letter.company and dead_letter.company != tenant.company:
        return Invalid("validation failed: company is not the company of the dead-letter subject")
    subject = dead_letter.source_subject or ""
    kind = event_type(subject)
    if kind is None:
        return UnknownSubject("source_subject is unknown")
    if subject not in (kind, tenant.subject(kind)):
        return Invalid("validation failed: source_subject is not of the company of the dead-letter subject")
    return None
