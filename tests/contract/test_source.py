"""What a source of events promises, whatever the broker behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from nats.aio.client import Client

from events.delivery import Delivery
from events.subjects import Tenant
from streams.jetstream.broker import Broker
from streams.jetstream.pull_requests import EXPIRES
from streams.jetstream.pull_source import PullSource
from streams.jetstream.specs import consumers
from tests.reconcile import Lag, default_settings, read_lag, reconcile
from tests.sources import PATIENCE, SUBJECT, Reader, ack_all, connected, eventually, pull_source

# For the tests in which it has to pass. In all others what is held on a busy machine must not come again.
ACK_WAIT = 1.0
_LONG_ACK_WAIT = 60.0
# Of which the quickest counts, where the promise is that something is not waited for.
_TRIES = 5

# A fleet pulls on for the other companies.
one_company = pytest.mark.parametrize("rig", [False], ids=["one company"], indirect=True)
short_ack_wait = pytest.mark.parametrize("ack_wait", [ACK_WAIT])


class Rig:
    """A place to publish, and sources that share it."""

    def __init__(self, url: str, tenant: Tenant, ack_wait: float, *, fleet: bool) -> None:
        self._url = url
        self._tenant = tenant
        shared = {"tenants": (), "fleet_durable": f"wa_fleet_{tenant.company}_"} if fleet else {}
        self._config = default_settings(realtime_ack_wait=ack_wait, **shared)
        self._owner = None if fleet else tenant
        self._stack = AsyncExitStack()
        self._brokers: dict[PullSource, Broker] = {}
        self._broker: Broker | None = None
        self._client = Client()

    async def begin(self) -> None:
        self._broker = await self._stack.enter_async_context(connected(self._url))
        await reconcile(self._broker, self._config, [self._owner])
        await self._client.connect(self._url)
        if self._owner is None:
            # Else what earlier tests left would be in its batches' places.
            await self._client.jetstream().purge_stream(self._config.realtime_stream)

    async def publish(self, *bodies: bytes) -> None:
        js = self._client.jetstream()
        for body in bodies:
            await js.publish(self._tenant.subject(SUBJECT), body)

    async def open(self, reader: Reader, *, batch_size: int = 10, drain_budget: float = 5.0) -> PullSource:
        broker = await self._stack.enter_async_context(connected(self._url, on_closed=lambda: None))
        source = pull_source(
            broker, self._tenant, self._config, reader, batch_size=batch_size, drain_budget=drain_budget
        )
        await source.start()
        self._brokers[source] = broker
        return source

    async def crash(self, source: PullSource) -> None:
        await self._brokers[source].stop()

    async def waiting(self) -> int:
        return (await self._lag()).pending

    async def unsettled(self) -> int:
        return sum(await self._lag())

    async def _lag(self) -> Lag:
        assert self._broker is not None
        durable = consumers(self._config, self._owner)[0].durable
        return await read_lag(self._broker, self._config.realtime_stream, durable)

    async def close(self) -> None:
        # What a failed test left unsettled need not be waited for.
        await asyncio.gather(*(asyncio.wait_for(source.stop(), 15) for source in self._brokers))
        await self._client.close()
        await self._stack.aclose()


@pytest.fixture
def ack_wait() -> float:
    """Seconds until what is not settled comes again."""
    return _LONG_ACK_WAIT


@pytest.fixture(params=[False, True], ids=["one company", "fleet"])
async def rig(
    request: pytest.FixtureRequest, nats_url: str, tenant: Tenant, ack_wait: float
) -> AsyncIterator[Rig]:
    """A stream of the session's NATS, and a consumer of one company's events, or of all companies'."""
    rig = Rig(nats_url, tenant, ack_wait, fleet=request.param)
    await rig.begin()
    yield rig
    await rig.close()


@pytest.fixture
def reader() -> Reader:
    return Reader()


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def all_settled(rig: Rig) -> None:
    """Wait until nothing waits and nothing is unsettled: the server hears of an ack a moment after its sender."""

    async def settled() -> bool:
        return await rig.unsettled() == 0

    await eventually(settled)


@pytest.mark.rule("CON-7")
async def test_keeps_the_order_of_the_stream(rig: Rig, reader: Reader) -> None:
    await rig.publish(*numbers(100))
    await rig.open(reader)
    taken = await reader.take(100)
    assert [delivery.data for delivery in taken] == numbers(100)
    sequences = [delivery.metadata.stream_sequence for delivery in taken]
    assert sequences == sorted(set(sequences))
    await ack_all(taken)


