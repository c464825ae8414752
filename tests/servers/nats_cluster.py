"""Three nats-server nodes whose routes lead through proxies, so that a node can be cut off from the others."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
import urllib.request
from contextlib import AsyncExitStack
from typing import Any, Final, Self

import psutil

from testkit.servers import NatsServer, ServerError, free_port
from tests.servers.proxy import Proxy

NODES: Final = 3
_HEALTHY: Final = 60.0
_POLL: Final = 0.1
_HTTP: Final = 2.0


class NatsNode(NatsServer):
    """One node of a cluster. `routes` are set before its start: URLs of the others, as this node dials them."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.node_name = f"n{number}"
        self.route_port = free_port()
        self.routes: list[str] = []

    def wipe(self) -> None:
        """Kill it and take its disk away; `start` gives it an empty one."""
        self.kill()
        shutil.rmtree(self._folder / "jetstream")

    def lame_duck(self) -> None:
        """Ask it to hand its leaderships and clients to the others, and to end; does not wait for that."""
        os.kill(self.pid, signal.SIGUSR2)

    def page(self, path: str) -> dict[str, Any] | None:
        """A page of its monitoring port; None if it is not served. Blocks."""
        try:
            url = f"http://127.0.0.1:{self.monitoring_port}{path}"
            with urllib.request.urlopen(url, timeout=_HTTP) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, ValueError):
            return None

    def healthy(self) -> bool:
        """Whether it is in the cluster, and all that it keeps of streams and consumers is current. Blocks."""
        return self.running and (self.page("/healthz") or {}).get("status") == "ok"

    def _configure(self) -> None:
        # Nodes advertise their addresses, and would connect past the proxies: nobody listens at that one.
        self._settings = f"""
            lame_duck_duration: 30s
            lame_duck_grace_period: 1s
            cluster {{
                name: faults
                listen: "127.0.0.1:{self.route_port}"
                advertise: "127.0.0.1:1"
                no_advertise: true
                routes: [{", ".join(self.routes)}]
            }}"""
        super()._configure()


class NatsCluster(AsyncExitStack):
    """Three nodes; in an `async with` statement all are healthy on entry, and gone on leaving."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = [NatsNode(number) for number in range(1, NODES + 1)]
        self._routes: dict[tuple[int, int], Proxy] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self.aclose()
            raise
        return self

    @property
    def urls(self) -> list[str]:
        """Where clients connect, node by node."""
        return [node.url for node in self.nodes]

    def node(self, name: str) -> NatsNode:
        """The node of this name."""
        return next(node for node in self.nodes if node.node_name == name)

    def cut_off(self, node: NatsNode, *, silently: bool) -> None:
        """Carry nothing between this node and the others; `silently`: without ending a connection."""
        for proxy in self._routes_of(node):
            if silently:
                proxy.freeze()
            else:
                proxy.cut()

    def join(self, node: NatsNode) -> None:
        """The opposite of `cut_off`."""
        for proxy in self._routes_of(node):
            proxy.heal()

    async def wait_healthy(self, within: float = _HEALTHY) -> None:
        """Return when all nodes are healthy and know a leader. Raises `ServerError`."""
        deadline = time.monotonic() + within
        while not all(await asyncio.gather(*(asyncio.to_thread(_settled, node) for node in self.nodes))):
            if time.monotonic() > deadline:
                pages = [(node.node_name, node.page("/healthz?details=true")) for node in self.nodes]
                raise ServerError(f"the cluster is not healthy after {within:g} s: {pages}")
            await asyncio.sleep(_POLL)

    def direct_routes(self) -> list[str]:
        """Connections of a node to another one that no proxy carries: there must be none."""
        listening = {node.route_port for node in self.nodes}
        return [
            f"{node.node_name} -> {one.raddr.port}"
            for node in self.nodes
            for one in psutil.Process(node.pid).net_connections("tcp")
            if one.raddr and one.raddr.port in listening
        ]

    async def _open(self) -> None:
        for at, node in enumerate(self.nodes):
            for to, other in enumerate(self.nodes):
                if at != to:
                    proxy = await self.enter_async_context(Proxy(other.route_port))
                    self._routes[at, to] = proxy
                    node.routes.append(f'"nats-route://127.0.0.1:{proxy.port}"')
            self.callback(node.close)
        await asyncio.gather(*(asyncio.to_thread(node.start) for node in self.nodes))
        await self.wait_healthy()

    def _routes_of(self, node: NatsNode) -> list[Proxy]:
        at = self.nodes.index(node)
        return [proxy for pair, proxy in self._routes.items() if at in pair]


def _settled(node: NatsNode) -> bool:
    if not node.healthy():
        return False
    meta = (node.page("/jsz") or {}).get("meta_cluster") or {}
    return bool(meta.get("leader")) and meta.get("cluster_size") == NODES
