"""Limits that the server sets to pull requests: they are kept to, whoever set them, and events go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from events.subjects import Tenant
from streams.jetstream.broker import Broker
from streams.jetstream.pull_limits import PullLimits, Status
from streams.jetstream.specs import TopologyConfig
from testkit.servers import NatsServer
from tests.reconcile import reconcile
from tests.sources import SUBJECT, Reader, ack_all, connected, eventually, pull_source

CONFIG = TopologyConfig()


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def server() -> Iterator[NatsServer]:
    """A NATS of the module's tests."""
    with NatsServer() as server:
        yield server


@pytest.fixture
async def broker(server: NatsServer, tenant: Tenant) -> AsyncIterator[Broker]:
    async with connected(server.url) as broker:
        await reconcile(broker, CONFIG, [tenant])
        yield broker


async def limit(broker: Broker, tenant: Tenant, **limits: int) -> None:
    """Have an operator limit our durable."""
    stream, durable = CONFIG.realtime_stream, CONFIG.realtime_durable + tenant.company
    config = (await broker.api(f"CONSUMER.INFO.{stream}.{durable}"))["config"]
    await broker.api(f"CONSUMER.DELETE.{stream}.{durable}")
    request = {"stream_name": stream, "config": {**config, **limits}, "action": "create"}
    await broker.api(f"CONSUMER.CREATE.{stream}.{durable}", request)


async def publish(server: NatsServer, tenant: Tenant, *bodies: bytes) -> None:
    client = await nats.connect(server.url)
    for body in bodies:
        await client.jetstream().publish(tenant.subject(SUBJECT), body)
    await client.close()


def warnings(caplog: pytest.LogCaptureFixture, *words: str) -> int:
    texts = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    return len([text for text in texts if all(word in text for word in words)])


LIMITS: list[tuple[dict[str, int], str]] = [
    ({"max_batch": 7}, "MaxRequestBatch of 7"),
    ({"max_expires": 300_000_000}, "MaxRequestExpires of 300ms"),
    ({"max_expires": 1_500_000}, "MaxRequestExpires of 1.5ms"),
    ({"max_bytes": 1000}, "MaxRequestMaxBytes of 1000"),
]


@pytest.mark.parametrize(("limits", "told"), LIMITS, ids=[told for _, told in LIMITS])
async def test_a_limit_of_the_durable_is_kept_to(
    server: NatsServer,
    broker: Broker,
    reader: Reader,
    tenant: Tenant,
    caplog: pytest.LogCaptureFixture,
    limits: dict[str, int],
    told: str,
) -> None:
    await limit(broker, tenant, **limits)
    await publish(server, tenant, *[b"x" * 100] * 30, b"x" * 2000)
    source = pull_source(broker, tenant, CONFIG, reader, batch_size=20)
    await source.start()
    await ack_all(await reader.take(31))
    await publish(server, tenant, b"later")
    await ack_all(await reader.take(1))
    await source.stop()
    assert warnings(caplog, source.durable, told) == 1
    assert reader.counters.count["failed realtime"] == 0
    assert reader.counters.count["pulls realtime"] < 100


async def test_several_limits_are_kept_to_together(
    server: NatsServer, broker: Broker, reader: Reader, tenant: Tenant
) -> None:
    await limit(broker, tenant, max_batch=7, max_expires=300_000_000, max_bytes=1000)
    await publish(server, tenant, *[b"x" * 100] * 30)
    source = pull_source(broker, tenant, CONFIG, reader, batch_size=20)
    await source.start()
    await ack_all(await reader.take(30))
    await source.stop()
    assert max(reader.counters.sizes) <= 7
    assert reader.counters.count["failed realtime"] == 0


async def test_a_limit_of_the_server_is_kept_to(reader: Reader, tenant: Tenant, tmp_path: Path) -> None:
    # The block replaces the one with the server's own folder.
    settings = f'jetstream {{ store_dir: "{tmp_path}", limits {{ max_request_batch: 100 }} }}'
    with NatsServer(settings=settings) as server:
        async with connected(server.url) as broker:
            await reconcile(broker, CONFIG, [tenant])
            await publish(server, tenant, *[b"x"] * 150)
            source = pull_source(broker, tenant, CONFIG, reader, batch_size=500)
            await source.start()
            await ack_all(await reader.take(150))
            await source.stop()
            assert max(reader.counters.sizes) <= 100


async def test_a_limit_that_an_operator_sets_while_it_runs_is_kept_to(
    server: NatsServer, broker: Broker, reader: Reader, tenant: Tenant
) -> None:
    source = pull_source(broker, tenant, CONFIG, reader, batch_size=20)
    await source.start()
    await publish(server, tenant, b"before")
    await ack_all(await reader.take(1))
    stream = source.stream
    config = (await broker.api(f"CONSUMER.INFO.{stream}.{source.durable}"))["config"]
    update: dict[str, Any] = {"stream_name": stream, "config": {**config, "max_batch": 7}, "action": "update"}
    await broker.api(f"CONSUMER.CREATE.{stream}.{source.durable}", update)
    await publish(server, tenant, *[b"after"] * 20)
    await ack_all(await reader.take(20))
    await source.stop()


async def test_replicas_share_the_only_request_that_may_wait(
    server: NatsServer, broker: Broker, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    await limit(broker, tenant, max_waiting=1)
    readers = [Reader(), Reader()]
    sources = [pull_source(broker, tenant, CONFIG, each) for each in readers]
    for source in sources:
        await source.start()
    await publish(server, tenant, b"for either")
    taking = [asyncio.create_task(each.take(1)) for each in readers]
    (taken, *_), waiting = await asyncio.wait(taking, return_when=asyncio.FIRST_COMPLETED)
    await ack_all(taken.result())
    for task in waiting:
        task.cancel()

    async def both_asked() -> bool:
        return all(each.counters.count["pulls realtime"] > 3 for each in readers)

    await eventually(both_asked)
    for source in sources:
        await source.stop()
    assert warnings(caplog, sources[0].durable, "max_waiting") <= 2
    for each in readers:
        assert each.counters.count["failed realtime"] == 0
        assert each.counters.count["pulls realtime"] < 60


def test_a_refusal_that_names_no_smaller_limit_is_no_limit() -> None:
    limits = PullLimits("durable", batch=10, batch_bytes=1000, expires=1)
    for text in (
        "MaxRequestBatch of 10",
        "MaxRequestBatch of 0",
        "MaxRequestBatch of x",
        "MaxRequestExpires of 1s",
    ):
        assert not limits.learn(Status("409", f"Exceeded {text}"))
    assert not limits.learn(Status("408", "Exceeded MaxRequestBatch of 5"))
    assert (limits.batch, limits.batch_bytes, limits.expires) == (10, 1000, 1)
    assert limits.learn(Status("409", "Exceeded MaxRequestExpires of 0h0m0.25s"))
    assert limits.expires == 0.25
