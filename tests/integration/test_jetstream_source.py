"""The JetStream source when servers, consumers and messages misbehave (ONB-4, DLQ-11)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from events.subjects import Tenant
from streams.config.settings import Settings
from streams.jetstream import pull_source as pull_sources
from streams.jetstream.broker import Broker
from streams.jetstream.changes import TopologyError
from streams.jetstream.pull_requests import EXPIRES
from streams.jetstream.pull_source import PullSource
from streams.jetstream.stream_reader import ApiError, nanoseconds
from testkit.servers import NatsServer
from tests.reconcile import default_settings, read_lag, reconcile
from tests.sources import PATIENCE, SUBJECT, Reader, ack_all, connected, eventually, pull_source

# What is held on a busy machine must not come again, but for the test in which it has to.
CONFIG = default_settings(realtime_ack_wait=60)
SHORT = default_settings(realtime_ack_wait=2)


@pytest.fixture
def own_server() -> Iterator[NatsServer]:
    """A NATS that this test may kill."""
    with NatsServer() as server:
        yield server


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
async def broker(own_server: NatsServer) -> AsyncIterator[Broker]:
    async with connected(own_server.url) as broker:
        yield broker


@pytest.fixture
def config() -> Settings:
    return CONFIG


@pytest.fixture
async def source(
    broker: Broker, tenant: Tenant, reader: Reader, config: Settings
) -> AsyncIterator[PullSource]:
    await reconcile(broker, config, [tenant])
    source = pull_source(broker, tenant, config, reader)
    await source.start()
    yield source
    await source.stop()


async def publish(server: NatsServer, tenant: Tenant, *bodies: bytes) -> None:
    client = await nats.connect(server.url)
    for body in bodies:
        await client.jetstream().publish(tenant.subject(SUBJECT), body)
    await client.close()


async def comes_to_ack_pending(broker: Broker, tenant: Tenant, expected: int) -> None:
    """Wait until so many are unacknowledged: the server hears of an ack a moment after its sender."""
    durable = CONFIG.realtime_durable + tenant.company

    async def reached() -> bool:
        return (await read_lag(broker, CONFIG.realtime_stream, durable)).ack_pending == expected

    await eventually(reached)


@pytest.mark.rule("RUN-9")
async def test_goes_on_after_each_crash_of_the_server(
    own_server: NatsServer, source: PullSource, reader: Reader, tenant: Tenant
) -> None:
    for round_ in range(3):
        own_server.kill()
        own_server.start()
        await publish(own_server, tenant, b"%d" % round_)
        (delivery,) = await reader.take(1)
        assert delivery.data == b"%d" % round_
        await delivery.ack()
    assert reader.counters.count["pulls realtime"] > 3


async def test_what_was_held_during_a_crash_is_settled_afterwards(
    own_server: NatsServer, broker: Broker, source: PullSource, reader: Reader, tenant: Tenant
) -> None:
    await publish(own_server, tenant, b"before")
    (before,) = await reader.take(1)
    own_server.kill()

    async def lost() -> bool:
        return not broker.connected

    await eventually(lost)
    await before.ack()
    own_server.start()
    await broker.wait_connected()
    await comes_to_ack_pending(broker, tenant, 0)
    assert await reader.gets_nothing(0.2)


async def test_a_frozen_server_is_noticed_and_forgotten_once_it_goes_on(
    own_server: NatsServer, source: PullSource, reader: Reader, tenant: Tenant
) -> None:
    own_server.pause()

    async def noticed() -> bool:
        return reader.counters.count["failed realtime"] > 0

    await eventually(noticed)
    own_server.resume()
    await publish(own_server, tenant, b"after")
    (delivery,) = await reader.take(1)
    await delivery.ack()


@pytest.mark.rule("CON-2")
async def test_a_deleted_consumer_is_made_again_and_told_in_one_log_line(
    own_server: NatsServer,
    broker: Broker,
    source: PullSource,
    reader: Reader,
    tenant: Tenant,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await broker.api(f"CONSUMER.DELETE.{source.stream}.{source.durable}")
    await publish(own_server, tenant, b"after")
    (delivery,) = await reader.take(1)
    assert delivery.data == b"after"
    await delivery.ack()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert reader.counters.count["failed realtime"] >= 1


@pytest.mark.rule("CON-2")
async def test_a_deleted_stream_is_made_again(
    own_server: NatsServer, broker: Broker, source: PullSource, reader: Reader, tenant: Tenant
) -> None:
    await broker.api(f"STREAM.DELETE.{source.stream}")

    async def made() -> bool:
        return source.stream in (await broker.api("STREAM.NAMES"))["streams"]

    await eventually(made)
    await publish(own_server, tenant, b"after")
    (delivery,) = await reader.take(1)
    await delivery.ack()


async def test_failing_to_restore_is_tried_again_until_it_works(
    own_server: NatsServer, broker: Broker, reader: Reader, tenant: Tenant
) -> None:
    attempts = 0

    async def restore() -> None:
        nonlocal attempts
        if attempts < 2:
            attempts += 1
            raise TopologyError("not yet")
        await reconcile(broker, CONFIG, [tenant])
        attempts += 1

    source = pull_source(broker, tenant, CONFIG, reader, restore=restore)
    await source.start()

    async def restored() -> bool:
        return attempts == 3

    await eventually(restored)
    await publish(own_server, tenant, b"at last")
    await ack_all(await reader.take(1))
    await source.stop()


async def test_a_refused_restore_is_forgotten_when_somebody_else_made_the_stream(
    broker: Broker, reader: Reader, tenant: Tenant
) -> None:
    told: list[str] = []

    async def restore() -> None:
        raise TopologyError("not yet")

    source = pull_source(
        broker,
        tenant,
        CONFIG,
        reader,
        restore=restore,
        unanswered=told.append,
        answered=lambda: told.append("recovered"),
    )
    await source.start()

    async def refused() -> bool:
        return bool(told)

    await eventually(refused)
    await reconcile(broker, CONFIG, [tenant])

    async def recovered() -> bool:
        return told[-1] == "recovered"

    await eventually(recovered)
    assert set(told[:-1]) == {"not yet"}
    await source.stop()


async def test_a_leadership_change_only_costs_a_new_request(
    own_server: NatsServer, source: PullSource, reader: Reader, tenant: Tenant
) -> None:
    spy = await nats.connect(own_server.url)
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def note(message: Msg) -> None:
        asked.put_nowait(message.reply)

    await spy.subscribe("$JS.API.CONSUMER.MSG.NEXT.>", cb=note)
    await spy.flush()
    reply = await asyncio.wait_for(asked.get(), PATIENCE)
    status = b"NATS/1.0 409 Leadership Change\r\n\r\n"
    spy._pending.append(b"HPUB %s %d %d\r\n%s\r\n" % (reply.encode(), len(status), len(status), status))
    spy._pending_data_size += len(spy._pending[-1])
    await spy.flush()
    await asyncio.wait_for(asked.get(), PATIENCE)
    assert reader.counters.count["failed realtime"] == 1
    await publish(own_server, tenant, b"after")
    await ack_all(await reader.take(1))
    await spy.close()


async def test_an_idle_source_counts_no_errors_and_stays_fresh(source: PullSource, reader: Reader) -> None:
    began = source.last_fetch

    async def asked_thrice() -> bool:
        return reader.counters.count["pulls realtime"] >= 3

    await eventually(asked_thrice)
    assert reader.counters.count["failed realtime"] == 0
    # Two of these have been answered, each after the time that it may wait.
    assert source.last_fetch - began > 1.5 * EXPIRES
    assert source.alive
    assert source.in_flight == 0


async def test_pulls_the_next_batch_when_this_one_is_released_and_not_before(
    own_server: NatsServer, broker: Broker, reader: Reader, tenant: Tenant
) -> None:
    await reconcile(broker, CONFIG, [tenant])
    await publish(own_server, tenant, *[b"x"] * 30)
    source = pull_source(broker, tenant, CONFIG, reader)
    await source.start()
    first = await reader.batch()
    assert await reader.gets_nothing(0.2)
    assert source.in_flight == 10
    first.release()
    second = await reader.batch()
    assert await reader.gets_nothing(0.2)
    # The agent may settle a batch after its release: two of a source are in flight then, never three.
    assert source.in_flight == 20
    await ack_all(first.deliveries)
    second.release()
    await ack_all(second.deliveries)
    await ack_all(await reader.take(10))
    await source.stop()
    assert source.in_flight == 0
    assert reader.counters.sizes == [10, 10, 10]


async def test_a_stop_hands_over_what_its_last_pull_request_brings(
    own_server: NatsServer, broker: Broker, reader: Reader, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One request that is open for as long as a busy machine may take.
    monkeypatch.setattr("streams.jetstream.pull_requests.EXPIRES", PATIENCE)
    await reconcile(broker, CONFIG, [tenant])
    source = pull_source(broker, tenant, CONFIG, reader)
    await source.start()

    async def has_asked() -> bool:
        return reader.counters.count["pulls realtime"] > 0

    await eventually(has_asked)
    stopping = asyncio.create_task(source.stop())
    await publish(own_server, tenant, b"late")
    batch = await reader.batch()
    await ack_all(batch.deliveries)
    batch.release()
    await asyncio.wait_for(stopping, PATIENCE)
    assert [delivery.data for delivery in batch.deliveries] == [b"late"]


async def test_messages_of_the_largest_size_all_arrive(
    own_server: NatsServer, source: PullSource, reader: Reader, tenant: Tenant
) -> None:
    body = b"x" * 1_000_000
    await publish(own_server, tenant, *[body] * 45)
    taken = await reader.take(45, within=30)
    assert {len(delivery.data) for delivery in taken} == {len(body)}
    await ack_all(taken)


async def test_a_batch_keeps_to_its_bytes_and_a_larger_message_comes_alone(
    own_server: NatsServer, broker: Broker, tenant: Tenant, reader: Reader
) -> None:
    await reconcile(broker, CONFIG, [tenant])
    sizes = [900_000, *[30_000] * 9, 900_000, 900_000, 30_000]
    await publish(own_server, tenant, *(b"x" * size for size in sizes))
    source = pull_source(broker, tenant, CONFIG, reader, batch_bytes=100_000)
    await source.start()
    batches: list[list[int]] = []
    while sum(map(len, batches)) < len(sizes):
        batch = await reader.batch()
        batches.append([len(delivery.data) for delivery in batch.deliveries])
        await ack_all(batch.deliveries)
        batch.release()
    await source.stop()
    assert [size for batch in batches for size in batch] == sizes
    assert batches == [[900_000], *[[30_000] * 3] * 3, [900_000], [900_000], [30_000]]
    assert reader.counters.count["failed realtime"] == 0


async def test_headers_arrive(
    own_server: NatsServer, source: PullSource, reader: Reader, tenant: Tenant
) -> None:
    client = await nats.connect(own_server.url)
    headers = {"Nats-Msg-Id": "wa-1", "Status": "404"}
    await client.jetstream().publish(tenant.subject(SUBJECT), b"", headers=headers)
    await client.close()
    (delivery,) = await reader.take(1)
    assert delivery.headers is not None
    assert delivery.headers["Nats-Msg-Id"] == "wa-1"
    assert delivery.data == b""
    await delivery.ack()


async def test_a_literal_wildcard_as_the_company_reaches_no_tenant(
    own_server: NatsServer, source: PullSource, reader: Reader, tenant: Tenant
) -> None:
    client = await nats.connect(own_server.url)
    await client.jetstream().publish(f"{SUBJECT}.*", b"nobody's")
    await client.jetstream().publish(f"{SUBJECT}.>", b"nobody's")
    await client.close()
    await publish(own_server, tenant, b"ours")
    (delivery,) = await reader.take(1)
    assert delivery.data == b"ours"
    await delivery.ack()


async def test_stops_cleanly_while_the_server_is_away(
    own_server: NatsServer, broker: Broker, tenant: Tenant, reader: Reader
) -> None:
    await reconcile(broker, CONFIG, [tenant])
    source = pull_source(broker, tenant, CONFIG, reader, drain_budget=1)
    await source.start()
    await publish(own_server, tenant, b"held")
    await reader.take(1)
    own_server.kill()
    async with asyncio.timeout(PATIENCE):
        await source.stop()
    assert not source.alive


@pytest.mark.parametrize("config", [SHORT])
async def test_a_silent_holder_loses_its_message_to_another_after_the_ack_wait(
    own_server: NatsServer, broker: Broker, source: PullSource, reader: Reader, tenant: Tenant, nc: Client
) -> None:
    await publish(own_server, tenant, b"stolen")
    async with connected(own_server.url) as doomed:
        other = Reader()
        thief = pull_source(doomed, tenant, SHORT, other)
        await thief.start()
        await doomed.stop()
        (again,) = await reader.take(1)
        await again.ack()
        await thief.stop()


async def test_what_is_held_of_a_deleted_stream_never_settles_an_event_of_the_new_one(
    own_server: NatsServer, broker: Broker, tenant: Tenant, source: PullSource, reader: Reader
) -> None:
    """The new stream gives the same sequences again, and the server looks at nothing else."""
    await publish(own_server, tenant, b"old 1", b"old 2")
    old = await reader.take(2)
    await broker.api(f"STREAM.DELETE.{CONFIG.realtime_stream}")
    await reconcile(broker, CONFIG, [tenant])
    await publish(own_server, tenant, b"new 1", b"new 2")
    new = await reader.take(2)
    assert [one.metadata.stream_sequence for one in (*old, *new)] == [1, 2, 1, 2]
    assert [one.data for one in new] == [b"new 1", b"new 2"]
    await ack_all(old)
    # The server takes acks in their order: had the old ones counted, none would be left after this one.
    await new[1].ack()
    await comes_to_ack_pending(broker, tenant, 1)
    assert await reader.gets_nothing(0.2)
    await comes_to_ack_pending(broker, tenant, 1)
    await new[0].ack()
    await comes_to_ack_pending(broker, tenant, 0)
    assert source.in_flight == 0


async def made_at(broker: Broker) -> int:
    return nanoseconds((await broker.api(f"STREAM.INFO.{CONFIG.realtime_stream}"))["created"])


async def make_anew(broker: Broker, tenant: Tenant, **changes: object) -> int:
    """Delete the stream and make it again, as somebody else might; when it was made."""
    old = (await broker.api(f"STREAM.INFO.{CONFIG.realtime_stream}"))["config"]
    made = False
    while not made:
        await broker.api(f"STREAM.DELETE.{CONFIG.realtime_stream}")
        # A source that runs may have made it again before us, with other settings.
        with suppress(ApiError):
            await broker.api(f"STREAM.CREATE.{CONFIG.realtime_stream}", {**old, **changes})
            made = True
    await reconcile(broker, CONFIG, [tenant])
    return await made_at(broker)


async def test_deliveries_say_when_their_stream_was_made(
    own_server: NatsServer, broker: Broker, tenant: Tenant, source: PullSource, reader: Reader
) -> None:
    await publish(own_server, tenant, b"1", b"2")
    taken = await reader.take(2)
    assert {one.metadata.incarnation for one in taken} == {await made_at(broker)}
    await ack_all(taken)


@pytest.mark.parametrize("first_seq", [1, 1000])
async def test_a_stream_made_anew_between_two_pulls_is_never_taken_for_the_old_one(
    own_server: NatsServer,
    broker: Broker,
    tenant: Tenant,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
    first_seq: int,
) -> None:
    """Whether its sequences begin anew or go on: while the agent is busy no request of ours waits for the news."""
    monkeypatch.setattr(pull_sources, "UNWATCHED", 0.05)
    await reconcile(broker, CONFIG, [tenant])
    source = pull_source(broker, tenant, CONFIG, reader, batch_size=1)
    await source.start()
    await publish(own_server, tenant, b"old 1", b"old 2")
    old_made = await made_at(broker)
    first = await reader.batch()
    first.release()
    second = await reader.batch()
    await asyncio.sleep(0.1)  # so long that it counts as unwatched
    new_made = await make_anew(broker, tenant, first_seq=first_seq)
    await publish(own_server, tenant, b"new 1", b"new 2")
    second.release()
    later = await reader.take(2)
    assert [one.data for one in (*second.deliveries, *later)] == [b"old 2", b"new 1", b"new 2"]
    old = [*first.deliveries, *second.deliveries]
    assert [one.metadata.incarnation for one in (*old, *later)] == [old_made, old_made, new_made, new_made]
    await ack_all([*old, *later])
    await source.stop()


async def test_a_stream_made_anew_is_noticed_though_another_replica_read_its_first_events(
    own_server: NatsServer,
    broker: Broker,
    tenant: Tenant,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then neither the stream's nor the consumer's sequences begin anew for us."""
    monkeypatch.setattr(pull_sources, "UNWATCHED", 0.05)
    await reconcile(broker, CONFIG, [tenant])
    source = pull_source(broker, tenant, CONFIG, reader, batch_size=1)
    await source.start()
    await publish(own_server, tenant, b"old 1", b"old 2")
    first = await reader.batch()
    first.release()
    second = await reader.batch()
    await asyncio.sleep(0.1)  # so long that it counts as unwatched
    new_made = await make_anew(broker, tenant)
    other_reader = Reader()
    other = pull_source(broker, tenant, CONFIG, other_reader)
    await other.start()
    await publish(own_server, tenant, *[b"other"] * 4)
    await ack_all(await other_reader.take(4))
    await other.stop()
    await publish(own_server, tenant, b"new")
    second.release()
    (new,) = await reader.take(1)
    assert new.data == b"new"
    assert new.metadata.stream_sequence > 2
    assert new.metadata.consumer_sequence > 2
    assert new.metadata.incarnation == new_made
    await ack_all([*first.deliveries, *second.deliveries, new])
    await source.stop()


