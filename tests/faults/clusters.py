"""Environments with more than one server of a sort: three NATS nodes, a primary with a standby, a pooler."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import nats
import psutil

from events.subjects import HISTORICAL
from streams.jetstream.specs import streams as specified
from testkit.oracle import Published
from testkit.servers import NatsServer, ServerError
from testkit.worker import Worker
from tests.acceptance.company_probe import DLQ_STREAM, REALTIME_STREAM
from tests.faults.environment import Database, Environment
from tests.faults.fault import Fault
from tests.reconcile import default_settings
from tests.servers.nats_cluster import NatsCluster, NatsNode
from tests.servers.pooler import IGNORED, INSTALLED, Pooler
from tests.servers.postgres_pair import PostgresPair
from tests.servers.proxy import Proxy
from tests.slow_clock import SlowClock

# Seconds that the clock of a node is behind.
_BEHIND: Final = 3.0
_HEALTHY: Final = 40.0
_POOLER: Final = ("pool_mode = session", IGNORED, "default_pool_size = 30", "server_login_retry = 1")


class ClusterEnvironment(Environment):
    """A run on three NATS nodes. The load has a proxy for each of them, and so can be led away from one."""

    def __init__(
        self,
        fault: Fault,
        database: Database,
        folder: Path,
        cluster: NatsCluster | None = None,
        *,
        seed: int,
        short: bool = False,
    ) -> None:
        super().__init__(fault, database, folder, seed=seed, short=short)
        self.clock = SlowClock(_BEHIND, REALTIME_STREAM)
        self.evidence: list[str] = []
        self._given = cluster
        self.cluster = cluster or NatsCluster()
        self._ways: dict[str, Proxy] = {}

    async def healthy(self) -> None:
        """Return when all nodes are healthy. One that does not get so by itself is evidence, and is mended.

        Raises `ServerError` if that does not help.
        """
        try:
            return await self.cluster.wait_healthy(_HEALTHY)
        except ServerError as error:
            self.evidence.append(str(error))
        for node in await self._unhealthy():
            await asyncio.to_thread(node.restart)
        try:
            return await self.cluster.wait_healthy(_HEALTHY)
        except ServerError as error:
            self.evidence.append(f"after a restart: {error}")
        # Of three replicas one can be made anew; with two empty disks all would be gone.
        ill = await self._unhealthy()
        if len(ill) == 1:
            await asyncio.to_thread(ill[0].wipe)
            await asyncio.to_thread(ill[0].start)
        await self.cluster.wait_healthy()

    async def _unhealthy(self) -> list[NatsNode]:
        return [node for node in self.cluster.nodes if not await asyncio.to_thread(node.healthy)]

    async def leader(self, stream: str, durable: str = "") -> NatsNode:
        """The node that leads a stream or one of its consumers now; waits while there is none."""
        found: list[NatsNode] = []

        async def known() -> bool:
            path = f"CONSUMER.INFO.{stream}.{durable}" if durable else f"STREAM.INFO.{stream}"
            name = ((await self.api(path)).get("cluster") or {}).get("leader")
            found.extend(node for node in self.cluster.nodes if node.node_name == name)
            return bool(found)

        assert await self.until(f"{durable or stream} has a leader", known, 30)
        return found[-1]

    async def another_leads(self, node: NatsNode, stream: str, durable: str = "") -> None:
        """Wait until this node, which led it, does not any more."""

        async def moved() -> bool:
            return await self.leader(stream, durable) is not node

        await self.until(f"another node leads {durable or stream}", moved, 40)

    def node_of(self, worker: Worker) -> NatsNode:
        """The node that a worker is connected to."""
        ports = {
            one.raddr.port for one in psutil.Process(worker.process.pid).net_connections("tcp") if one.raddr
        }
        return next(node for node in self.cluster.nodes if node.port in ports)

    async def lead_away(self, node: NatsNode) -> None:
        """Have the load use another node than this one from now on, until `lead_back`."""
        self._ways[node.node_name].cut()

        async def elsewhere() -> bool:
            await self.client.flush(1)
            url = self.client.connected_url
            return url is not None and url.port != self._ways[node.node_name].port

        await self.until("the load has left the node", elsewhere, 20)

    def lead_back(self, node: NatsNode) -> None:
        """The opposite of `lead_away`."""
        self._ways[node.node_name].heal()

    async def set_replicas(self, count: int) -> None:
        """Change the replicas of all streams."""
        for spec in specified(default_settings()):
            await self.change_stream(spec.name, {"num_replicas": count})

    async def dead_letter_server(self) -> NatsServer:
        """The leader of the dead-letter stream, which the load has left."""
        node = await self.leader(DLQ_STREAM)
        await self.lead_away(node)
        return node

    def as_told(self, published: Iterable[Published]) -> list[Published]:
        """With the clock that is behind: there, too, the later event of a row wins, by its sequence."""
        return [
            one
            if one.publication.event_type in HISTORICAL
            else one._replace(version=self.clock.told(one.version))
            for one in published
        ]

    async def _open_servers(self) -> list[str]:
        if self._given is None:
            await self._stack.enter_async_context(self.cluster)
        await self.cluster.wait_healthy()
        for direct in self.cluster.direct_routes():
            self.complain(f"a route past the proxies: {direct}")
        for node in self.cluster.nodes:
            self._ways[node.node_name] = await self._stack.enter_async_context(Proxy(node.port))
        self._clocks = [
            await self._stack.enter_async_context(Proxy(node.port, self.clock.rewrite))
            for node in self.cluster.nodes
            if self.fault.proxies
        ]
        return _urls(list(self._ways.values()))

    async def _prepare(self) -> None:
        for spec in specified(default_settings()):
            config = {**spec.config(), "num_replicas": self.fault.replicas}
            await self.until(f"{spec.name} is made", lambda: self._made(spec.name, config), 30)  # noqa: B023

    async def _made(self, name: str, config: dict[str, Any]) -> bool:
        try:
            answer = await self.api(f"STREAM.CREATE.{name}", config)
        except nats.errors.Error:
            return False
        return "error" not in answer or answer["error"].get("err_code") == 10058

    def _urls(self) -> tuple[str, str]:
        return ",".join(_urls(self._clocks) if self._clocks else self.cluster.urls), self.dsn

    def _settings(self) -> dict[str, str]:
        return {"NATS_STREAM_REPLICAS": str(self.fault.replicas)} | super()._settings()


class PairEnvironment(Environment):
    """A run on a primary with a standby; the worker's DSN names both."""

    @property
    def pair(self) -> PostgresPair:
        """The two."""
        assert isinstance(self.database, PostgresPair)
        return self.database

    def _urls(self) -> tuple[str, str]:
        return self.nats.url, self.pair.dsn_of_both(self._database)


class PoolerEnvironment(Environment):
    """A run with a pooler before PostgreSQL: Debian's pgbouncer, or a proxy where that is not installed."""

    pooler: Pooler | None = None

    async def restart_pooler(self) -> None:
        """End it in its orderly way or as in a crash, and start it again."""
        if self.pooler is None:
            self.postgres_proxy.cut()
            await self.pause(0.0, 1.0)
            self.postgres_proxy.heal()
            return
        await asyncio.to_thread(self.rng.choice((self.pooler.stop, self.pooler.kill)))
        await self.pause(0.0, 1.0)
        await asyncio.to_thread(self.pooler.start)

    async def _open_servers(self) -> list[str]:
        urls = await super()._open_servers()
        if INSTALLED is not None:
            self.pooler = self._stack.enter_context(Pooler(self.postgres, *_POOLER))
        return urls

    def _urls(self) -> tuple[str, str]:
        port = self.postgres_proxy.port if self.pooler is None else self.pooler.port
        return self.nats.url, f"postgresql://postgres@127.0.0.1:{port}/{self._database}"


def _urls(proxies: list[Proxy]) -> list[str]:
    return [f"nats://127.0.0.1:{proxy.port}" for proxy in proxies]