async def test_loses_nothing_while_messages_keep_coming(rig: Rig, reader: Reader) -> None:
    await rig.open(reader, batch_size=64)
    publishing = asyncio.create_task(rig.publish(*numbers(500)))
    taken: list[Delivery] = []
    while len(taken) < 500:
        more = await reader.take(1)
        await ack_all(more)
        taken += more
    await publishing
    assert [delivery.data for delivery in taken] == numbers(500)
    await all_settled(rig)


async def test_a_message_comes_as_it_was_published(rig: Rig, reader: Reader, tenant: Tenant) -> None:
    before = time.time_ns()
    await rig.publish(b'{"a": 1}')
    await rig.open(reader)
    batch = await reader.batch()
    (delivery,) = batch.deliveries
    assert (batch.tenant, batch.consumer_type) == (tenant, "realtime")
    assert delivery.subject == tenant.subject(SUBJECT)
    assert delivery.data == b'{"a": 1}'
    assert not delivery.headers
    assert delivery.metadata.num_delivered == 1
    assert before - 10**9 < delivery.metadata.stored_ns < time.time_ns() + 10**9
    await delivery.ack()


async def test_a_lone_message_is_not_kept_waiting_for_others(rig: Rig, reader: Reader) -> None:
    """Not until the pull request expires, that is."""
    await rig.open(reader, batch_size=1000)
    waited = []
    for _ in range(_TRIES):
        published = time.monotonic()
        await rig.publish(b"alone")
        batch = await reader.batch()
        waited.append(time.monotonic() - published)
        assert len(batch.deliveries) == 1
        await ack_all(batch.deliveries)
        batch.release()
    # A request is made as soon as the one before is answered: whoever waits for its end waits nearly all its time.
    assert min(waited) < EXPIRES / 2


async def test_the_next_batch_waits_for_the_release_of_this_one(rig: Rig, reader: Reader) -> None:
    await rig.publish(*numbers(20))
    await rig.open(reader, batch_size=10)
    first = await reader.batch()
    await ack_all(first.deliveries)
    assert await reader.gets_nothing(0.3)
    first.release()
    second = await reader.batch()
    assert [delivery.data for delivery in second.deliveries] == numbers(20)[10:]
    await ack_all(second.deliveries)


@short_ack_wait
async def test_what_a_crashed_holder_did_not_settle_comes_again_after_the_ack_wait(
    rig: Rig, reader: Reader
) -> None:
    await rig.publish(b"dropped")
    source = await rig.open(Reader(), drain_budget=0.1)
    await rig.crash(source)
    source = await rig.open(reader)
    again = (await reader.take(1))[0]
    assert again.data == b"dropped"
    await again.ack()


@pytest.mark.rule("CON-8")
@pytest.mark.parametrize("ack_wait", [2 * ACK_WAIT])
async def test_what_is_held_longer_than_the_ack_wait_does_not_come_again(
    rig: Rig, reader: Reader, ack_wait: float
) -> None:
    await rig.publish(b"slow")
    await rig.open(reader)
    (slow,) = await reader.take(1)
    other = Reader()
    await rig.open(other)
    assert await other.gets_nothing(1.5 * ack_wait)
    await slow.ack()
    await all_settled(rig)
    assert await reader.gets_nothing(0.05)
    assert await other.gets_nothing(0.05)


async def test_a_nak_without_delay_comes_again_at_once(rig: Rig, reader: Reader) -> None:
    await rig.publish(b"again")
    await rig.open(reader)
    await (await reader.take(1))[0].nak()
    (again,) = await reader.take(1, within=_LONG_ACK_WAIT / 2)
    assert again.metadata.num_delivered == 2
    await again.ack()


async def test_the_delay_of_a_nak_is_respected(rig: Rig, reader: Reader) -> None:
    await rig.publish(b"later")
    await rig.open(reader)
    (delivery,) = await reader.take(1)
    naked = time.monotonic()
    await delivery.nak(1.5)
    (again,) = await reader.take(1)
    assert time.monotonic() - naked >= 1.45
    assert again.metadata.num_delivered == 2
    assert again.metadata.stored_ns == delivery.metadata.stored_ns
    await again.ack()


async def test_a_delayed_nak_does_not_hold_up_others(rig: Rig, reader: Reader) -> None:
    await rig.publish(*numbers(10))
    await rig.open(reader)
    for delivery in await reader.take(10):
        await delivery.nak(60)
    await rig.publish(b"new")
    (new,) = await reader.take(1)
    assert new.data == b"new"
    await new.ack()


@short_ack_wait
async def test_what_is_terminated_never_comes_again(rig: Rig, reader: Reader) -> None:
    await rig.publish(b"hopeless")
    await rig.open(reader)
    await (await reader.take(1))[0].term()
    assert await reader.gets_nothing(1.5 * ACK_WAIT)
    await all_settled(rig)


