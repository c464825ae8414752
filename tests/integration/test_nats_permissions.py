"""Rights that NATS denies: named in its own words, at once, until they are there again; no event pays for them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import nats
import pytest
from nats.aio.client import Client

from events.delivery import Delivery
from events.errors import BrokerError
from events.subjects import Tenant
from streams.jetstream.broker import Broker
from streams.jetstream.changes import TopologyError
from streams.jetstream.max_deliveries import MaxDeliveriesListener
from streams.jetstream.pull_source import PullSource
from tests.nats_servers import ConfigurableNats, reload, rights
from tests.reconcile import default_settings, read_lag, reconcile
from tests.sources import SUBJECT, Reader, ack_all, connected, eventually, pull_source

CONFIG = default_settings(realtime_ack_wait=1)
NEXT = "$JS.API.CONSUMER.MSG.NEXT.>"


@pytest.fixture
def server() -> Iterator[ConfigurableNats]:
    """A NATS whose user `worker` has all rights that a worker needs."""
    with ConfigurableNats(settings=rights()) as server:
        yield server


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
async def broker(server: ConfigurableNats) -> AsyncIterator[Broker]:
    async with connected(server.at("worker:w")) as broker:
        yield broker


@pytest.fixture
async def observer(server: ConfigurableNats, tenant: Tenant) -> AsyncIterator[Client]:
    """A user with all rights; streams and consumers are there."""
    async with connected(server.at("tests:t")) as all_rights:
        await reconcile(all_rights, CONFIG, [tenant])
    client = await nats.connect(server.at("tests:t"))
    yield client
    await client.close()


async def publish(observer: Client, tenant: Tenant, count: int) -> None:
    for number in range(count):
        await observer.jetstream().publish(tenant.subject(SUBJECT), b"%d" % number)


async def acks_are(broker: Broker, taken: bool) -> None:
    """Wait until the server has read its new configuration."""

    async def as_said() -> bool:
        return await broker.messaging.may_publish("$JS.ACK.s.c.1.0.0.0.0", b"+WPI", 5) is taken

    await eventually(as_said)


async def told(broker: Broker, *words: str) -> None:
    """Wait until `/ready` would have these words."""

    async def all_there() -> bool:
        return all(word in (broker.problem or "") for word in words)

    await eventually(all_there)


async def fine(broker: Broker) -> None:
    async def nothing() -> bool:
        return broker.problem is None

    await eventually(nothing)


@pytest.mark.rule("CON-11")
async def test_without_the_right_to_acknowledge_nothing_is_delivered(
    server: ConfigurableNats, broker: Broker, observer: Client, reader: Reader, tenant: Tenant
) -> None:
    reload(server, rights(without=["ack"]))
    await acks_are(broker, False)
    await publish(observer, tenant, 20)
    source = pull_source(broker, tenant, CONFIG, reader)
    await source.start()
    await told(broker, 'Permissions Violation for Publish to "$JS.ACK.')
    assert await reader.gets_nothing(2.5 * CONFIG.realtime_ack_wait)

    reload(server, rights())
    await acks_are(broker, True)
    deliveries = await reader.take(20)
    assert {delivery.metadata.num_delivered for delivery in deliveries} == {1}
    await ack_all(deliveries)
    await fine(broker)
    await source.stop()


async def test_a_right_to_acknowledge_that_is_taken_away_costs_no_more_than_one_delivery(
    server: ConfigurableNats,
    broker: Broker,
    observer: Client,
    reader: Reader,
    tenant: Tenant,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = pull_source(broker, tenant, CONFIG, reader)
    await source.start()
    await publish(observer, tenant, 5)
    await ack_all(await reader.take(5))
    stream, durable = CONFIG.realtime_stream, CONFIG.realtime_durable + tenant.company

    async def settled() -> bool:
        return (await read_lag(broker, stream, durable)).ack_pending == 0

    await eventually(settled)
    reload(server, rights(without=["ack"]))
    await acks_are(broker, False)
    await publish(observer, tenant, 30)
    await ack_all(await reader.take(1))
    await told(broker, "Permissions Violation for Publish to")
    # What was pulled before the refusal came may still arrive.
    with suppress(TimeoutError):
        while True:
            await ack_all(await reader.take(1, within=2.5 * CONFIG.realtime_ack_wait))
    assert broker.permissions.denial("Publish", f"$JS.ACK.{stream}.{durable}.1.1.1.1.1") is not None
    assert len([one for one in caplog.records if f"$JS.ACK.{stream}.{durable}" in one.getMessage()]) == 1

    reload(server, rights())
    await acks_are(broker, True)
    seen: list[int] = []
    async with asyncio.timeout(20):
        while any(await read_lag(broker, stream, durable)):
            with suppress(TimeoutError):
                for delivery in await reader.take(1, within=0.5):
                    seen.append(delivery.metadata.num_delivered)
                    await delivery.ack()
    assert max(seen) == 2
    await fine(broker)
    await source.stop()


async def test_an_event_with_one_delivery_whose_ack_is_denied_reaches_the_listener_of_lost_events(
    server: ConfigurableNats, broker: Broker, observer: Client, reader: Reader, tenant: Tenant
) -> None:
    stream, durable = CONFIG.realtime_stream, CONFIG.realtime_durable + tenant.company
    config = (await broker.api(f"CONSUMER.INFO.{stream}.{durable}"))["config"]
    limited = {"stream_name": stream, "config": {**config, "max_deliver": 1}, "action": "update"}
    await broker.api(f"CONSUMER.CREATE.{stream}.{durable}", limited)
    lost: asyncio.Queue[Delivery] = asyncio.Queue()
    listener = MaxDeliveriesListener(
        broker=broker, stream=stream, durable=durable, on_max_deliveries=lost.put
    )
    await listener.start()
    source = pull_source(broker, tenant, CONFIG, reader)
    await source.start()
    await publish(observer, tenant, 1)
    await ack_all(await reader.take(1))
    assert await broker.flush()
    reload(server, rights(without=["ack"]))
    await acks_are(broker, False)
    await observer.jetstream().publish(tenant.subject(SUBJECT), b"denied")
    await ack_all(await reader.take(1))
    assert await broker.flush()
    assert broker.permissions.denial("Publish", f"$JS.ACK.{stream}.{durable}.1.1.1.1.1") is not None

    reload(server, rights())
    await acks_are(broker, True)
    async with asyncio.timeout(30):
        delivery = await lost.get()
    assert delivery.data == b"denied"
    await delivery.ack()
    await source.stop()
    await listener.stop()


async def test_denied_pulls_are_named_and_go_on_with_the_right(
    server: ConfigurableNats, broker: Broker, observer: Client, reader: Reader, tenant: Tenant
) -> None:
    source = pull_source(broker, tenant, CONFIG, reader)
    await source.start()
    reload(server, rights(denied=[NEXT]))
    await told(
        broker,
        f'Permissions Violation for Publish to "$JS.API.CONSUMER.MSG.NEXT.{source.stream}.{source.durable}"',
    )
    reload(server, rights())
    await publish(observer, tenant, 3)
    await ack_all(await reader.take(3))
    await fine(broker)
    await source.stop()


async def test_a_denied_inbox_is_named_and_goes_on_with_the_right(
    server: ConfigurableNats, broker: Broker, observer: Client, reader: Reader, tenant: Tenant
) -> None:
    source = pull_source(broker, tenant, CONFIG, reader)
    await source.start()
    reload(server, rights(inbox="nobody"))
    await told(broker, 'Permissions Violation for Subscription to "_INBOX.')
    began = time.monotonic()
    with pytest.raises(BrokerError, match='Permissions Violation for Subscription to "_INBOX'):
        await broker.api("INFO")
    assert time.monotonic() - began < 3
    reload(server, rights())
    await publish(observer, tenant, 3)
    await ack_all(await reader.take(3))
    await fine(broker)
    await source.stop()


async def test_a_source_that_starts_without_its_inbox_waits_for_it(
    server: ConfigurableNats, observer: Client, reader: Reader, tenant: Tenant
) -> None:
    reload(server, rights(inbox="nobody"))
    await publish(observer, tenant, 3)
    broker = Broker(urls=[server.at("worker:w")], name="tests")
    await broker.start()
    await told(broker, 'Permissions Violation for Subscription to "_INBOX.')
    reload(server, rights())
    await broker.wait_connected()
    source = pull_source(broker, tenant, CONFIG, reader)
    await source.start()
    await ack_all(await reader.take(3))
    await source.stop()
    await broker.stop()


async def test_a_dead_letter_that_we_may_not_publish_is_refused_in_the_servers_words(
    server: ConfigurableNats, broker: Broker, observer: Client, tenant: Tenant
) -> None:
    reload(server, rights(without=["dlq"]))
    subject = f"v1.dlq.{tenant.company}"

    async def refused() -> bool:
        began = time.monotonic()
        try:
            await broker.publish(subject, b"letter", {})
        except BrokerError as error:
            assert time.monotonic() - began < 3
            return f'Permissions Violation for Publish to "{subject}"' in str(error)
        return False

    await eventually(refused)
    await told(broker, subject)
    reload(server, rights())

    async def stored() -> bool:
        try:
            await broker.publish(subject, b"letter", {})
        except BrokerError:
            return False
        return True

    await eventually(stored)
    assert broker.problem is None


@pytest.mark.parametrize(
    "right", ["STREAM.INFO.>", "STREAM.CREATE.>", "CONSUMER.INFO.>", "CONSUMER.CREATE.>"]
)
async def test_what_the_start_may_not_do_is_named(
    server: ConfigurableNats, tenant: Tenant, right: str
) -> None:
    reload(server, rights(denied=[f"$JS.API.{right}"]))
    name = right.removesuffix(">")

    async def denied() -> bool:
        async with connected(server.at("worker:w")) as broker:
            try:
                await reconcile(broker, CONFIG, [tenant])
            except (BrokerError, TopologyError) as error:
                return f'Permissions Violation for Publish to "$JS.API.{name}' in str(error)
            return False

    await eventually(denied)


async def test_denied_advisories_are_named(
    server: ConfigurableNats, broker: Broker, observer: Client
) -> None:
    reload(server, rights().replace("MAX_DELIVERIES.>", "OTHERS.>"))

    async def ignore(_: object) -> None:
        return None

    async def denied() -> bool:
        watch = MaxDeliveriesListener(broker=broker, stream="s", durable="d", on_max_deliveries=ignore)
        try:
            await watch.start()
        except BrokerError as error:
            return "Permissions Violation for Subscription" in str(error)
        return False

    await eventually(denied)
    await told(broker, "MAX_DELIVERIES.s.d")


async def test_a_denied_right_is_logged_once(
    server: ConfigurableNats, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for number in range(20):
        await broker.messaging.may_publish(f"secret.of.others.{number % 2}", b"", 5)
    assert len([one for one in caplog.records if "secret.of.others" in one.getMessage()]) == 2


@pytest.mark.parametrize("later", [False, True], ids=["at the start", "on a new connection"])
async def test_a_limit_of_subscriptions_is_told_and_waited_out_without_a_restart(
    later: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tenants = [Tenant(f"Company{number}") for number in range(3)]
    with ConfigurableNats(settings="" if later else "max_subscriptions: 4") as server:
        async with connected(server.url) as broker:
            await reconcile(broker, CONFIG, tenants)  # answers take a subscription, too
            other = await broker._client.subscribe("other")
            readers = [Reader() for _ in tenants]
            sources = [
                pull_source(broker, tenant, CONFIG, reader)
                for tenant, reader in zip(tenants, readers, strict=True)
            ]
            for source in sources:
                await source.start()
            if later:
                await eventually(lambda: _all_pull(sources))
                server.reconfigure("max_subscriptions: 4")
            await told(broker, "NATS denies subscriptions: maximum subscriptions exceeded")

            await other.unsubscribe()
            client = await nats.connect(server.url)
            for tenant, reader in zip(tenants, readers, strict=True):
                await client.jetstream().publish(tenant.subject(SUBJECT), b"x")
                await ack_all(await reader.take(1))
            await fine(broker)
            await client.close()
            for source in sources:
                await source.stop()
    texts = [record.getMessage() for record in caplog.records]
    assert sum("cannot receive" in text for text in texts) == (0 if later else 1)


async def _all_pull(sources: list[PullSource]) -> bool:
    return all(source._requests._sent for source in sources)
