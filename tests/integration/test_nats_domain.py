"""JetStream of another domain: a worker at a leaf node serves the hub's streams, and makes none at the leaf."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import nats
import pytest

from events.delivery import Delivery
from events.subjects import Tenant
from streams.jetstream.broker import Broker
from streams.jetstream.max_deliveries import MaxDeliveriesListener
from testkit.servers import NatsServer
from tests.nats_servers import domain_pair
from tests.reconcile import default_settings, read_lag, reconcile
from tests.sources import PATIENCE, SUBJECT, Reader, ack_all, connected, eventually, pull_source

CONFIG = default_settings(realtime_ack_wait=1)


@dataclass(frozen=True)
class Pair:
    """A hub with the domain `hub`, and a leaf node of it with a JetStream of its own."""

    hub: NatsServer
    leaf: NatsServer


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    hub, leaf = domain_pair(tmp_path)
    with NatsServer(settings=hub) as hub_server, NatsServer(settings=leaf) as leaf_server:
        yield Pair(hub_server, leaf_server)


@pytest.fixture
async def broker(pair: Pair) -> AsyncIterator[Broker]:
    """Connected to the leaf, for the hub's domain."""
    async with connected(pair.leaf.url, domain="hub") as broker:
        yield broker


@pytest.fixture
def reader() -> Reader:
    return Reader()


async def streams_of(server: NatsServer) -> list[str]:
    async with connected(server.url) as broker:
        return list((await broker.api("STREAM.NAMES"))["streams"] or [])


async def publish(server: NatsServer, tenant: Tenant, *bodies: bytes) -> None:
    client = await nats.connect(server.url)
    for body in bodies:
        await client.jetstream().publish(tenant.subject(SUBJECT), body)
    await client.close()


async def test_a_worker_at_a_leaf_handles_the_hubs_events(
    pair: Pair, broker: Broker, reader: Reader, tenant: Tenant
) -> None:
    await reconcile(broker, CONFIG, [tenant])
    assert CONFIG.realtime_stream in await streams_of(pair.hub)
    await publish(pair.hub, tenant, *[b"x"] * 25)
    source = pull_source(broker, tenant, CONFIG, reader)
    await source.start()
    await ack_all(await reader.take(25))

    async def settled() -> bool:
        return not any(await read_lag(broker, source.stream, source.durable))

    await eventually(settled)
    await broker.publish(tenant_dead_letter(tenant), b"letter", {"Nats-Msg-Id": "one"})
    await source.stop()
    assert await reader.gets_nothing(0.1)
    async with connected(pair.hub.url) as hub:
        stored = await hub.api(f"STREAM.INFO.{CONFIG.dlq_stream}")
        assert stored["state"]["messages"] == 1
    assert await streams_of(pair.leaf) == []


def tenant_dead_letter(tenant: Tenant) -> str:
    return f"{CONFIG.dlq_subject}.{tenant.company}"


async def test_what_the_hub_gives_up_is_handed_over_at_the_leaf(
    pair: Pair, broker: Broker, reader: Reader, tenant: Tenant
) -> None:
    await reconcile(broker, CONFIG, [tenant])
    stream, durable = CONFIG.realtime_stream, CONFIG.realtime_durable + tenant.company
    config = (await broker.api(f"CONSUMER.INFO.{stream}.{durable}"))["config"]
    request = {"stream_name": stream, "config": {**config, "max_deliver": 1}}
    await broker.api(f"CONSUMER.CREATE.{stream}.{durable}", request)
    got: asyncio.Queue[Delivery] = asyncio.Queue()
    watch = MaxDeliveriesListener(broker=broker, stream=stream, durable=durable, on_max_deliveries=got.put)
    await watch.start()
    source = pull_source(broker, tenant, CONFIG, reader)
    await source.start()
    await publish(pair.hub, tenant, b"hopeless")
    (delivery,) = await reader.take(1)
    await delivery.nak()
    lost = await asyncio.wait_for(got.get(), PATIENCE)
    assert lost.data == b"hopeless"
    await lost.ack()
    await source.stop()
    await watch.stop()


async def test_a_domain_that_nobody_serves_is_named_and_waited_for(pair: Pair) -> None:
    broker = Broker(urls=[pair.leaf.url], name="tests", domain="nowhere", check_every=0.2)
    await broker.start()

    async def said() -> bool:
        return "no JetStream answers for domain nowhere at 127.0.0.1" in (broker.problem or "")

    await eventually(said)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(broker.wait_connected(), 0.1)
    await broker.stop()


async def test_a_hub_that_is_away_is_waited_for(pair: Pair, tenant: Tenant, reader: Reader) -> None:
    async with connected(pair.leaf.url, domain="hub", check_every=0.2) as broker:
        await reconcile(broker, CONFIG, [tenant])
        source = pull_source(broker, tenant, CONFIG, reader)
        await source.start()
        pair.hub.stop()

        async def said() -> bool:
            return "domain hub" in (broker.problem or "")

        await eventually(said)
        pair.hub.start()
        await publish(pair.hub, tenant, b"after")
        await ack_all(await reader.take(1))

        async def fine() -> bool:
            return broker.problem is None

        await eventually(fine)
        await source.stop()
        assert await streams_of(pair.leaf) == []
