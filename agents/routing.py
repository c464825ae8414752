"""The routing agent: a batch of events in, rows out, each event settled once (contract 3, design 5)."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Final, Protocol, cast

from agents import retry_policy
from agents.batch_writer import Aside, BatchWriter
from agents.dead_letter import message_id
from agents.dead_letter_publisher import DeadLetterPublisher, context
from agents.event_sink import EventSink
from agents.history_throttle import HistoryThrottle
from agents.onboarding import OnboardingJob, OnboardingTask
from agents.received_event import EventMetadata, PendingWrite, ReceivedEvent, advance, metadata
from agents.retry_policy import RetryPolicy
from agents.senders import named_agent, onboarding_task
from events import envelope, models
from events.delivery import Batch, ConsumerType, Delivery
from events.errors import BrokerError, EventError, MaxDeliveriesExceeded, UnexpectedError
from events.subjects import Tenant, event_type
from tables.last_writer_wins import Version
from tables.tenant import TenantTables

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"
# A millisecond or two of decoding, before other companies have a turn.
EVENTS_A_TURN: Final = 100
# A millisecond of decoding a history batch, a few of storing it, and one of freeing its memory, before others have a
# turn: 900 items in one piece made the p99 of real-time events seven times that of quiet.
ITEMS_A_TURN: Final = 50
ROWS_A_TURN: Final = 25
FORGOTTEN_A_TURN: Final = 500


class RoutingMeter(Protocol):
    """What is counted here (contract 9, rows 1-7)."""

    def received(self, company: str, event_type: str, count: int) -> None:
        """Deliveries arrived."""
        ...

    def agent_seen(self, company: str, event_type: str, agent_id: str, jid: str) -> None:
        """A delivery named an agent."""
        ...

    def settled(
        self,
        company: str,
        event_type: str,
        action: str,
        error_type: str,
        processing_seconds: float,
        routing_seconds: float,
    ) -> None:
        """A delivery came to its end."""
        ...


class Routing:
    """Handles the batches of the real-time and the historical consumers, and replays dead letters."""

    def __init__(
        self,
        *,
        tables: Callable[[Tenant], TenantTables],
        writer: BatchWriter,
        dead_letters: DeadLetterPublisher,
        onboard: Callable[[OnboardingJob], Awaitable[None]],
        limits: Mapping[ConsumerType, RetryPolicy],
        meter: RoutingMeter,
    ) -> None:
        self._tables = tables
        self._writer = writer
        self._dead_letters = dead_letters
        self._onboard = onboard
        self._limits = limits
        self._meter = meter
        self._precedence = HistoryThrottle()

    async def run(self, stream: AsyncIterable[Batch]) -> AsyncIterator[int]:
        """The agent's body: one channel item is a batch. Nothing that happens to one may leave the loop.

        Batches of different sources run side by side, so that no tenant waits for another; each source hands
        over its next batch only when the one before is released.
        """
        running: set[asyncio.Task[None]] = set()
        try:
            async for batch in stream:
                task = asyncio.create_task(self._attend(batch))
                running.add(task)
                task.add_done_callback(running.discard)
                yield len(batch.deliveries)
        finally:
            for task in running:
                task.cancel()

    async def _attend(self, batch: Batch) -> None:
        try:
            await self.handle(batch)
        except Exception:
            logger.exception("unexpected exception in the routing agent; its events come again")
            await self._hand_back(batch)
        finally:
            batch.release()

    async def _hand_back(self, batch: Batch) -> None:
        # Left unsettled they would stay in our hands for ever; for those that are settled it has no effect.
        for delivery in batch.deliveries:
            with suppress(Exception):
                await delivery.nak(self._limits[batch.role].base)

    async def prepare(self, batch: Batch) -> list[ReceivedEvent]:
        """Decode and check a batch; the source calls it while the agent is busy with the one before.

        Other companies, and this one's real-time events, take their turns in between.
        """
        receive = partial(self._receive, batch.tenant, self._limits[batch.role], envelope.now())
        works, refs = [], itertools.count()
        for number, delivery in enumerate(batch.deliveries, 1):
            work = receive(delivery)
            works.append(work)
            if batch.role == "historical":
                await self._in_turns(partial(_decode, work, refs, ITEMS_A_TURN))
            else:
                _decode(work, refs)
                if number % EVENTS_A_TURN == 0:
                    await asyncio.sleep(0)
        self._note(batch.tenant, works)
        return works

    async def _in_turns(self, step: Callable[[], bool]) -> None:
        over = False
        while not over:
            async with self._precedence.history():
                over = step()

    def _note(self, tenant: Tenant, works: Sequence[ReceivedEvent]) -> None:
        for kind, count in Counter(work.source.event_type for work in works).items():
            self._meter.received(tenant.company, kind, count)
        for work in works:
            agent_id, jid = named_agent(work.event or work.error)
            if agent_id:
                self._meter.agent_seen(tenant.company, work.source.event_type, agent_id, jid)

    async def handle(self, batch: Batch) -> None:
        """Store a batch and settle each delivery, or hand it on to onboarding, which then settles it."""
        works = cast("list[ReceivedEvent]", batch.prepared) if batch.prepared else await self.prepare(batch)
        limits = self._limits[batch.role]
        started = time.perf_counter()
        await self._store(works, bulk=batch.role == "historical")
        seconds = time.perf_counter() - started
        for work in works:
            work.routing_seconds += seconds
            work.conclude()
        tasks = [(work, task) for work in works if work.error is None and (task := onboarding_task(work))]
        waiting = {id(work) for work, _ in tasks}
        await self._settle([work for work in works if id(work) not in waiting], limits)
        if tasks:
            await self._hand_on(self._job(batch.tenant, tasks, limits))
        if batch.role == "historical":
            for work in works:
                await self._in_turns(partial(work.forget, FORGOTTEN_A_TURN))

    async def _hand_on(self, job: OnboardingJob) -> None:
        try:
            await self._onboard(job)
        except Exception as error:
            logger.exception("unexpected exception while handing messages to onboarding")
            crashed = UnexpectedError(f"unexpected {type(error).__name__} while handing over to onboarding")
            await job.done([crashed] * len(job.tasks))

    async def on_max_deliveries(self, tenant: Tenant, role: ConsumerType, delivery: Delivery) -> None:
        """Dead-letter an event that the server will not deliver again (contract C14, OC13)."""
        limits = self._limits[role]
        work = self._receive(tenant, limits, envelope.now(), delivery)
        _decode(work, itertools.count())
        self._note(tenant, [work])
        work.fail(MaxDeliveriesExceeded("the consumer's own limit of deliveries (max_deliver) was reached"))
        await self._settle([work], limits)

    async def replay(self, work: ReceivedEvent, *, aside: Aside = nullcontext) -> EventError | None:
        """Handle a dead letter's event like a live one, onboarding included; returns what went wrong.

        `aside()` is entered while it waits for others.
        """
        bulk = isinstance(work.event, models.History)
        await self._store([work], bulk=bulk, replayed=True, aside=aside)
        if work.conclude() is None and (task := onboarding_task(work)):
            outcome: asyncio.Future[EventError | None] = asyncio.get_running_loop().create_future()

            async def done(results: Sequence[EventError | None]) -> None:
                outcome.set_result(results[0])

            async with aside():
                await self._onboard(
                    OnboardingJob(work.tenant, [task], done, time.perf_counter(), replayed=True)
                )
                work.error = await outcome
        return work.error

    @staticmethod
    def _receive(tenant: Tenant, limits: RetryPolicy, processed_at: str, delivery: Delivery) -> ReceivedEvent:
        origin = delivery.metadata
        kind = event_type(delivery.subject)
        name = message_id(delivery.headers, origin.stream_sequence)
        source = EventMetadata(
            event_type=kind or UNKNOWN,
            metadata=metadata(origin, name, delivery.subject, processed_at),
            stored_ns=origin.stored_ns,
            sequence=origin.stream_sequence,
            version=Version(origin.stored_ns, origin.stream_sequence, origin.incarnation),
        )
        work = ReceivedEvent(tenant, delivery, source)
        if kind is None or delivery.subject != tenant.subject(kind):
            work.error = UnknownSubject()
        elif retry_policy.is_poison(origin.num_delivered, limits):
            work.error = MaxDeliveriesExceeded()
        return work

    async def _store(
        self,
        works: Sequence[ReceivedEvent],
        *,
        bulk: bool,
        replayed: bool = False,
        aside: Aside = nullcontext,
    ) -> None:
        if not works:
            return
        units = [unit for work in works for unit in work.units]
        try:
            tenant = works[0].tenant
            writes = EventSink(tenant.company, self._tables(tenant), bulk=bulk, replayed=replayed)
            if bulk:
                await self._store_in_turns(units, writes, aside)
            else:
                with self._precedence.realtime():
                    await self._writer.store(units, writes, aside=partial(self._held_up, aside))
        except Exception as error:
            logger.exception("unexpected exception while storing a batch")
            for unit in units:
                unit.error = unit.error or UnexpectedError(f"unexpected {type(error).__name__} while storing")

    @asynccontextmanager
    async def _held_up(self, aside: Aside) -> AsyncIterator[None]:
        async with aside():
            with self._precedence.held_up():
                yield

    async def _store_in_turns(self, units: Sequence[PendingWrite], writes: EventSink, aside: Aside) -> None:
        start = 0
        while start < len(units):
            async with self._precedence.history():
                # A third faster, but others would wait for its commit.
                end = len(units) if self._precedence.idle else start + ROWS_A_TURN
                await self._writer.store(units[start:end], writes, aside=aside)
            start = end

    def _job(
        self, tenant: Tenant, tasks: Sequence[tuple[ReceivedEvent, OnboardingTask]], limits: RetryPolicy
    ) -> OnboardingJob:
        works = [work for work, _ in tasks]

        async def done(results: Sequence[EventError | None]) -> None:
            for work, error in zip(works, results, strict=True):
                work.error = error
            await self._settle(works, limits)

        for work in works:
            work.release()
        bodies = sum(len(work.delivery.data) for work in works)
        return OnboardingJob(tenant, [task for _, task in tasks], done, time.perf_counter(), bodies)

    async def _settle(self, works: Sequence[ReceivedEvent], limits: RetryPolicy) -> None:
        failed: list[ReceivedEvent] = []
        for work in works:
            if work.error is not None:
                failed.append(work)
                continue
            try:
                await work.delivery.ack()
            except BrokerError:
                # It comes again, and is stored again without effect.
                logger.warning("event is stored, but its ack was not sent", extra=context(work))
                continue
            self.ended(work, "ack_success", None)
        await asyncio.gather(*(self._settle_failed(work, limits) for work in failed))

    async def _settle_failed(self, work: ReceivedEvent, limits: RetryPolicy) -> None:
        error = cast(EventError, work.error)
        try:
            if isinstance(error, UnknownSubject):
                await self._dead_letters.park(work, error, limits)
                return
            decision = retry_policy.decide(error, work.delivery.metadata.num_delivered, limits)
            if decision.outcome == "nak":
                await work.delivery.nak(decision.delay)
                self.ended(work, "nack_retryable", error)
            else:
                logger.warning("event given up: %s", error, extra=context(work))
                await self._dead_letters.dead_letter(work, error, limits)
        except BrokerError as trouble:
            logger.warning("event not settled, it comes again: %s", trouble, extra=context(work))

    def ended(self, work: ReceivedEvent, action: str, error: EventError | None) -> None:
        """Count a delivery that came to its end."""
        self._meter.settled(
            work.tenant.company,
            work.source.event_type,
            action,
            "none" if error is None else error.label,
            time.perf_counter() - work.delivery.received,
            work.routing_seconds,
        )


def _decode(work: ReceivedEvent, refs: Iterator[int], items: int | None = None) -> bool:
    """Decode at most so many items of a history batch; returns whether none are left."""
    if work.error is not None:
        return True
    started = time.perf_counter()
    over = advance(work, work.delivery.data, refs, items)
    work.routing_seconds += time.perf_counter() - started
    return over


class UnknownSubject(EventError):
    """The subject is of no known event type, or not of this company."""
