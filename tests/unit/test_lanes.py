"""What waits for which company between a shared consumer and the agents."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from events.delivery import Batch
from events.subjects import Tenant
from streams.jetstream import lanes as module
from streams.jetstream.batch_slots import LENT_AFTER, BatchSlots
from streams.jetstream.in_flight import InFlight, JetDelivery
from streams.jetstream.incarnation import Incarnation
from streams.jetstream.lanes import FIRST_RETURN, LONGEST_RETURN, STALLED, Admission, CompanyLanes
from streams.jetstream.specs import LaneLimits
from streams.jetstream.store_clock import StoreClock

LIMITS = LaneLimits(events=20, size=10_000, lane_events=6, lane_size=4_000, batch_events=3, batch_size=2_000)


class Told:
    """What the server was told of deliveries: `+ACK`, `-NAK` with the delay."""

    def __init__(self) -> None:
        self.acks: dict[str, str] = {}
        self._numbers = count(1)
        broker = Silent()
        self._in_flight = InFlight(
            publish=self._publish,
            ack_wait=30,
            incarnation=Incarnation(broker, "wa"),
            store_clock=StoreClock("wa", lambda seconds: None),
        )

    def delivery(self, company: str, *, size: int = 10, sequence: int = 0, times: int = 1) -> JetDelivery:
        number = sequence or next(self._numbers)
        reply = f"$JS.ACK.wa.durable.{times}.{number}.{number}.{number}.0"
        return self._in_flight.add(f"v1.messages.upsert.{company}", b"x" * size, None, reply)

    async def _publish(self, reply: str, payload: bytes) -> None:
        self.acks[reply.split(".")[5]] = payload.decode()

    def given_back(self) -> list[float]:
        return [
            float(text.partition(":")[2].strip(" }")) / 1e9
            for text in self.acks.values()
            if text.startswith("-NAK")
        ]


class Silent:
    """A JetStream API that is never asked."""

    async def api(self, subject: str, body: object = None) -> dict[str, object]:
        raise AssertionError(subject)


class Companies:
    """Serves all but those that a test names."""

    def __init__(self) -> None:
        self.admissions: dict[str, Admission] = {}
        self.unprepared: dict[str, asyncio.Event] = {}
        self.out = False

    def admit(self, company: str) -> Admission:
        return self.admissions.get(company, "served")

    async def serve(self, tenant: Tenant) -> None:
        if tenant.company in self.unprepared:
            await self.unprepared[tenant.company].wait()

    async def outage(self) -> bool:
        return self.out


class Clock:
    """The time that lanes see, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


@pytest.fixture
async def told() -> Told:
    return Told()