async def test_a_stream_made_anew_while_a_pull_waits_is_noticed(
    own_server: NatsServer, broker: Broker, tenant: Tenant, source: PullSource, reader: Reader
) -> None:
    await publish(own_server, tenant, b"old")
    await ack_all(old := await reader.take(1))
    new_made = await make_anew(broker, tenant, first_seq=1000)
    await publish(own_server, tenant, b"new")
    await ack_all(new := await reader.take(1))
    assert [one.metadata.incarnation for one in new] == [new_made]
    assert old[0].metadata.incarnation < new_made


async def test_a_stream_keeps_its_incarnation_over_a_restart_of_the_server(
    own_server: NatsServer, broker: Broker, tenant: Tenant, source: PullSource, reader: Reader
) -> None:
    await publish(own_server, tenant, b"before")
    await ack_all(before := await reader.take(1))
    own_server.kill()
    own_server.start()
    await publish(own_server, tenant, b"after")
    await ack_all(after := await reader.take(1))
    assert after[0].metadata.incarnation == before[0].metadata.incarnation > 0


async def test_redelivered_events_are_settled_like_any_other(
    own_server: NatsServer, broker: Broker, tenant: Tenant, source: PullSource, reader: Reader
) -> None:
    await publish(own_server, tenant, b"1", b"2", b"3")
    first, *others = await reader.take(3)
    await first.nak()
    (again,) = await reader.take(1)
    assert again.metadata.num_delivered == 2
    await ack_all([*others, again])
    await comes_to_ack_pending(broker, tenant, 0)
