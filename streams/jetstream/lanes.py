"""Between a pull consumer and the agents: a lane for each company whose events the consumer delivers."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final, Literal, Protocol

from events.delivery import Batch
from events.errors import BrokerError
from events.subjects import ConsumerType, Tenant
from streams.jetstream.batch_slots import BatchSlots
from streams.jetstream.in_flight import JetDelivery
from streams.jetstream.specs import ConsumerSpec, LaneLimits, lane_limits

Send = Callable[[Batch], Awaitable[None]]
# What becomes of a company's events: they are handled, acknowledged without being handled, or come again later.
Admission = Literal["served", "refused", "waits"]

# Seconds after which a lane whose batch is still not done stands still: the others no longer wait for it.
STALLED: Final = 2.0
# Seconds before a delivery comes again for which a lane that stands still has no room: the first time, and at most.
FIRST_RETURN: Final = 5.0
LONGEST_RETURN: Final = 300.0
# Deliveries given back that are remembered, so that they do not count as attempts.
REMEMBERED: Final = 100_000


class Lanes(Protocol):
    """What a source hands its deliveries to."""

    async def hand_over(self, deliveries: Sequence[JetDelivery]) -> None:
        """Pass them on in order; returns when the source may pull again."""
        ...

    def close(self) -> None:
        """Pass on nothing more; what is left is for the source to give back."""
        ...


class SingleLane:
    """The lane of a consumer that delivers one company's events: what was pulled is one batch.

    The next is pulled when the agent has released it.
    """

    def __init__(self, tenant: Tenant, consumer_type: ConsumerType, send: Send) -> None:
        self._tenant = tenant
        self._consumer_type = consumer_type
        self._send = send

    async def hand_over(self, deliveries: Sequence[JetDelivery]) -> None:
        """See `Lanes.hand_over`."""
        batch = Batch(self._tenant, self._consumer_type, deliveries)
        await self._send(batch)
        await batch.released.wait()

    def close(self) -> None:
        """See `Lanes.close`."""


class Companies(Protocol):
    """Which companies are served."""

    def admit(self, company: str) -> Admission:
        """What becomes of an event of this company; counts those that are refused."""
        ...

    async def outage(self) -> bool:
        """Whether no company's events can be stored now."""
        ...

    async def serve(self, tenant: Tenant) -> None:
        """Return when the company's tables are there."""
        ...


