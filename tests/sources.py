"""What tests of sources share: a reader in place of an agent, and counters in place of metrics."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from events.delivery import Batch, Delivery
from events.subjects import ConsumerType, Tenant
from streams.jetstream.broker import Broker
from streams.jetstream.pull_source import PullSource
from streams.jetstream.specs import TopologyConfig
from tests.reconcile import reconcile

SUBJECT = "v1.messages.upsert"
# Seconds for what has to happen, however busy the machine is: no test is about how fast it does.
PATIENCE = 30.0


class Counters:
    """A meter that can be asked."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.sizes: list[int] = []
        self.seconds_back = 0.0

    def pull_requested(self, role: ConsumerType) -> None:
        self.count[f"pulls {role}"] += 1

    def pull_failed(self, role: ConsumerType) -> None:
        self.count[f"failed {role}"] += 1

    def batch_received(self, role: ConsumerType, company: str, size: int) -> None:
        self.sizes.append(size)

    def store_time_stepped_back(self, role: ConsumerType, seconds: float) -> None:
        self.count[f"steps back {role}"] += 1
        self.seconds_back += seconds


@dataclass
class StubSource:
    """A source whose status is set by the test."""

    tenant: Tenant = field(default_factory=lambda: Tenant("KopiNusa"))
    role: ConsumerType = "realtime"
    stream: str = "wa_events_stream"
    durable: str = "wa_realtime_KopiNusa"
    alive: bool = True
    held: int = 0
    progress_count: int = 0
    last_fetch: float = field(default_factory=time.monotonic)
    last_progress: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return f"{self.role} {self.tenant.company}"


class Reader:
    """Takes batches as an agent does."""

    def __init__(self) -> None:
        self._batches: asyncio.Queue[Batch] = asyncio.Queue()
        self.counters = Counters()

    async def send(self, batch: Batch) -> None:
        await self._batches.put(batch)

    async def batch(self, within: float = PATIENCE) -> Batch:
        """The next batch, not released yet."""
        async with asyncio.timeout(within):
            return await self._batches.get()

    async def take(self, count: int, within: float = PATIENCE) -> list[Delivery]:
        """The next `count` deliveries, unsettled; their batches are released at once."""
        taken: list[Delivery] = []
        async with asyncio.timeout(within):
            while len(taken) < count:
                batch = await self._batches.get()
                taken += batch.deliveries
                batch.release()
        return taken

    async def gets_nothing(self, seconds: float) -> bool:
        """Whether no batch comes in this time."""
        try:
            await self.batch(seconds)
        except TimeoutError:
            return True
        return False


async def eventually(condition: Callable[[], Awaitable[object]], within: float = PATIENCE) -> None:
    """Wait until `condition` is true. Raises `TimeoutError`."""
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.02)


async def ack_all(deliveries: Sequence[Delivery]) -> None:
    for delivery in deliveries:
        await delivery.ack()


@asynccontextmanager
async def connected(*urls: str, **more: Any) -> AsyncIterator[Broker]:
    """A broker that is connected to one of `urls`."""
    broker = Broker(urls=urls, name="tests", **more)
    await broker.start()
    try:
        async with asyncio.timeout(PATIENCE):
            await broker.wait_connected()
        yield broker
    finally:
        await broker.stop()


def pull_source(
    broker: Broker, tenant: Tenant, config: TopologyConfig, reader: Reader, **more: Any
) -> PullSource:
    """The tenant's real-time source, read by `reader`."""

    async def restore() -> None:
        await reconcile(broker, config, [tenant])

    arguments: dict[str, Any] = {
        "batch_size": 10,
        "batch_bytes": 1_000_000,
        "ack_wait": config.realtime_ack_wait,
        "send": reader.send,
        "restore": restore,
        "meter": reader.counters,
        "drain_budget": 5.0,
    }
    return PullSource(
        broker=broker,
        tenant=tenant,
        role="realtime",
        stream=config.realtime_stream,
        durable=config.realtime_durable + tenant.company,
        **{**arguments, **more},
    )
