"""The number of NATS nodes, as far as a client can find out."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import ParseResult

# How long a server may take to send its INFO, seconds. It does so before it knows who asks.
INFO_SECONDS: Final = 1.0
# Many consumers may be restored at once; they need not all ask.
KEPT_SECONDS: Final = 30.0
_INFO: Final = b"INFO "


class NodeCounter:
    """Counts the nodes of a cluster by their server ids.

    One node may have many addresses: a name, one of each family, one for each network of its host. Nodes that are down
    and not configured are not known.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._counted: tuple[Mapping[str, ParseResult], float, int] = ({}, 0.0, 1)

    async def count(self, info: Mapping[str, Any], servers: Iterable[ParseResult]) -> int:
        """At least 1; 1 for a server that is in no cluster.

        `info` is the INFO of the connected server, `servers` are all addresses that are configured or advertised.
        """
        if not info.get("cluster"):
            return 1
        hosts = {server.netloc.rpartition("@")[2]: server for server in servers}
        async with self._lock:
            known, until, nodes = self._counted
            if known.keys() != hosts.keys() or time.monotonic() > until:
                nodes = await _count(hosts.values())
                self._counted = (hosts, time.monotonic() + KEPT_SECONDS, nodes)
        return nodes


async def _count(servers: Iterable[ParseResult]) -> int:
    addresses = list(servers)
    most = _count_addresses(addresses)
    if most <= 1:
        return 1
    ids = await asyncio.gather(*map(_server_id, addresses))
    silent = [server for server, server_id in zip(addresses, ids, strict=True) if not server_id]
    # In doubt too many: a node that is down counts, and a server refuses more replicas than it has nodes for.
    return max(1, min(most, len({*ids} - {""}) + _count_addresses(silent)))


def _count_addresses(servers: Iterable[ParseResult]) -> int:
    """Names, addresses of IPv4 or addresses of IPv6, whichever are most."""
    return max(Counter(_family(server.hostname or "") for server in servers).values(), default=0)


def _family(host: str) -> int:
    """4 or 6 for an address, 0 for a name."""
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return 0


async def _server_id(server: ParseResult) -> str:
    """The id in the INFO of the server at this address; empty without an answer."""
    try:
        async with asyncio.timeout(INFO_SECONDS):
            reader, writer = await asyncio.open_connection(server.hostname, server.port)
            try:
                line = await reader.readline()
            finally:
                writer.close()
        return str(json.loads(line.removeprefix(_INFO))["server_id"])
    except (OSError, TimeoutError, ValueError, KeyError):
        return ""
