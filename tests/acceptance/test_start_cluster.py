"""The start on three NATS nodes: waited for while they are not enough, streams with three copies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import nats
import pytest
from nats.aio.client import Client

from testkit.servers import NatsServer, free_port
from testkit.worker import environment
from tests import builders
from tests.acceptance.company_probe import DLQ_STREAM, HISTORY_STREAM, REALTIME_STREAM, comes_to, comes_true
from tests.acceptance.conftest import Launch, visited
from tests.programs import command


class Nodes:
    """Three NATS servers that make one cluster; none runs at first."""

    def __init__(self) -> None:
        routes = [free_port() for _ in range(3)]
        told = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        self.servers = [
            NatsServer(settings=f'cluster {{ name: c, listen: "127.0.0.1:{port}", routes: [{told}] }}')
            for port in routes
        ]

    def start(self) -> None:
        """Start all that do not run."""
        for server in self.servers:
            if not server.pid:
                server.start()

    def close(self) -> None:
        """End all, with their data."""
        for server in self.servers:
            server.close()

    @property
    def url(self) -> str:
        """All of them, as an operator configures them; to be asked when they have their ports."""
        return ",".join(server.url for server in self.servers)


async def with_jetstream(url: str) -> Client:
    """A connection to a cluster whose JetStream answers."""
    client = await nats.connect(url.split(","))

    async def answers() -> bool:
        try:
            await client.jetstream().account_info()
        except Exception:
            return False
        return True

    await comes_to(True, answers)
    return client


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Three nodes that run, shared by the tests of this module that stop none."""
    nodes = Nodes()
    nodes.start()
    yield nodes
    nodes.close()


@pytest.fixture
async def client(cluster: Nodes) -> AsyncIterator[Client]:
    """A connection to the shared cluster, which has no streams."""
    client = await with_jetstream(cluster.url)
    for stream in await client.jetstream().streams_info():
        await client.jetstream().delete_stream(stream.config.name or "")
    yield client
    await client.close()


async def test_a_worker_that_meets_one_node_of_three_waits_for_the_others(
    launch: Launch, nodes: Nodes, company: str, database_dsn: str
) -> None:
    nodes.start()
    for server in nodes.servers[1:]:
        server.stop()
    worker = launch(company, ready=False, nats_url=nodes.url, postgres_dsn=database_dsn)
    await comes_true(lambda: worker.running and "JetStream" in worker.page("/ready")[1])
    for server in nodes.servers[1:]:
        server.start()
    await comes_true(lambda: worker.running and worker.page("/ready")[0] == 200, within=60)

    client = await with_jetstream(nodes.url)
    async with visited(company, client, database_dsn) as probe:
        await probe.publish("v1.chats.upsert", builders.chat())
        await probe.holds("chats", 1)
        for stream in (REALTIME_STREAM, HISTORY_STREAM, DLQ_STREAM):
            assert (await probe.js.stream_info(stream)).config.num_replicas == 3
        info = await probe.consumer()
        assert info.cluster is not None
        assert len(info.cluster.replicas or []) == 2
    await client.close()


async def test_one_copy_in_a_cluster_is_warned_of_once_with_the_command_that_mends_it(
    client: Client, launch: Launch, cluster: Nodes, company: str, database_dsn: str
) -> None:
    await client.jetstream().add_stream(name=DLQ_STREAM, subjects=["v1.dlq.>"], num_replicas=1)
    # One address is enough: the cluster tells the others.
    [url, *_] = cluster.url.split(",")
    worker = launch(company, nats_url=url, postgres_dsn=database_dsn)
    hint = f"nats stream edit {DLQ_STREAM} --replicas 3"
    assert len([line for line in worker.lines() if hint in line["msg"]]) == 1
    shown = command("topology", env=environment([company], url, database_dsn)).stdout
    assert hint in shown
    assert f"stream {REALTIME_STREAM} has replicas 3" in shown
    assert f"stream {DLQ_STREAM} has replicas 1" in shown
    assert (await client.jetstream().stream_info(DLQ_STREAM)).config.num_replicas == 1


async def test_one_copy_is_made_in_a_cluster_only_when_told_to(
    client: Client, launch: Launch, cluster: Nodes, company: str, database_dsn: str
) -> None:
    worker = launch(company, nats_url=cluster.url, postgres_dsn=database_dsn, NATS_STREAM_REPLICAS="1")
    assert (await client.jetstream().stream_info(REALTIME_STREAM)).config.num_replicas == 1
    assert not [line for line in worker.lines() if "--replicas" in line["msg"]]


async def test_more_copies_than_nodes_are_waited_for_with_the_stream_named(
    client: Client, launch: Launch, cluster: Nodes, company: str, database_dsn: str
) -> None:
    worker = launch(
        company, ready=False, nats_url=cluster.url, postgres_dsn=database_dsn, NATS_STREAM_REPLICAS="5"
    )

    def told() -> str:
        assert worker.running, worker.written()
        return worker.page("/ready")[1]

    await comes_true(lambda: f"stream {REALTIME_STREAM}" in told() and "NATS_STREAM_REPLICAS" in told())
    assert (await client.jetstream().account_info()).streams == 0