class _Lane:
    """One company's deliveries, oldest first, and whether the agents take them."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.waiting: deque[JetDelivery] = deque()
        self.size = 0
        self.moved = monotonic()
        self.task: asyncio.Task[None] | None = None

    def add(self, delivery: JetDelivery) -> None:
        self.waiting.append(delivery)
        self.size += len(delivery.data)

    @property
    def stalled(self) -> bool:
        """Whether deliveries wait although the agents took none for some time."""
        return bool(self.waiting) and monotonic() - self.moved > STALLED


class CompanyLanes:
    """A lane for each company that has deliveries here.

    What arrives for a company while its last batch is written is its next one. All lanes share the limits. The source
    waits while they are reached, or while a lane that moves has its share; a lane that stands still delays no other:
    what arrives for it beyond its share is given back, and comes again later and later.
    """

    def __init__(
        self,
        consumer_type: ConsumerType,
        *,
        send: Send,
        companies: Companies,
        slots: BatchSlots,
        limits: LaneLimits,
    ) -> None:
        self._consumer_type = consumer_type
        self._send = send
        self._companies = companies
        self._slots = slots
        self._limits = limits
        self._lanes: dict[str, _Lane] = {}
        self._full: set[_Lane] = set()
        self._waiting = 0
        self._size = 0
        self._changed = asyncio.Event()
        self._returns = _Returns()

    async def hand_over(self, deliveries: Sequence[JetDelivery]) -> None:
        """See `Lanes.hand_over`."""
        for delivery in deliveries:
            await self._sort(delivery)
        await self._room()

    def close(self) -> None:
        """See `Lanes.close`."""
        for lane in self._lanes.values():
            lane.waiting.clear()
            if lane.task is not None:
                lane.task.cancel()

    def stalled(self) -> dict[str, str]:
        """What stands still, as text by company."""
        return {
            company: f"{len(lane.waiting)} deliveries wait"
            for company, lane in self._lanes.items()
            if lane.stalled
        }

    async def _sort(self, delivery: JetDelivery) -> None:
        """Put a delivery into the lane of its company, if it is served and has room."""
        company = delivery.subject.rpartition(".")[2]
        lane = self._lanes.get(company)
        if lane is None:
            admission = self._companies.admit(company)
            if admission == "refused":
                return await _settle(delivery.ack())
            if admission == "waits":
                return await self._give_back(delivery)
            lane = self._lanes[company] = _Lane(Tenant(company))
        elif self._overflows(lane, delivery) and not await self._outage_over():
            return await self._give_back(delivery)
        self._put(lane, delivery)

    async def _outage_over(self) -> bool:
        """Wait for the end of an outage, if there is one: what is in hand waits, and nothing is pulled."""
        outage = False
        while await self._companies.outage():
            outage = True
            await asyncio.sleep(STALLED / 4)
        return outage

    async def _give_back(self, delivery: JetDelivery) -> None:
        await _settle(delivery.nak(self._returns.delay(delivery)))

    def _overflows(self, lane: _Lane, delivery: JetDelivery) -> bool:
        """Whether a lane that stands still would exceed its share with this delivery."""
        return self._is_full(lane, len(delivery.data)) and lane.stalled

    def _is_full(self, lane: _Lane, size: int = 0) -> bool:
        """Whether the lane has its share, or would exceed it with so many bytes more."""
        limits = self._limits
        return bool(lane.waiting) and (
            len(lane.waiting) >= limits.lane_events or lane.size + size > limits.lane_size
        )

    def _put(self, lane: _Lane, delivery: JetDelivery) -> None:
        self._returns.forgive(delivery)
        lane.add(delivery)
        self._waiting += 1
        self._size += len(delivery.data)
        if self._is_full(lane):
            self._full.add(lane)
        if lane.task is None:
            lane.task = asyncio.create_task(self._run(lane))

    def _take(self, lane: _Lane) -> list[JetDelivery]:
        """The next batch: at most the limits of a batch, but at least one delivery."""
        taken: list[JetDelivery] = []
        room = self._limits.batch_size
        while lane.waiting and len(taken) < self._limits.batch_events:
            size = len(lane.waiting[0].data)
            if taken and size > room:
                break
            room -= size
            taken.append(lane.waiting.popleft())
            self._remove(lane, size)
        lane.moved = monotonic()
        self._changed.set()
        return taken

    async def _room(self) -> None:
        """Wait until there is room for the next pull."""
        while self._waiting and (self._is_all_taken() or any(not lane.stalled for lane in self._full)):
            self._changed.clear()
            try:
                # A lane may begin to stand still meanwhile.
                async with asyncio.timeout(STALLED / 4):
                    await self._changed.wait()
            except TimeoutError:
                if self._is_all_taken() and not await self._companies.outage():
                    await self._shed()

    def _is_all_taken(self) -> bool:
        return self._waiting >= self._limits.events or self._size >= self._limits.size

    async def _shed(self) -> None:
        """Give back what lanes that stand still hold, but for the oldest: the room belongs to the others."""
        for lane in [lane for lane in self._lanes.values() if lane.stalled]:
            while len(lane.waiting) > 1:
                delivery = lane.waiting.pop()
                self._remove(lane, len(delivery.data))
                await self._give_back(delivery)

    def _remove(self, lane: _Lane, size: int) -> None:
        lane.size -= size
        self._waiting -= 1
        self._size -= size
        if not self._is_full(lane):
            self._full.discard(lane)

    async def _run(self, lane: _Lane) -> None:
        await self._companies.serve(lane.tenant)
        while lane.waiting:
            slot = await self._slots.take()
            batch = Batch(lane.tenant, self._consumer_type, self._take(lane), slot.release)
            await self._send(batch)
            await batch.released.wait()
            lane.moved = monotonic()
        del self._lanes[lane.tenant.company]


async def _settle(settlement: Awaitable[None]) -> None:
    """Ack or nak; one that the server does not hear of is delivered again after its ack wait."""
    with suppress(BrokerError):
        await settlement


class _Returns:
    """How often deliveries were given back for want of room, by sequence: these count as no attempts."""

    def __init__(self) -> None:
        self._times: OrderedDict[int, int] = OrderedDict()

    def delay(self, delivery: JetDelivery) -> float:
        """Seconds until it comes again; notes it."""
        sequence = delivery.metadata.stream_sequence
        times = self._times.pop(sequence, 0)
        self._times[sequence] = times + 1
        if len(self._times) > REMEMBERED:
            self._times.popitem(last=False)
        return min(FIRST_RETURN * 2.0 ** min(times, 30), LONGEST_RETURN)

    def forgive(self, delivery: JetDelivery) -> None:
        """Take the times it was given back from its count of deliveries."""
        if self._times and (times := self._times.pop(delivery.metadata.stream_sequence, 0)):
            metadata = delivery.metadata
            delivery.metadata = metadata._replace(num_delivered=max(1, metadata.num_delivered - times))


def lanes(spec: ConsumerSpec, send: Send, companies: Companies, slots: BatchSlots) -> Lanes:
    """The lanes of a consumer: one if it delivers the events of one company."""
    if spec.tenant is not None:
        return SingleLane(spec.tenant, spec.consumer_type, send)
    return CompanyLanes(
        spec.consumer_type, send=send, companies=companies, slots=slots, limits=lane_limits(spec)
    )