async def test_only_the_first_settlement_counts(rig: Rig, reader: Reader) -> None:
    await rig.publish(b"once")
    await rig.open(reader)
    (delivery,) = await reader.take(1)
    await delivery.ack()
    await delivery.nak()
    await delivery.term()
    assert await reader.gets_nothing(0.5)
    await all_settled(rig)


@pytest.mark.rule("CON-6")
async def test_two_sources_share_the_messages_without_doubles(rig: Rig, reader: Reader) -> None:
    other = Reader()
    await rig.open(reader)
    await rig.open(other)
    seen: list[bytes] = []

    async def work(own: Reader) -> None:
        while True:
            batch = await own.batch(within=60)
            await asyncio.sleep(0.02)
            await ack_all(batch.deliveries)
            seen.extend(delivery.data for delivery in batch.deliveries)
            batch.release()

    workers = [asyncio.create_task(work(own)) for own in (reader, other)]
    await rig.publish(*numbers(300))
    await all_settled(rig)
    for worker in workers:
        worker.cancel()
    await asyncio.wait(workers)
    assert sorted(seen) == sorted(numbers(300))


async def test_a_clean_stop_leaves_nothing_unsettled_and_nothing_comes_again(
    rig: Rig, reader: Reader
) -> None:
    source = await rig.open(reader)
    handled: list[bytes] = []

    async def work() -> None:
        while True:
            batch = await reader.batch(within=60)
            await asyncio.sleep(0.03)
            await ack_all(batch.deliveries)
            handled.extend(delivery.data for delivery in batch.deliveries)
            batch.release()

    worker = asyncio.create_task(work())
    publishing = asyncio.create_task(rig.publish(*numbers(400)))

    async def under_way() -> bool:
        return len(handled) >= 50

    await eventually(under_way)
    await source.stop()
    await publishing
    worker.cancel()
    await asyncio.wait({worker})
    rest = Reader()
    await rig.open(rest)
    left = await rest.take(400 - len(handled)) if len(handled) < 400 else []
    assert {delivery.metadata.num_delivered for delivery in left} <= {1}
    assert sorted(handled + [delivery.data for delivery in left]) == sorted(numbers(400))
    await ack_all(left)


@one_company
async def test_the_next_batch_is_not_pulled_before_the_release_of_this_one(rig: Rig, reader: Reader) -> None:
    """So no source has more than two batches in a worker: the agent releases one when it begins to write it."""
    await rig.publish(*numbers(20))
    await rig.open(reader, batch_size=10)
    first = await reader.batch()
    await ack_all(first.deliveries)
    assert await reader.gets_nothing(0.3)
    assert await rig.waiting() == 10
    first.release()
    await ack_all((await reader.batch()).deliveries)
    await all_settled(rig)


@pytest.mark.parametrize("rig", [True], ids=["fleet"], indirect=True)
async def test_a_stop_waits_for_all_that_waits_in_the_lanes(rig: Rig, reader: Reader) -> None:
    await rig.publish(*numbers(20))
    source = await rig.open(reader, batch_size=10, drain_budget=PATIENCE)
    first = await reader.batch()

    async def all_pulled() -> bool:
        return await rig.waiting() == 0

    await eventually(all_pulled)
    stopping = asyncio.create_task(_as_coroutine(source))
    first.release()
    taken = [*first.deliveries, *await reader.take(10)]
    await ack_all(taken)
    await asyncio.wait_for(stopping, PATIENCE)
    assert [delivery.data for delivery in taken] == numbers(20)
    assert await reader.gets_nothing(0.1)
    await all_settled(rig)


@one_company
async def test_a_stop_waits_for_the_batch_that_is_not_released(rig: Rig, reader: Reader) -> None:
    await rig.publish(*numbers(20))
    source = await rig.open(reader, batch_size=10)
    first = await reader.batch()
    stopping = asyncio.create_task(_as_coroutine(source))
    await asyncio.sleep(0.1)
    assert not stopping.done()
    await ack_all(first.deliveries)
    first.release()
    await asyncio.wait_for(stopping, PATIENCE)
    assert await reader.gets_nothing(0.1)
    assert await rig.waiting() == 10


async def test_a_stop_gives_back_at_once_what_is_not_settled_in_its_time(rig: Rig, reader: Reader) -> None:
    await rig.publish(b"unfinished")
    # Longer than the pull request that is under way: else the message comes to the same source once more.
    source = await rig.open(reader, drain_budget=1.5 * EXPIRES)
    (unfinished,) = await reader.take(1)
    await source.stop()
    other = Reader()
    await rig.open(other)
    (again,) = await other.take(1, within=_LONG_ACK_WAIT / 2)
    assert again.metadata.num_delivered == 2
    await again.ack()
    await unfinished.ack()


async def _as_coroutine(source: PullSource) -> None:
    await source.stop()
