"""Durables with a limit of deliveries: what the server gives up does not vanish (CON-9)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import nats
import pytest

from events.delivery import Delivery
from events.subjects import Tenant
from streams.jetstream.broker import Broker
from streams.jetstream.max_deliveries import MaxDeliveriesListener
from testkit.servers import NatsServer
from tests.reconcile import default_settings, reconcile
from tests.sources import PATIENCE, SUBJECT, Reader, connected, pull_source

CONFIG = default_settings(realtime_ack_wait=0.5)
ACME = Tenant("Acme")


@pytest.fixture
def own_server() -> Iterator[NatsServer]:
    """An empty NATS."""
    with NatsServer() as server:
        yield server


@pytest.fixture
async def broker(own_server: NatsServer) -> AsyncIterator[Broker]:
    async with connected(own_server.url) as broker:
        await reconcile(broker, CONFIG, [ACME])
        config = (await broker.api("CONSUMER.INFO.wa_events_stream.wa_realtime_Acme"))["config"]
        await broker.api(
            "CONSUMER.CREATE.wa_events_stream.wa_realtime_Acme",
            {"stream_name": "wa_events_stream", "config": {**config, "max_deliver": 2}},
        )
        yield broker


async def use_up_deliveries(server: NatsServer, broker: Broker) -> None:
    """Use up the deliveries of one message."""
    client = await nats.connect(server.url)
    await client.jetstream().publish(ACME.subject(SUBJECT), b"hopeless", headers={"Nats-Msg-Id": "wa-1"})
    await client.close()
    reader = Reader()
    source = pull_source(broker, ACME, CONFIG, reader)
    await source.start()
    for _ in range(2):
        await (await reader.take(1))[0].nak()
    # The server publishes the advisory when the next pull request comes.
    assert await reader.gets_nothing(0.3)
    await source.stop()


@pytest.mark.rule("CON-9")
async def test_a_message_at_its_limit_is_handed_over_with_its_payload(
    own_server: NatsServer, broker: Broker
) -> None:
    got: asyncio.Queue[Delivery] = asyncio.Queue()
    watch = MaxDeliveriesListener(
        broker=broker, stream="wa_events_stream", durable="wa_realtime_Acme", on_max_deliveries=got.put
    )
    await watch.start()
    await use_up_deliveries(own_server, broker)
    delivery = await asyncio.wait_for(got.get(), PATIENCE)
    assert delivery.data == b"hopeless"
    assert delivery.subject == ACME.subject(SUBJECT)
    assert delivery.headers == {"Nats-Msg-Id": "wa-1"}
    assert delivery.metadata.stream_sequence == 1
    assert delivery.metadata.num_delivered == 2
    assert delivery.metadata.stored_ns > 1_600_000_000 * 10**9
    await delivery.ack()
    await watch.stop()


async def test_after_a_nak_it_is_handed_over_again(own_server: NatsServer, broker: Broker) -> None:
    got: asyncio.Queue[Delivery] = asyncio.Queue()
    watch = MaxDeliveriesListener(
        broker=broker, stream="wa_events_stream", durable="wa_realtime_Acme", on_max_deliveries=got.put
    )
    await watch.start()
    await use_up_deliveries(own_server, broker)
    await (await asyncio.wait_for(got.get(), PATIENCE)).nak()
    again = await asyncio.wait_for(got.get(), PATIENCE)
    assert again.data == b"hopeless"
    await again.term()
    await watch.stop()


async def test_replicas_share_the_advisories(own_server: NatsServer, broker: Broker) -> None:
    got: asyncio.Queue[Delivery] = asyncio.Queue()
    watches = [
        MaxDeliveriesListener(
            broker=broker, stream="wa_events_stream", durable="wa_realtime_Acme", on_max_deliveries=got.put
        )
        for _ in range(2)
    ]
    for watch in watches:
        await watch.start()
    await use_up_deliveries(own_server, broker)
    await (await asyncio.wait_for(got.get(), PATIENCE)).ack()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(got.get(), 0.5)
    for watch in watches:
        await watch.stop()
