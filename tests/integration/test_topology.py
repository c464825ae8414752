"""Streams and consumers on a real server: made, compared, taken over, never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import nats
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RetentionPolicy

from events.subjects import Tenant
from streams.jetstream import topology
from streams.jetstream.broker import Broker
from streams.jetstream.changes import TopologyChange, TopologyError
from streams.jetstream.consumer_changes import plan_consumer
from streams.jetstream.consumer_state import ConsumerStates, has_delivery_limit, oldest_age
from streams.jetstream.specs import ConsumerSpec, consumers
from testkit.servers import NatsServer
from tests.reconcile import default_settings, read_lag, reconcile
from tests.sources import Reader, ack_all, connected, eventually, pull_source

CONFIG = default_settings()
FLEET = default_settings(tenants=())
ACME = Tenant("Acme")
OTHER = Tenant("Other")
UPSERT = ACME.subject("v1.messages.upsert")


@pytest.fixture
def own_server() -> Iterator[NatsServer]:
    """An empty NATS."""
    with NatsServer() as server:
        yield server


@pytest.fixture
async def broker(own_server: NatsServer) -> AsyncIterator[Broker]:
    async with connected(own_server.url) as broker:
        yield broker


@pytest.fixture
async def client(own_server: NatsServer) -> AsyncIterator[Client]:
    client = await nats.connect(own_server.url)
    yield client
    await client.close()


@pytest.fixture
def js(client: Client) -> JetStreamContext:
    return client.jetstream()


async def comes_to_lag(broker: Broker, pending: int, ack_pending: int) -> None:
    """Wait for it: a consumer hears of messages and of acks a moment after their senders."""

    async def reached() -> bool:
        return await read_lag(broker, "wa_events_stream", "wa_realtime_Acme") == (pending, ack_pending)

    await eventually(reached)


def actions(changes: list[TopologyChange]) -> list[tuple[str, str]]:
    return [(change.name, change.action) for change in changes]


async def _limited(broker: Broker) -> list[ConsumerSpec]:
    return [spec for spec in consumers(CONFIG, ACME) if await has_delivery_limit(broker, spec)]


async def _settle(js: JetStreamContext, durable: str, count: int) -> None:
    subscription = await js.pull_subscribe_bind(durable, "wa_events_stream")
    for message in await subscription.fetch(count):
        await message.ack_sync()


async def _start_of_fleet(broker: Broker) -> str:
    """What would be done for the shared consumer of real-time events."""
    [change] = await plan_consumer(broker, consumers(FLEET, None)[0])
    return change.text


@pytest.mark.rule("FLT-1")
async def test_a_fleet_begins_where_the_company_that_is_furthest_behind_is(
    broker: Broker, js: JetStreamContext
) -> None:
    await reconcile(broker, CONFIG, [ACME, OTHER])
    for number in range(10):
        await js.publish(UPSERT if number % 2 == 0 else OTHER.subject("v1.messages.upsert"), b"%d" % number)
    await _settle(js, "wa_realtime_Acme", 3)  # sequences 1, 3, 5
    await _settle(js, "wa_realtime_Other", 2)  # sequences 2, 4
    assert await _start_of_fleet(broker) == "take over from wa_realtime_Other at sequence 5"
    await reconcile(broker, FLEET, [None])
    assert await read_lag(broker, "wa_events_stream", "wa_fleet_realtime") == (6, 0)


@pytest.mark.rule("FLT-1")
async def test_a_company_that_has_nothing_left_does_not_take_a_fleet_back(
    broker: Broker, js: JetStreamContext
) -> None:
    await reconcile(broker, CONFIG, [ACME, OTHER])
    await js.publish(UPSERT, b"the only one of a quiet company")
    await _settle(js, "wa_realtime_Acme", 1)
    for number in range(5):
        await js.publish(OTHER.subject("v1.messages.upsert"), b"%d" % number)
    await _settle(js, "wa_realtime_Other", 4)
    assert await _start_of_fleet(broker) == "take over from wa_realtime_Other at sequence 6"


@pytest.mark.rule("FLT-1")
async def test_a_fleet_takes_over_from_the_existing_service_and_trusts_no_narrower_durable(
    broker: Broker, js: JetStreamContext
) -> None:
    await topology.apply(broker, await topology.plan(broker, CONFIG, []))
    for number in range(4):
        await js.publish(UPSERT, b"%d" % number)
        await js.publish(ACME.subject("v1.chats.upsert"), b"%d" % number)
    old = await js.pull_subscribe(UPSERT, durable="wa_listener_Acme", stream="wa_events_stream")
    for message in await old.fetch(2):  # sequences 1 and 3
        await message.ack_sync()
    assert await _start_of_fleet(broker) == "take over from wa_listener_Acme at sequence 4"
    for message in await old.fetch(2):  # 5 and 7: it has nothing left, but was told of no chats
        await message.ack_sync()
    assert await _start_of_fleet(broker) == "take over from wa_listener_Acme at sequence 8"


@pytest.mark.rule("FLT-1")
async def test_without_any_durable_a_fleet_begins_at_the_start_and_a_company_begins_where_it_is(
    broker: Broker, js: JetStreamContext
) -> None:
    await topology.apply(broker, await topology.plan(broker, CONFIG, []))
    assert await _start_of_fleet(broker) == "create, from the start of the stream"
    await reconcile(broker, FLEET, [None])
    for number in range(6):
        await js.publish(UPSERT, b"%d" % number)
    await _settle(js, "wa_fleet_realtime", 4)
    [change] = await plan_consumer(broker, consumers(CONFIG, ACME)[0])
    assert change.text == "take over from wa_fleet_realtime at sequence 5"


@pytest.mark.rule("FLT-1")
async def test_many_companies_are_read_page_by_page(broker: Broker, js: JetStreamContext) -> None:
    tenants = [Tenant(f"Kopi{number}") for number in range(300)]
    await topology.apply(broker, await topology.plan(broker, CONFIG, []))
    for tenant in tenants:
        [change] = await plan_consumer(broker, consumers(CONFIG, tenant)[0])
        await topology.apply(broker, [change])
    await js.publish(tenants[-1].subject("v1.messages.upsert"), b"1")
    await js.publish(tenants[-1].subject("v1.messages.upsert"), b"2")
    await _settle(js, f"wa_realtime_{tenants[-1].company}", 1)
    assert await _start_of_fleet(broker) == f"take over from wa_realtime_{tenants[-1].company} at sequence 2"


@pytest.mark.rule("CON-1")
async def test_makes_what_an_empty_server_lacks(broker: Broker, js: JetStreamContext) -> None:
    changes = await reconcile(broker, CONFIG, [ACME, OTHER])
    assert {change.action for change in changes} == {"create"}
    assert len(changes) == 9
    realtime = (await js.stream_info("wa_events_stream")).config
    assert realtime.subjects is not None
    assert realtime.subjects[0] == "v1.connection.update.*"
    assert len(realtime.subjects) == 7
    assert realtime.max_age == 30 * 86_400
    history = (await js.stream_info("wa_history_events_stream")).config
    assert history.retention == RetentionPolicy.LIMITS
    dlq = (await js.stream_info("dlq_stream")).config
    assert (dlq.subjects, dlq.max_age) == (["v1.dlq.>"], 7 * 86_400)


@pytest.mark.rule("CON-3")
@pytest.mark.parametrize(
    ("stream", "durable", "ack_wait", "filters"),
    [
        ("wa_events_stream", "wa_realtime_Acme", 30, 7),
        ("wa_history_events_stream", "wa_history_Acme", 60, 3),
        ("dlq_stream", "v1_dlq_worker_consumer_Acme", 30, 1),
    ],
)
async def test_consumers_are_pull_explicit_unlimited_and_from_the_start(
    broker: Broker, stream: str, durable: str, ack_wait: int, filters: int
) -> None:
    await reconcile(broker, CONFIG, [ACME])
    config = (await broker.api(f"CONSUMER.INFO.{stream}.{durable}"))["config"]
    assert "deliver_subject" not in config
    assert config["ack_policy"] == "explicit"
    assert config["deliver_policy"] == "all"
    assert config["ack_wait"] == ack_wait * 10**9
    assert config["max_ack_pending"] == -1
    assert config["max_deliver"] == -1
    subjects = config.get("filter_subjects") or [config["filter_subject"]]
    assert len(subjects) == filters
    assert all(subject.endswith(".Acme") for subject in subjects)


async def test_a_second_time_there_is_nothing_to_do(broker: Broker) -> None:
    await reconcile(broker, CONFIG, [ACME])
    assert await reconcile(broker, CONFIG, [ACME]) == []


async def test_replicas_that_start_together_do_not_collide(own_server: NatsServer, broker: Broker) -> None:
    async with connected(own_server.url) as other:
        await asyncio.gather(*(reconcile(which, CONFIG, [ACME]) for which in (broker, other) * 3))
    assert await reconcile(broker, CONFIG, [ACME]) == []


@pytest.mark.rule("CON-5")
async def test_takes_over_from_the_old_push_durable_at_its_ack_floor(
    broker: Broker, js: JetStreamContext
) -> None:
    streams_only = await topology.plan(broker, CONFIG, [])
    await topology.apply(broker, streams_only)
    for number in range(1000):
        await js.publish(UPSERT, b"%d" % number)
    old = await js.subscribe(UPSERT, durable="wa_listener_Acme", stream="wa_events_stream", manual_ack=True)
    for _ in range(300):
        await (await old.next_msg(5)).ack()
    await js._nc.flush()

    async def all_acked() -> bool:
        info = await js.consumer_info("wa_events_stream", "wa_listener_Acme")
        return info.ack_floor is not None and info.ack_floor.stream_seq == 300

    await eventually(all_acked)
    changes = await reconcile(broker, CONFIG, [ACME])
    assert ("wa_realtime_Acme", "take_over") in actions(changes)
    assert ("wa_history_Acme", "create") in actions(changes)

    reader = Reader()
    source = pull_source(broker, ACME, CONFIG, reader, batch_size=100)
    await source.start()
    taken = await reader.take(700)
    assert [delivery.data for delivery in taken] == [b"%d" % number for number in range(300, 1000)]
    await ack_all(taken)
    await source.stop()
    await comes_to_lag(broker, 0, 0)

    async def left_to_the_old_one() -> bool:
        info = await js.consumer_info("wa_events_stream", "wa_listener_Acme")
        return bool(info.num_ack_pending == 700)

    await eventually(left_to_the_old_one)


@pytest.mark.rule("CON-5")
async def test_the_dlq_durable_begins_where_the_shared_one_stands(
    broker: Broker, js: JetStreamContext
) -> None:
    await topology.apply(broker, await topology.plan(broker, CONFIG, []))
    for number in range(4):
        await js.publish("v1.dlq.Acme", b"%d" % number)
    old = await js.pull_subscribe("v1.dlq.>", durable="v1_dlq_worker_consumer", stream="dlq_stream")
    for message in await old.fetch(3):
        await message.ack_sync()
    await reconcile(broker, CONFIG, [ACME])
    assert await read_lag(broker, "dlq_stream", "v1_dlq_worker_consumer_Acme") == (1, 0)
    assert await topology.drop_old(broker, consumers(CONFIG, ACME)) == []
    assert await js.consumer_info("dlq_stream", "v1_dlq_worker_consumer")


@pytest.mark.rule("CON-5")
async def test_an_old_durable_is_dropped_only_by_command_and_only_after_its_successor_exists(
    broker: Broker, js: JetStreamContext
) -> None:
    await topology.apply(broker, await topology.plan(broker, CONFIG, []))
    await js.subscribe(UPSERT, durable="wa_listener_Acme", stream="wa_events_stream", manual_ack=True)
    with pytest.raises(TopologyError, match="start the worker first"):
        await topology.drop_old(broker, consumers(CONFIG, ACME))
    await reconcile(broker, CONFIG, [ACME])
    assert await js.consumer_info("wa_events_stream", "wa_listener_Acme")
    assert actions(await topology.drop_old(broker, consumers(CONFIG, ACME))) == [
        ("wa_listener_Acme", "delete")
    ]
    assert await topology.drop_old(broker, consumers(CONFIG, ACME)) == []
    assert await reconcile(broker, CONFIG, [ACME]) == []


@pytest.mark.rule("CON-1")
async def test_an_interest_stream_is_left_with_a_warning(
    broker: Broker, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    await js.add_stream(
        name="wa_history_events_stream",
        subjects=[f"{base}.*" for base in CONFIG.historical_subjects],
        retention=RetentionPolicy.INTEREST,
        max_age=30 * 86_400,
    )
    changes = await reconcile(broker, CONFIG, [ACME])
    assert ("wa_history_events_stream", "warning") in actions(changes)
    config = (await js.stream_info("wa_history_events_stream")).config
    assert config.retention == RetentionPolicy.INTEREST
    assert "retention is interest" in caplog.text


@pytest.mark.rule("CON-1")
async def test_missing_subjects_are_added_and_others_stay(broker: Broker, js: JetStreamContext) -> None:
    await js.add_stream(
        name="wa_events_stream",
        subjects=["v1.chats.upsert.Acme", "v1.messages.>", "site.own"],
        max_age=30 * 86_400,
        max_msg_size=1_000_000,
        description="shared",
    )
    changes = await reconcile(broker, CONFIG, [])
    assert ("wa_events_stream", "add_subjects") in actions(changes)
    config = (await js.stream_info("wa_events_stream")).config
    assert set(config.subjects or ()) == {
        "v1.messages.>",
        "site.own",
        "v1.connection.update.*",
        "v1.chats.update.*",
        "v1.chats.upsert.*",
        "v1.contacts.update.*",
        "v1.contacts.upsert.*",
    }
    assert (config.description, config.max_msg_size) == ("shared", 1_000_000)
    assert {change.action for change in await reconcile(broker, CONFIG, [])} == {"warning"}


@pytest.mark.rule("CON-1")
async def test_other_settings_of_a_stream_are_left_with_a_warning(
    broker: Broker, js: JetStreamContext
) -> None:
    await js.add_stream(name="dlq_stream", subjects=["v1.dlq.>"], max_age=86_400, max_bytes=10_000_000)
    changes = await reconcile(broker, CONFIG, [])
    texts = [change.text for change in changes if change.action == "warning"]
    assert [text.split()[0] for text in texts] == ["max_age", "max_bytes"]
    assert (await js.stream_info("dlq_stream")).config.max_age == 86_400


async def test_subjects_of_somebody_elses_stream_are_a_clear_error(
    broker: Broker, js: JetStreamContext
) -> None:
    await js.add_stream(name="somebody", subjects=["v1.chats.>"])
    with pytest.raises(TopologyError, match=r"wa_events_stream.*overlap"):
        await reconcile(broker, CONFIG, [])


async def test_a_push_consumer_of_our_name_is_a_clear_error(broker: Broker, js: JetStreamContext) -> None:
    await reconcile(broker, CONFIG, [])
    await js.subscribe(UPSERT, durable="wa_realtime_Acme", stream="wa_events_stream")
    with pytest.raises(TopologyError, match=r"wa_realtime_Acme.*push consumer"):
        await reconcile(broker, CONFIG, [ACME])


@pytest.mark.rule("CON-4")
async def test_changed_numbers_keep_the_position(broker: Broker, js: JetStreamContext) -> None:
    await reconcile(broker, CONFIG, [ACME])
    for number in range(5):
        await js.publish(UPSERT, b"%d" % number)
    sub = await js.pull_subscribe_bind("wa_realtime_Acme", "wa_events_stream")
    for message in await sub.fetch(2):
        await message.ack_sync()
    changed = replace(CONFIG, realtime_ack_wait=45, realtime_subjects=("v1.messages.upsert",))
    changes = await reconcile(broker, changed, [ACME])
    assert [change.text for change in changes] == ["update ack_wait, filter_subjects"]
    await comes_to_lag(broker, 3, 0)
    config = (await broker.api("CONSUMER.INFO.wa_events_stream.wa_realtime_Acme"))["config"]
    assert config["ack_wait"] == 45 * 10**9
    assert await reconcile(broker, changed, [ACME]) == []
    back = await reconcile(broker, CONFIG, [ACME])
    assert [change.action for change in back] == ["update"]
    await comes_to_lag(broker, 3, 0)


async def test_a_backoff_that_would_replace_the_ack_wait_is_removed(
    broker: Broker, js: JetStreamContext
) -> None:
    await reconcile(broker, CONFIG, [])
    await js.add_consumer(
        "wa_events_stream",
        ConsumerConfig(
            durable_name="wa_realtime_Acme",
            ack_policy=AckPolicy.EXPLICIT,
            filter_subjects=[ACME.subject(base) for base in CONFIG.realtime_subjects],
            backoff=[1, 2],
            max_deliver=5,
            max_ack_pending=-1,
        ),
    )
    await reconcile(broker, CONFIG, [ACME])
    config = (await broker.api("CONSUMER.INFO.wa_events_stream.wa_realtime_Acme"))["config"]
    assert config["ack_wait"] == 30 * 10**9
    assert "backoff" not in config


@pytest.mark.rule("CON-4")
async def test_an_operators_limit_of_deliveries_stays_and_is_reported(
    broker: Broker, js: JetStreamContext
) -> None:
    await reconcile(broker, CONFIG, [ACME])
    assert await _limited(broker) == []
    config = (await broker.api("CONSUMER.INFO.wa_events_stream.wa_realtime_Acme"))["config"]
    await broker.api(
        "CONSUMER.CREATE.wa_events_stream.wa_realtime_Acme",
        {"stream_name": "wa_events_stream", "config": {**config, "max_deliver": 3}},
    )
    changes = await reconcile(broker, replace(CONFIG, realtime_ack_wait=31), [ACME])
    assert actions(changes) == [("wa_realtime_Acme", "update"), ("wa_realtime_Acme", "warning")]
    assert [spec.durable for spec in await _limited(broker)] == ["wa_realtime_Acme"]


@pytest.mark.rule("CON-3")
async def test_what_was_published_before_a_tenants_first_start_is_delivered(
    broker: Broker, js: JetStreamContext
) -> None:
    await reconcile(broker, CONFIG, [OTHER])
    for _ in range(5):
        await js.publish(UPSERT, b"early")
        await js.publish(ACME.subject("v1.history.chats"), b"early")
    await reconcile(broker, CONFIG, [ACME])
    assert await read_lag(broker, "wa_events_stream", "wa_realtime_Acme") == (5, 0)
    assert await read_lag(broker, "wa_history_events_stream", "wa_history_Acme") == (5, 0)


async def test_an_untouched_old_durable_of_policy_last_hands_over_its_own_start(
    broker: Broker, js: JetStreamContext
) -> None:
    await reconcile(broker, CONFIG, [])
    for number in range(10):
        await js.publish(UPSERT, b"%d" % number)
    await js.add_consumer(
        "wa_events_stream",
        ConsumerConfig(
            durable_name="wa_listener_Acme",
            deliver_policy=DeliverPolicy.LAST,
            deliver_subject="_INBOX.nobody",
            filter_subjects=[ACME.subject(base) for base in CONFIG.realtime_subjects],
        ),
    )
    await reconcile(broker, CONFIG, [ACME])
    assert await read_lag(broker, "wa_events_stream", "wa_realtime_Acme") == (1, 0)


async def test_the_age_of_the_oldest_dead_letter_is_known(broker: Broker, js: JetStreamContext) -> None:
    await reconcile(broker, CONFIG, [ACME])
    arguments = ("dlq_stream", "v1_dlq_worker_consumer_Acme", "v1.dlq.Acme")
    assert await oldest_age(broker, *arguments) == 0.0
    await js.publish("v1.dlq.Other", b"foreign")
    assert await oldest_age(broker, *arguments) == 0.0
    await js.publish("v1.dlq.Acme", b"ours")

    async def noticed() -> bool:
        # The server confirms a message before it has told its consumers.
        return await oldest_age(broker, *arguments) > 0.0

    await eventually(noticed)
    first = await oldest_age(broker, *arguments)
    await js.publish("v1.dlq.Acme", b"younger")
    assert 0.0 < first < await oldest_age(broker, *arguments) < 60.0


async def _noted(broker: Broker, js: JetStreamContext, count: int, settled: int) -> ConsumerStates:
    """Of `count` events `settled` are acknowledged, one later one as well, and the worker was told so."""
    await reconcile(broker, CONFIG, [ACME])
    for number in range(count):
        await js.publish(UPSERT, b"%d" % number)
    consumer = await js.pull_subscribe_bind("wa_realtime_Acme", "wa_events_stream")
    messages = await consumer.fetch(count)
    for message in (*messages[:settled], messages[settled + 1]):
        await message.ack_sync()
    consumer_states = ConsumerStates()
    await consumer_states.read(broker, "wa_events_stream", "wa_realtime_Acme")
    return consumer_states


async def _restore(broker: Broker, consumer_states: ConsumerStates) -> list[TopologyChange]:
    """Make the real-time consumer again, as a worker does that knows these states."""
    changes = await plan_consumer(broker, consumers(CONFIG, ACME)[0], consumer_states)
    await topology.apply(broker, changes)
    return changes


async def test_a_deleted_consumer_begins_where_it_stood_and_skips_nothing_unsettled(
    broker: Broker, js: JetStreamContext
) -> None:
    consumer_states = await _noted(broker, js, count=10, settled=4)
    await js.delete_consumer("wa_events_stream", "wa_realtime_Acme")
    changes = await _restore(broker, consumer_states)
    assert [change.text for change in changes] == ["create, at sequence 5: all before it is settled"]
    again = await js.pull_subscribe_bind("wa_realtime_Acme", "wa_events_stream")
    assert [message.data for message in await again.fetch(6)] == [b"%d" % number for number in range(4, 10)]
    assert await reconcile(broker, CONFIG, [ACME]) == []


async def _make_anew(broker: Broker, js: JetStreamContext) -> None:
    """Delete the stream and make an empty one.

    Of some 10,000 streams that were made in the moment in which they were deleted, nats-server 2.15.1 gave one all its
    events back.
    """
    held: int | None = None
    while held != 0:
        await js.delete_stream("wa_events_stream")
        await topology.apply(broker, await topology.plan(broker, CONFIG, []))
        held = (await js.stream_info("wa_events_stream")).state.messages


async def test_in_a_stream_made_anew_a_consumer_begins_at_its_start(
    broker: Broker, js: JetStreamContext
) -> None:
    """Its sequences are those of other events: the first is missing, or younger than what was told."""
    consumer_states = await _noted(broker, js, count=10, settled=4)
    for events in (2, 10):
        await _make_anew(broker, js)
        for number in range(events):
            await js.publish(UPSERT, b"new %d" % number)
        changes = await _restore(broker, consumer_states)
        assert [change.text for change in changes] == ["create, from the start of the stream"]
        assert await read_lag(broker, "wa_events_stream", "wa_realtime_Acme") == (events, 0)


async def test_a_consumer_of_which_nothing_was_told_begins_at_the_start(
    broker: Broker, js: JetStreamContext
) -> None:
    await _noted(broker, js, count=10, settled=4)
    await js.delete_consumer("wa_events_stream", "wa_realtime_Acme")
    await _restore(broker, ConsumerStates())
    assert await read_lag(broker, "wa_events_stream", "wa_realtime_Acme") == (10, 0)


@pytest.mark.parametrize(
    ("more", "told"),
    [({"storage": "memory"}, "storage is memory"), ({"persist_mode": "async"}, "persist_mode is async")],
)
async def test_a_stream_that_confirms_what_it_cannot_keep_is_warned_of(
    broker: Broker, caplog: pytest.LogCaptureFixture, more: dict[str, str], told: str
) -> None:
    made = {"name": "dlq_stream", "subjects": ["v1.dlq.>"], "max_age": 7 * 86_400 * 10**9}
    await broker.api("STREAM.CREATE.dlq_stream", {**made, **more})
    changes = await reconcile(broker, CONFIG, [])
    assert [change.text.partition(":")[0] for change in changes if change.action == "warning"] == [told]
    assert told in caplog.text