class Stage:
    """Lanes whose batches the test takes."""

    def __init__(self, told: Told, slots: int = 10) -> None:
        self.told = told
        self.companies = Companies()
        self.batches: asyncio.Queue[Batch] = asyncio.Queue()
        self.lanes = CompanyLanes(
            "realtime",
            send=self.batches.put,
            companies=self.companies,
            slots=BatchSlots(slots),
            limits=LIMITS,
        )

    async def arrive(self, company: str, number: int = 1, size: int = 10) -> None:
        await self.lanes.hand_over([self.told.delivery(company, size=size) for _ in range(number)])

    async def batch(self) -> Batch:
        async with asyncio.timeout(5):
            return await self.batches.get()

    async def settle_down(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def stage(told: Told) -> Stage:
    return Stage(told)


def sizes(batch: Batch) -> tuple[str, int]:
    return batch.tenant.company, len(batch.deliveries)


@pytest.mark.rule("FLT-2")
async def test_what_arrives_while_a_batch_is_written_is_the_next_batch(stage: Stage) -> None:
    await stage.arrive("Kopi")
    first = await stage.batch()
    await stage.arrive("Kopi")
    await stage.arrive("Kopi")
    await stage.settle_down()
    assert stage.batches.empty()
    first.release()
    assert (sizes(first), sizes(await stage.batch())) == (("Kopi", 1), ("Kopi", 2))


@pytest.mark.rule("FLT-2")
async def test_each_company_has_batches_of_its_own_in_the_order_of_arrival(stage: Stage) -> None:
    mixed = [stage.told.delivery(company) for company in ("Kopi", "Teh", "Kopi", "Teh", "Teh")]
    await stage.lanes.hand_over(mixed)
    batches = [await stage.batch(), await stage.batch()]
    assert [sizes(batch) for batch in batches] == [("Kopi", 2), ("Teh", 3)]
    assert [list(batch.deliveries) for batch in batches] == [[mixed[0], mixed[2]], [mixed[1], *mixed[3:]]]


async def test_a_batch_has_at_most_its_events_and_bytes_but_takes_one_of_any_size(stage: Stage) -> None:
    sizes_of_all = [10, 10, 10, 10, 1_500, 1_500, 9_000]
    deliveries = [stage.told.delivery("Kopi", size=size) for size in sizes_of_all]
    handing_over = asyncio.create_task(stage.lanes.hand_over(deliveries))
    found: list[list[int]] = []
    while sum(map(len, found)) < len(deliveries):
        batch = await stage.batch()
        found.append([len(delivery.data) for delivery in batch.deliveries])
        batch.release()
    await handing_over
    assert found == [[10, 10, 10], [10, 1_500], [1_500], [9_000]]


@pytest.mark.rule("FLT-4")
async def test_the_source_waits_while_a_lane_that_moves_has_its_share(stage: Stage) -> None:
    arriving = asyncio.create_task(stage.arrive("Kopi", LIMITS.lane_events + 3))
    first = await stage.batch()
    await stage.settle_down()
    assert not arriving.done()
    first.release()
    second = await stage.batch()
    second.release()
    async with asyncio.timeout(5):
        await arriving
    assert stage.told.given_back() == []


@pytest.mark.rule("FLT-3")
async def test_a_lane_that_stands_still_holds_up_no_other_and_gives_back_what_exceeds_its_share(
    stage: Stage, clock: Clock
) -> None:
    arriving = asyncio.create_task(stage.arrive("Kopi", LIMITS.lane_events + 1))
    await stage.batch()  # and never released: its table is locked
    clock.now += STALLED + 0.1
    async with asyncio.timeout(5):
        await arriving
    await stage.arrive("Kopi", 4)
    assert len(stage.told.given_back()) >= 1
    await stage.arrive("Teh")
    assert sizes(await stage.batch()) == ("Teh", 1)
    assert stage.lanes.stalled().keys() == {"Kopi"}


@pytest.mark.rule("FLT-3")
async def test_what_is_given_back_comes_later_and_later_and_counts_as_no_attempt(
    stage: Stage, clock: Clock
) -> None:
    stage.companies.admissions["Kopi"] = "waits"
    for times in range(1, 12):
        await stage.lanes.hand_over([stage.told.delivery("Kopi", sequence=7, times=times)])
        assert stage.told.given_back() == [min(FIRST_RETURN * 2 ** (times - 1), LONGEST_RETURN)]
    del stage.companies.admissions["Kopi"]
    await stage.lanes.hand_over([stage.told.delivery("Kopi", sequence=7, times=12)])
    assert (await stage.batch()).deliveries[0].metadata.num_delivered == 1


@pytest.mark.rule("FLT-4")
async def test_an_outage_gives_nothing_back_and_pulls_nothing(stage: Stage, clock: Clock) -> None:
    stage.companies.out = True
    filled = asyncio.create_task(stage.arrive("Kopi", LIMITS.lane_events + 1))
    batch = await stage.batch()
    clock.now += STALLED + 0.1
    arriving = asyncio.create_task(stage.arrive("Kopi", 8))
    await asyncio.sleep(STALLED / 4 + 0.1)
    assert not arriving.done()
    assert stage.told.given_back() == []
    stage.companies.out = False
    batch.release()
    while not arriving.done() or not filled.done():
        (await stage.batch()).release()
    assert stage.told.given_back() == []


@pytest.mark.rule("FLT-4")
async def test_companies_that_stand_still_leave_the_room_to_the_others(stage: Stage, clock: Clock) -> None:
    arriving = asyncio.create_task(
        stage.lanes.hand_over([stage.told.delivery(f"Kopi{number % 5}") for number in range(25)])
    )
    for _ in range(5):
        await stage.batch()
    await stage.settle_down()
    clock.now += STALLED + 0.1
    async with asyncio.timeout(10):
        await arriving
    await stage.arrive("Teh")
    assert sizes(await stage.batch()) == ("Teh", 1)


@pytest.mark.rule("FLT-5")
async def test_an_event_of_a_company_that_is_not_allowed_is_acknowledged_and_not_handled(
    stage: Stage,
) -> None:
    stage.companies.admissions["Big"] = "refused"
    await stage.arrive("Big")
    await stage.settle_down()
    assert list(stage.told.acks.values()) == ["+ACK"]
    assert stage.batches.empty()


@pytest.mark.rule("FLT-6")
async def test_events_wait_for_the_schema_of_their_company_and_others_do_not(stage: Stage) -> None:
    stage.companies.unprepared["Kopi"] = prepared = asyncio.Event()
    await stage.arrive("Kopi", 2)
    await stage.arrive("Teh")
    assert sizes(await stage.batch()) == ("Teh", 1)
    prepared.set()
    assert sizes(await stage.batch()) == ("Kopi", 2)


async def test_a_batch_that_is_not_done_lends_its_slot_to_others(told: Told) -> None:
    stage = Stage(told, slots=1)
    await stage.arrive("Kopi")
    await stage.arrive("Teh")
    assert sizes(await stage.batch()) == ("Kopi", 1)
    began = asyncio.get_running_loop().time()
    assert sizes(await stage.batch()) == ("Teh", 1)
    assert asyncio.get_running_loop().time() - began >= LENT_AFTER / 2


async def test_slots_are_given_back_once_whoever_gives_them_back() -> None:
    slots = BatchSlots(1)
    slot = await slots.take()
    slot.release()
    slot.release()
    await slots.take()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(LENT_AFTER / 4):
            await slots.take()
