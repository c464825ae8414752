"""How many NATS nodes there are, as far as a client can know."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import ParseResult


def node_count(info: Mapping[str, Any], servers: Iterable[ParseResult]) -> int:
    """Nodes of the cluster, at least 1; 1 for a server that says that it is in none.

    `info` is what the server said of itself when the client connected, `servers` are all that were configured or
    told by the cluster. A node that is configured by its name is told by its addresses as well, which may be one of
    each family: the largest group counts. Nodes that are down and not configured are not known.
    """
    if not info.get("cluster"):
        return 1
    hosts = {server.netloc.rpartition("@")[2]: server.hostname or "" for server in servers}
    return max([1, *Counter(map(_family, hosts.values())).values()])


def _family(host: str) -> int:
    """4 or 6 for an address, 0 for a name."""
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return 0
