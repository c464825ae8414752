"""What the server knows of companies: whose durables there are, what is left to each, and which nobody needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import nats
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from events.subjects import Tenant
from streams.config.settings import Settings
from streams.jetstream.broker import Broker
from streams.jetstream.company_durables import plan_drop, survey
from streams.jetstream.company_lag import Lag, shared_lag
from streams.jetstream.specs import worker_consumers
from streams.jetstream.topology import apply, plan
from testkit.servers import NatsServer
from tests.reconcile import default_settings, reconcile
from tests.sources import connected, eventually

STREAM = "wa_events_stream"
FLEET = default_settings(tenants=())


@pytest.fixture(scope="module")
def own_server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture
async def broker(own_server: NatsServer) -> AsyncIterator[Broker]:
    """A connection; every stream is gone afterwards."""
    async with connected(own_server.url) as broker:
        yield broker
        for name in (await broker.api("STREAM.NAMES"))["streams"] or ():
            await broker.api(f"STREAM.DELETE.{name}")


@pytest.fixture
async def client(own_server: NatsServer) -> AsyncIterator[Client]:
    client = await nats.connect(own_server.url)
    yield client
    await client.close()


@pytest.fixture
def js(client: Client) -> JetStreamContext:
    return client.jetstream()


async def _start(broker: Broker, settings: Settings = FLEET) -> None:
    """Make what a worker makes at its start."""
    await apply(broker, await plan(broker, settings, worker_consumers(settings)))


async def _publish(js: JetStreamContext, company: str, count: int, base: str = "v1.messages.upsert") -> None:
    for _ in range(count):
        await js.publish(f"{base}.{company}", b"{}")


async def _lags(broker: Broker, *companies: str) -> dict[str, Lag]:
    found = await survey(broker, FLEET)
    shared = found.shared("realtime")
    assert shared is not None
    return await shared_lag(broker, found.specs[0], shared, companies)


async def _consumer_names(broker: Broker) -> set[str]:
    return set((await broker.api(f"CONSUMER.NAMES.{STREAM}"))["consumers"] or ())


async def _drops(broker: Broker, *companies: str) -> tuple[set[str], list[str]]:
    drops, kept = plan_drop(await survey(broker, FLEET), companies)
    return {change.name for change in drops}, kept


async def test_durables_are_told_apart_by_name_and_by_what_they_deliver(
    broker: Broker, js: JetStreamContext
) -> None:
    await reconcile(broker, default_settings(), [Tenant("Acme")])
    await _start(broker)
    old = {"wa_listener_Old": "v1.chats.upsert.Old", "wa_realtime_archive": "v1.*.*.*", "wa_realtime_": ">"}
    for name, subject in old.items():
        config = ConsumerConfig(durable_name=name, filter_subject=subject, ack_policy=AckPolicy.EXPLICIT)
        await js.add_consumer(STREAM, config)
    await _publish(js, "Busy", 2)
    await _publish(js, "Busy", 1, "v1.history.chats")

    found = await survey(broker, FLEET)

    owners = {each.name: (each.owner, each.company) for each in found.durables}
    assert owners == {
        "wa_realtime_Acme": ("company", "Acme"),
        "wa_history_Acme": ("company", "Acme"),
        "v1_dlq_worker_consumer_Acme": ("company", "Acme"),
        "wa_fleet_realtime": ("fleet", None),
        "wa_fleet_history": ("fleet", None),
        "wa_fleet_dlq": ("fleet", None),
        "wa_listener_Old": ("existing", "Old"),
    }
    assert found.stored == {"Busy": {"realtime": 2, "historical": 1}}
    assert found.companies == {"Acme", "Old", "Busy"}


async def test_without_streams_there_is_nothing(broker: Broker) -> None:
    found = await survey(broker, FLEET)
    assert (found.durables, found.companies) == ([], set())


@pytest.mark.rule("FLT-11")
async def test_the_lag_of_each_company_is_what_the_shared_consumer_has_not_settled(
    broker: Broker, js: JetStreamContext
) -> None:
    await _start(broker)
    await _publish(js, "A", 3)
    await _publish(js, "B", 2)
    await _publish(js, "B", 1, "v1.chats.upsert")
    assert await _lags(broker, "A", "B", "C") == {"A": Lag(3, 3), "B": Lag(3, 3), "C": Lag(0, 0)}

    # Nobody can tell whose two of these four are not settled: bounds.
    pull = await js.pull_subscribe_bind("wa_fleet_realtime", STREAM)
    taken = await pull.fetch(4)
    await taken[1].ack_sync()
    await taken[3].ack_sync()
    assert await _lags(broker, "A", "B") == {"A": Lag(1, 2), "B": Lag(2, 3)}

    # As many as there are: then it is exact, and all of it is A's.
    await taken[0].ack_sync()
    await taken[2].ack_sync()
    assert await _lags(broker, "A", "B") == {"A": Lag(0, 0), "B": Lag(2, 2)}
    for message in await pull.fetch(2):
        await message.ack_sync()
    assert await _lags(broker, "A", "B") == {"A": Lag(0, 0), "B": Lag(0, 0)}
    assert await _consumer_names(broker) == {"wa_fleet_realtime"}


@pytest.mark.rule("FLT-11")
async def test_counting_three_hundred_companies_leaves_no_consumer_behind(
    broker: Broker, js: JetStreamContext
) -> None:
    await _start(broker)
    names = [f"C{number}" for number in range(300)]
    await asyncio.gather(*(_publish(js, name, 1) for name in names))

    assert await _lags(broker, *names) == dict.fromkeys(names, Lag(1, 1))
    assert await _consumer_names(broker) == {"wa_fleet_realtime"}


@pytest.mark.rule("FLT-10")
async def test_durables_whose_positions_the_fleet_has_taken_over_are_dropped(
    broker: Broker, js: JetStreamContext
) -> None:
    await reconcile(broker, default_settings(), [Tenant("A"), Tenant("B")])
    await _publish(js, "A", 3)
    pull = await js.pull_subscribe_bind("wa_realtime_A", STREAM)
    for message in await pull.fetch(2):
        await message.ack_sync()
    await pull.unsubscribe()
    await _start(broker)

    # The fleet begins at the start of the stream: B has settled nothing, and nothing is left to it.
    drops, kept = await _drops(broker, "A", "B")
    owners = ("wa_realtime_", "wa_history_", "v1_dlq_worker_consumer_")
    assert drops == {owner + company for owner in owners for company in ("A", "B")}
    assert kept == []
    assert await _drops(broker, "B") == ({owner + "B" for owner in owners}, [])


@pytest.mark.rule("FLT-10")
async def test_a_durable_is_kept_while_somebody_pulls_or_before_the_fleet_is_there(
    broker: Broker, js: JetStreamContext
) -> None:
    await reconcile(broker, default_settings(), [Tenant("A")])
    drops, kept = await _drops(broker, "A")
    assert drops == set()
    assert all("start the worker first" in line for line in kept)

    await _start(broker)
    pull = await js.pull_subscribe_bind("wa_realtime_A", STREAM)
    waiting = asyncio.create_task(pull.fetch(1, timeout=30))

    async def pulls() -> bool:
        return bool((await broker.api(f"CONSUMER.INFO.{STREAM}.wa_realtime_A"))["num_waiting"])

    await eventually(pulls)
    drops, kept = await _drops(broker, "A")
    assert drops == {"wa_history_A", "v1_dlq_worker_consumer_A"}
    assert kept == ["consumer wa_realtime_A is kept: somebody pulls from it now (1 requests wait)"]
    waiting.cancel()


@pytest.mark.rule("FLT-10")
async def test_what_is_left_to_a_durable_used_beside_the_fleet_is_not_given_up(
    broker: Broker, js: JetStreamContext
) -> None:
    await _start(broker)
    await reconcile(broker, default_settings(), [Tenant("A")])
    await _publish(js, "A", 2)
    # The fleet leaves A out, and acknowledges its events without handling them.
    shared = await js.pull_subscribe_bind("wa_fleet_realtime", STREAM)
    for message in await shared.fetch(2):
        await message.ack_sync()
    pull = await js.pull_subscribe_bind("wa_realtime_A", STREAM)
    [first] = await pull.fetch(1)
    await first.ack_sync()

    drops, kept = await _drops(broker, "A")
    assert "wa_realtime_A" not in drops
    [line] = kept
    assert "1 events are left to it" in line
    assert "let a worker for A finish them" in line

    [second] = await pull.fetch(1)
    await second.ack_sync()
    assert "wa_realtime_A" in (await _drops(broker, "A"))[0]


@pytest.mark.rule("FLT-10")
async def test_a_durable_that_is_behind_the_start_of_the_fleet_is_kept(
    broker: Broker, js: JetStreamContext
) -> None:
    await reconcile(broker, default_settings(), [Tenant("A")])
    await _publish(js, "A", 4)
    config = ConsumerConfig(
        durable_name="wa_fleet_realtime",
        filter_subjects=list(worker_consumers(FLEET)[0].subjects),
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=3,
    )
    await js.add_consumer(STREAM, config)
    drops, kept = await _drops(broker, "A")
    assert "wa_realtime_A" not in drops
    assert any("wa_fleet_realtime began after them" in line for line in kept)
