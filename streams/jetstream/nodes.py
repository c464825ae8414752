"""The choice among several NATS servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from nats.aio.client import Server

AVOID_SECONDS: Final = 60.0
FIRST_WAIT: Final = 0.05
LONGEST_WAIT: Final = 2.0
# A connection that lasted less counts as a failed try.
LASTING_SECONDS: Final = 5.0
# A server that was left comes after the others, until each of them failed so often.
_PENALTY: Final = 4


class Nodes:
    """The servers that were left lately, by server id: a cluster advertises further addresses of each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ids: dict[str, str] = {}
        self._left: dict[str, float] = {}
        self._left_addresses: set[str] = set()
        self._connected_at: float | None = None
        self._short_connections = 0

    def note_connected(self, address: str, server_id: str) -> None:
        """Note a new connection."""
        self._ids[address] = server_id
        self._connected_at = self._clock()

    def note_disconnected(self) -> None:
        """Note that the connection was lost."""
        if self._connected_at is not None:
            lasted = self._clock() - self._connected_at >= LASTING_SECONDS
            self._short_connections = 0 if lasted else self._short_connections + 1
            self._connected_at = None

    def leave(self, address: str) -> None:
        """Avoid this server for a while, at each of its addresses."""
        self._left[self._ids.get(address, address)] = self._clock() + AVOID_SECONDS
        self._left_addresses.add(address)

    def is_avoided(self, address: str) -> bool:
        """Whether its server was left lately."""
        return self._left.get(self._ids.get(address, address), 0.0) > self._clock()

    def was_left_at_another_address(self, address: str) -> bool:
        """Whether this is a new address of a server that was left lately."""
        return self.is_avoided(address) and address not in self._left_addresses

    def has_others(self, addresses: Sequence[str], current: str) -> bool:
        """Whether one of the addresses may belong to another server."""
        own = self._ids.get(current)
        return any(address != current and self._ids.get(address) != own for address in addresses)

    def choose(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """The server that failed least, and the seconds to wait before the try: at most 2."""
        server = min(servers, key=self._cost)
        tries = min(max(server.reconnects, self._short_connections), 10)
        return server, min(FIRST_WAIT * 2.0**tries, LONGEST_WAIT)

    def _cost(self, server: Server) -> int:
        address = server.uri.netloc.rpartition("@")[2]
        return int(server.reconnects) + (_PENALTY if self.is_avoided(address) else 0)
