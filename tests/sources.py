"""What tests of sources share: a reader in place of an agent, and counters in place of metrics."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from events.delivery import Batch, Delivery
from events.subjects import ConsumerType, Tenant
from streams.config.settings import Settings
from streams.jetstream.batch_slots import BatchSlots
from streams.jetstream.broker import Broker
from streams.jetstream.lanes import Admission, CompanyLanes, Lanes, SingleLane
from streams.jetstream.pull_source import PullSource
from streams.jetstream.specs import consumers, lane_limits
from tests.reconcile import reconcile

SUBJECT = "v1.messages.upsert"
# Seconds for what has to happen, however busy the machine is: no test is about how fast it does.
PATIENCE = 30.0


class Counters:
    """Counts in place of the metrics, and can be asked."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.sizes: list[int] = []
        self.seconds_back = 0.0

    def pull_requested(self, company: str, consumer_type: ConsumerType) -> None:
        self.count[f"pulls {consumer_type}"] += 1

    def pull_failed(self, company: str, consumer_type: ConsumerType) -> None:
        self.count[f"failed {consumer_type}"] += 1

    def batch_received(self, company: str, consumer_type: ConsumerType, size: int) -> None:
        self.sizes.append(size)

    def store_time_stepped_back(self, company: str, consumer_type: ConsumerType, seconds: float) -> None:
        self.count[f"steps back {consumer_type}"] += 1
        self.seconds_back += seconds


@dataclass
class StubSource:
    """A source whose status is set by the test."""

    company: str = "KopiNusa"
    consumer_type: ConsumerType = "realtime"
    stream: str = "wa_events_stream"
    durable: str = "wa_realtime_KopiNusa"
    alive: bool = True
    in_flight: int = 0
    progress_count: int = 0
    last_fetch: float = field(default_factory=time.monotonic)
    last_progress: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return f"{self.consumer_type} {self.company}"


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


class OneCompany:
    """The only company that a fleet serves: other tests publish to the same stream."""

    def __init__(self, tenant: Tenant) -> None:
        self._tenant = tenant

    def admit(self, company: str) -> Admission:
        return "served" if company == self._tenant.company else "refused"

    async def serve(self, tenant: Tenant) -> None:
        """It has its tables."""

    async def outage(self) -> bool:
        return False


def pull_source(
    broker: Broker,
    tenant: Tenant,
    settings: Settings,
    reader: Reader,
    *,
    batch_size: int = 10,
    batch_bytes: int = 1_000_000,
    **more: Any,
) -> PullSource:
    """The tenant's real-time source, read by `reader`: with settings of a fleet, the shared one."""
    owner = None if settings.fleet else tenant

    async def restore() -> None:
        await reconcile(broker, settings, [owner])

    spec = replace(consumers(settings, owner)[0], batch_size=batch_size, batch_bytes=batch_bytes)
    lanes: Lanes = SingleLane(tenant, "realtime", reader.send)
    if settings.fleet:
        lanes = CompanyLanes(
            "realtime",
            send=reader.send,
            companies=OneCompany(tenant),
            slots=BatchSlots(10),
            limits=lane_limits(spec),
        )
    arguments: dict[str, Any] = {
        "lanes": lanes,
        "restore": restore,
        "unanswered": lambda reason: None,
        "answered": lambda: None,
        "metrics": reader.counters,
        "drain_budget": 5.0,
    }
    return PullSource(spec, broker=broker, **{**arguments, **more})
