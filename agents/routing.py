"""The routing agent: decodes, writes and settles the batches of the real-time and the historical consumers."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from agents.decode import decode, receive
from agents.event_writer import EventWriter
from agents.history_throttle import HistoryThrottle
from agents.meter import Meter
from agents.onboarding import Onboarding
from agents.received_event import ReceivedEvent
from agents.retry_policy import RetryPolicy
from agents.settlement import Settlement
from events import envelope
from events.delivery import Batch, Delivery
from events.errors import MaxDeliveriesExceeded, UnexpectedError
from events.subjects import ConsumerType, Tenant

logger = logging.getLogger(__name__)

# A millisecond or two of decoding, before other companies have a turn.
EVENTS_A_SLICE: Final = 100
# A millisecond of decoding a history batch, and one of freeing its memory, before others have a turn: 900 items in one
# piece made the p99 of real-time events seven times that of quiet.
ITEMS_A_SLICE: Final = 50
RELEASED_A_SLICE: Final = 500
# Passes of the event loop from the release of a batch to the next pull request on its way: the source wakes up, hands
# the request to the client, and the client writes it.
PASSES_TO_PULL: Final = 4


class Routing:
    """Decodes each batch while the one before it is written, and settles what onboarding does not.

    Batches of different sources are processed side by side, so that no company waits for another. Of one source, a
    batch is written when the one before it is done; then it is released, and the source pulls the next.
    """

    def __init__(
        self,
        *,
        writer: EventWriter,
        settlement: Settlement,
        onboarding: Onboarding,
        policies: Mapping[ConsumerType, RetryPolicy],
        throttle: HistoryThrottle,
        meter: Meter,
    ) -> None:
        self._writer = writer
        self._settlement = settlement
        self._onboarding = onboarding
        self._policies = policies
        self._throttle = throttle
        self._meter = meter
        self._writing: defaultdict[tuple[Tenant, ConsumerType], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self, stream: AsyncIterable[Batch]) -> AsyncIterator[int]:
        """The agent's body: one channel item is a batch. No exception of a batch ends the loop."""
        running: set[asyncio.Task[None]] = set()
        try:
            async for batch in stream:
                task = asyncio.create_task(self._process(batch))
                running.add(task)
                task.add_done_callback(running.discard)
                yield len(batch.deliveries)
        finally:
            for task in running:
                task.cancel()

    async def on_max_deliveries(
        self, tenant: Tenant, consumer_type: ConsumerType, delivery: Delivery
    ) -> None:
        """Dead-letter an event that the server will not deliver again."""
        event = receive(tenant, delivery, self._policies[consumer_type], envelope.now())
        decode(event, delivery.data, itertools.count())
        self._count([event])
        event.fail(MaxDeliveriesExceeded("the consumer's own limit of deliveries (max_deliver) was reached"))
        await self._settlement.settle([event])

    async def _process(self, batch: Batch) -> None:
        try:
            events = await self._decoded(batch)
            async with self._writing[batch.tenant, batch.consumer_type]:
                batch.release()
                if len(events) >= EVENTS_A_SLICE:  # a small one is written sooner without
                    await _let_the_source_pull()
                await self._handle(batch, events)
        except Exception:
            logger.exception("unexpected exception in the routing agent; its events come again")
            await self._nak_all(batch)
        finally:
            batch.finish()

    async def _nak_all(self, batch: Batch) -> None:
        # Left unsettled they would stay in flight for ever; for those that are settled it has no effect.
        for delivery in batch.deliveries:
            with suppress(Exception):
                await delivery.nak(self._policies[batch.consumer_type].base)

    async def _decoded(self, batch: Batch) -> list[ReceivedEvent]:
        """Decode a batch; other companies, and this one's real-time events, have their turns in between."""
        policy, processed_at = self._policies[batch.consumer_type], envelope.now()
        events, refs = [], itertools.count()
        for number, delivery in enumerate(batch.deliveries, 1):
            event = receive(batch.tenant, delivery, policy, processed_at)
            events.append(event)
            if batch.consumer_type == "historical":
                await self._in_slices(partial(decode, event, delivery.data, refs, ITEMS_A_SLICE))
            else:
                decode(event, delivery.data, refs)
                if number % EVENTS_A_SLICE == 0:
                    await asyncio.sleep(0)
        self._count(events)
        return events

    async def _in_slices(self, step: Callable[[], bool]) -> None:
        over = False
        while not over:
            async with self._throttle.time_slice():
                over = step()

    def _count(self, events: Sequence[ReceivedEvent]) -> None:
        for (company, event_type), count in Counter(
            (event.tenant.company, event.event_type) for event in events
        ).items():
            self._meter.received(company, event_type, count)
        for event in events:
            agent_id, jid = event.account
            if agent_id:
                self._meter.agent_seen(event.tenant.company, event.event_type, agent_id, jid)

    async def _handle(self, batch: Batch, events: Sequence[ReceivedEvent]) -> None:
        """Write a batch and settle each event, or hand it to onboarding, which then settles it."""
        history = batch.consumer_type == "historical"
        started = time.perf_counter()
        await self._writer.write(events, history=history)
        seconds = time.perf_counter() - started
        for event in events:
            event.routing_seconds += seconds
        await self._settlement.settle([event for event in events if event.incoming is None])
        if onboarded := [event for event in events if event.incoming is not None]:
            await self._onboard(onboarded)
        if history:
            for event in events:
                await self._in_slices(partial(event.release_items, RELEASED_A_SLICE))

    async def _onboard(self, events: Sequence[ReceivedEvent]) -> None:
        try:
            await self._onboarding.submit(events)
        except Exception as error:
            logger.exception("unexpected exception while handing messages to onboarding")
            text = f"unexpected {type(error).__name__} while handing over to onboarding"
            for event in events:
                event.error = UnexpectedError(text)
            await self._settlement.settle(events)


async def _let_the_source_pull() -> None:
    """Let the source send its next pull request before this batch keeps the event loop busy."""
    for _ in range(PASSES_TO_PULL):
        await asyncio.sleep(0)
