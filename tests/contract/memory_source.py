"""A source without a broker, for tests of what reads sources; it keeps the same promises (`test_source`)."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from events.delivery import Batch, MessageMetadata
from events.subjects import Tenant


class MemoryDelivery:
    """A message of a `MemoryLog` in somebody's hands."""

    def __init__(self, log: MemoryLog, sequence: int, delivered: int) -> None:
        self.subject, self.data, self._stored = log.messages[sequence]
        self.headers: Mapping[str, str] | None = None
        self.received = time.perf_counter()
        self.metadata = MessageMetadata(
            "memory", "memory", "", sequence, sequence, delivered, self._stored, len(log.waiting)
        )
        self._log = log
        self.settled = asyncio.Event()

    async def ack(self) -> None:
        self._settle(None)

    async def nak(self, delay: float = 0.0) -> None:
        self._settle(delay)

    async def term(self) -> None:
        self._settle(None)

    def _settle(self, again_after: float | None) -> None:
        if not self.settled.is_set():
            self.settled.set()
            self._log.settle(self.metadata, again_after)


class MemoryLog:
    """A stream and its one consumer."""

    def __init__(self, ack_wait: float) -> None:
        self.ack_wait = ack_wait
        self.messages: dict[int, tuple[str, bytes, int]] = {}
        self.waiting: deque[tuple[int, int]] = deque()  # sequence, how often delivered
        self.handed_out: set[int] = set()
        self.news = asyncio.Event()

    def publish(self, subject: str, data: bytes) -> None:
        sequence = len(self.messages) + 1
        self.messages[sequence] = (subject, data, time.time_ns())
        self._offer(sequence, 0)

    def settle(self, provenance: MessageMetadata, again_after: float | None) -> None:
        self.handed_out.discard(provenance.stream_sequence)
        if again_after is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(again_after, self._offer, provenance.stream_sequence, provenance.num_delivered)

    def pull(self, count: int) -> list[MemoryDelivery]:
        taken = [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]
        self.handed_out.update(sequence for sequence, _ in taken)
        return [MemoryDelivery(self, sequence, delivered + 1) for sequence, delivered in taken]

    def expire(self, delivery: MemoryDelivery) -> None:
        """Its holder is gone: it comes again after the ack wait."""
        asyncio.get_running_loop().call_later(
            self.ack_wait, self._offer, delivery.metadata.stream_sequence, delivery.metadata.num_delivered
        )

    def _offer(self, sequence: int, delivered: int) -> None:
        self.waiting.append((sequence, delivered))
        self.news.set()


class MemorySource:
    """Hands over batches of a `MemoryLog`, one at a time."""

    def __init__(
        self,
        log: MemoryLog,
        *,
        tenant: Tenant,
        batch_size: int,
        send: Callable[[Batch], Awaitable[None]],
        drain_budget: float,
    ) -> None:
        self._log = log
        self._tenant = tenant
        self._batch_size = batch_size
        self._send = send
        self._drain_budget = drain_budget
        self._held: list[MemoryDelivery] = []
        self._draining = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def crash(self) -> None:
        """End as a killed process: nothing is settled any more."""
        await self._end()
        for delivery in self._held:
            if not delivery.settled.is_set():
                delivery.settled.set()
                self._log.expire(delivery)

    async def stop(self) -> None:
        self._draining = True
        self._log.news.set()
        try:
            async with asyncio.timeout(self._drain_budget):
                if self._task is not None:
                    await asyncio.shield(self._task)
                for delivery in self._held:
                    await delivery.settled.wait()
        except TimeoutError:
            for delivery in self._held:
                await delivery.nak()
        await self._end()

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while not self._draining:
            if not self._log.waiting:
                self._log.news.clear()
                await self._log.news.wait()
                continue
            deliveries = self._log.pull(self._batch_size)
            self._held += deliveries
            batch = Batch(self._tenant, "realtime", deliveries)
            await self._send(batch)
            await batch.released.wait()
