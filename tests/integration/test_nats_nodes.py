"""A node that answers the connection but not JetStream is left, if there is another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlparse

import nats
import pytest
from nats.aio.client import Server
from nats.aio.msg import Msg

from events.errors import BrokerError
from events.subjects import Tenant
from streams.jetstream.broker import Broker, Unusable
from streams.jetstream.changes import TopologyError
from streams.jetstream.nodes import AVOID_SECONDS, Nodes
from streams.jetstream.specs import streams
from streams.jetstream.stream_reader import ApiError
from testkit.servers import free_port
from tests.nats_servers import ConfigurableNats, rights
from tests.reconcile import default_settings, reconcile
from tests.servers.proxy import Proxy
from tests.sources import SUBJECT, Reader, ack_all, connected, eventually, pull_source

CONFIG = default_settings()
QUICK = {"check_every": 0.3, "leave_after": 2.0}
WITHOUT = "accounts {{ A {{ jetstream: {}, users: [ {{ user: a, password: a }} ] }} }}"


@pytest.fixture(autouse=True)
def _first_url_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """nats-py begins with any of the servers; here it is the first."""
    monkeypatch.setattr("nats.aio.client.shuffle", lambda _servers: None)


@asynccontextmanager
async def begun(*urls: str, **more: Any) -> AsyncIterator[Broker]:
    """A broker that has begun to connect."""
    broker = Broker(urls=list(urls), name="tests", **{**QUICK, **more})
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


async def at(broker: Broker, server: ConfigurableNats) -> None:
    """Wait until it works at this server."""

    async def there() -> bool:
        return broker.connected and broker._client.address.endswith(f":{server.port}") and not broker.problem

    await eventually(there, within=20)


@pytest.fixture
def nodes() -> Iterator[tuple[ConfigurableNats, ConfigurableNats]]:
    """Two servers with JetStream in an account that can lose it."""
    settings = WITHOUT.format("enabled")
    with ConfigurableNats(settings=settings) as first, ConfigurableNats(settings=settings) as second:
        yield first, second


async def test_a_node_that_lost_jetstream_is_left_for_another_and_told_once(
    nodes: tuple[ConfigurableNats, ConfigurableNats], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = nodes
    counted: list[str] = []
    async with begun(first.at("a:a"), second.at("a:a"), on_reconnect=lambda: counted.append("x")) as broker:
        await at(broker, first)
        first.reload(WITHOUT.format("disabled"))
        await at(broker, second)
        assert counted == ["x"]
        told = [one.getMessage() for one in caplog.records if "trying another server" in one.getMessage()]
        assert len(told) == 1
        assert f"127.0.0.1:{first.port}" in told[0]


async def test_a_node_without_an_answer_is_left_already_while_the_worker_starts(
    nodes: tuple[ConfigurableNats, ConfigurableNats],
) -> None:
    first, second = nodes
    silent = 'authorization { users: [ { user: "a", password: "a" } ] }\njetstream: disabled'
    first.reconfigure(silent)
    listener = await nats.connect(first.at("a:a"))

    async def ignore(_: Msg) -> None:
        return None

    await listener.subscribe("$JS.API.>", cb=ignore)
    await listener.flush()
    async with begun(first.at("a:a"), second.at("a:a")) as broker:
        await at(broker, second)
        await broker.wait_connected()
    await listener.close()


async def test_a_node_that_only_tells_of_its_streams_is_left(
    nodes: tuple[ConfigurableNats, ConfigurableNats],
) -> None:
    """So does a node that is cut off from its cluster: STREAM.INFO is answered, everything else is refused."""
    first, second = nodes
    first.reconfigure('authorization { users: [ { user: "a", password: "a" } ] }\njetstream: disabled')
    listener = await nats.connect(first.at("a:a"))

    async def answer(message: Msg) -> None:
        told = message.subject.startswith("$JS.API.STREAM.INFO.")
        refused = b'{"error":{"code":503,"err_code":10008,"description":"temporarily unavailable"}}'
        await message.respond(b'{"created":"2026-11-29T00:00:00Z"}' if told else refused)

    await listener.subscribe("$JS.API.>", cb=answer)
    await listener.flush()
    async with begun(first.at("a:a"), second.at("a:a")) as broker:
        await broker.wait_connected()
        assert broker._client.address.endswith(f":{first.port}")

        async def left() -> bool:
            with suppress(ApiError, BrokerError):
                await broker.api(f"STREAM.INFO.{CONFIG.realtime_stream}")
            return broker._client.address.endswith(f":{second.port}")

        await eventually(left, within=20)
    await listener.close()


async def test_a_first_node_without_jetstream_does_not_end_the_start_while_others_are_untried(
    nodes: tuple[ConfigurableNats, ConfigurableNats], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.jetstream.broker.NO_JETSTREAM_SECONDS", 0.5)
    first, second = nodes
    first.reconfigure(WITHOUT.format("disabled"))
    async with begun(first.at("a:a"), second.at("a:a")) as broker:
        async with asyncio.timeout(20):
            await broker.wait_connected()
        await at(broker, second)


async def test_the_start_ends_when_no_node_has_jetstream_for_the_account(
    nodes: tuple[ConfigurableNats, ConfigurableNats], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.jetstream.broker.NO_JETSTREAM_SECONDS", 0.5)
    for node in nodes:
        node.reconfigure(WITHOUT.format("disabled"))
    async with begun(*(node.at("a:a") for node in nodes), leave_after=0.5) as broker:
        with pytest.raises(Unusable, match="has no JetStream for this account"):
            async with asyncio.timeout(20):
                await broker.wait_connected()


async def test_a_cluster_whose_jetstream_nodes_are_down_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.jetstream.broker.NO_JETSTREAM_SECONDS", 0.2)
    ports = [free_port(), free_port()]
    cluster = 'cluster {{ name: C, listen: "127.0.0.1:{}", routes: [ "nats://127.0.0.1:{}" ] }}\n'
    bare = cluster.format(ports[0], ports[1]) + "jetstream: disabled"
    with ConfigurableNats() as first:
        first.reconfigure(bare)
        async with begun(first.url) as broker:

            async def said() -> bool:
                return "JetStream does not answer" in (broker.problem or "")

            async with asyncio.timeout(20):
                await broker.wait_connected()  # not `Unusable`
            await eventually(said)


async def test_a_single_node_is_not_left_and_named_on_ready(
    nodes: tuple[ConfigurableNats, ConfigurableNats],
) -> None:
    first, _ = nodes
    async with begun(first.at("a:a")) as broker:
        lost: list[bool] = []
        broker.watch(lost.append)
        await at(broker, first)
        first.reload(WITHOUT.format("disabled"))

        async def said() -> bool:
            return f"JetStream does not answer at 127.0.0.1:{first.port}" in (broker.problem or "")

        await eventually(said)
        assert await broker.jetstream.check() == "absent"
        await asyncio.sleep(2 * QUICK["leave_after"])
        assert not lost
        assert broker.connected
        first.reload(WITHOUT.format("enabled"))
        await at(broker, first)


async def test_two_names_of_one_node_are_one_node(nodes: tuple[ConfigurableNats, ConfigurableNats]) -> None:
    first, _ = nodes
    async with begun(first.at("a:a"), first.at("a:a").replace("127.0.0.1", "localhost")) as broker:
        lost: list[bool] = []
        broker.watch(lost.append)
        await at(broker, first)
        first.reload(WITHOUT.format("disabled"))

        async def tried() -> bool:
            return lost.count(False) >= 1

        await eventually(tried)
        await asyncio.sleep(3 * QUICK["leave_after"])
        assert lost.count(False) <= 2


async def test_a_node_with_several_addresses_is_counted_once() -> None:
    """Streams would get three replicas on two nodes, and be refused for ever."""
    routes = [free_port() for _ in range(2)]
    known = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    async with AsyncExitStack() as stack:
        addresses = []
        for port in routes:
            settings = f'cluster {{ name: C, listen: "127.0.0.1:{port}", routes: [ {known} ] }}'
            server = await asyncio.to_thread(stack.enter_context, ConfigurableNats(settings=settings))
            proxies = [await stack.enter_async_context(Proxy(server.port)) for _ in range(2)]
            addresses += [server.url, *(f"nats://127.0.0.1:{proxy.port}" for proxy in proxies)]
        async with connected(*addresses) as broker:
            assert await broker.count_nodes() == 2
        down = f"nats://127.0.0.1:{free_port()}"
        async with connected(*addresses, down) as broker:
            assert await broker.count_nodes() == 3


async def test_a_denied_right_is_no_reason_to_leave_a_node() -> None:
    settings = rights(denied=["$JS.API.INFO"])
    with ConfigurableNats(settings=rights()) as first, ConfigurableNats(settings=rights()) as second:
        async with begun(first.at("worker:w"), second.at("worker:w")) as broker:
            await at(broker, first)
            lost: list[bool] = []
            broker.watch(lost.append)
            first.reload(settings)

            async def said() -> bool:
                return "$JS.API.INFO" in (broker.problem or "")

            await eventually(said)
            await asyncio.sleep(1.5 * QUICK["leave_after"])
            assert not lost


@pytest.fixture
async def cluster() -> AsyncIterator[tuple[list[ConfigurableNats], list[Proxy]]]:
    """Three nodes; the routes of the first one lead through proxies."""
    routes = [free_port() for _ in range(3)]
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(port)) for port in routes[1:]]
        known = [[proxy.port for proxy in proxies], [routes[2]], [routes[1]]]
        # Nodes tell each other where they are: what they tell must lead through the proxies, too.
        told = [free_port(), *(proxy.port for proxy in proxies)]
        servers = []
        for port, others, advertised in zip(routes, known, told, strict=True):
            urls = ", ".join(f'"nats://127.0.0.1:{other}"' for other in others)
            settings = (
                f'cluster {{ name: C, listen: "127.0.0.1:{port}", advertise: "127.0.0.1:{advertised}", '
                f"no_advertise: true, routes: [ {urls} ] }}"
            )
            servers.append(await asyncio.to_thread(stack.enter_context, ConfigurableNats(settings=settings)))
        yield servers, proxies


@pytest.mark.rule("RUN-9")
async def test_a_node_that_is_cut_off_from_its_cluster_is_left_and_the_events_go_on(
    cluster: tuple[list[ConfigurableNats], list[Proxy]], tenant: Tenant
) -> None:
    servers, proxies = cluster
    reader = Reader()
    async with begun(*[server.url for server in servers]) as broker:
        await at(broker, servers[0])

        async def made() -> bool:
            stream = next(iter(streams(CONFIG))).config() | {"num_replicas": 3}
            with suppress(ApiError, BrokerError):
                await broker.api(f"STREAM.CREATE.{CONFIG.realtime_stream}", stream)
                return True
            return False

        await eventually(made, within=30)

        async def reconciled() -> bool:
            with suppress(TopologyError, BrokerError):
                await reconcile(broker, CONFIG, [tenant])
                return True
            return False

        await eventually(reconciled, within=30)
        await at(broker, servers[0])
        source = pull_source(broker, tenant, CONFIG, reader)
        await source.start()
        gateway = await nats.connect(servers[1].url)
        await gateway.jetstream().publish(tenant.subject(SUBJECT), b"before", timeout=10)
        await ack_all(await reader.take(1))
        for proxy in proxies:
            proxy.cut()
        began = time.monotonic()
        published = 0
        while published < 10:
            assert time.monotonic() - began < 40
            with suppress(nats.errors.Error, nats.js.errors.Error, TimeoutError):
                await gateway.jetstream().publish(tenant.subject(SUBJECT), b"after", timeout=2)
                published += 1
        await ack_all(await reader.take(10, within=40))
        assert not broker._client.address.endswith(f":{servers[0].port}")
        await source.stop()
        await gateway.close()


def test_a_server_that_was_left_comes_last_until_the_others_failed_often() -> None:
    now = [0.0]
    nodes = Nodes(lambda: now[0])
    left, other = (Server(uri=urlparse(f"nats://a:b@host{number}:4222"), reconnects=0) for number in (1, 2))
    nodes.note_connected("host1:4222", "one")
    nodes.leave("host1:4222")
    assert nodes.choose([left, other], {})[0] is other
    assert nodes.choose([left, Server(uri=other.uri, reconnects=5)], {})[0] is left
    now[0] = AVOID_SECONDS + 1
    assert nodes.choose([left, Server(uri=other.uri, reconnects=1)], {})[0] is left


def test_connections_that_end_at_once_are_tried_less_and_less_often() -> None:
    nodes = Nodes(lambda: 0.0)
    server = Server(uri=urlparse("nats://host:4222"), reconnects=0)
    waits = []
    for _ in range(8):
        nodes.note_connected("host:4222", "one")
        nodes.note_disconnected()
        waits.append(nodes.choose([server], {})[1])
    assert waits == sorted(waits)
    assert waits[-1] == 2.0
