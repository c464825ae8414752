"""Which of several NATS servers to connect to, and which to keep away from for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from nats.aio.client import Server

AVOIDED_FOR: Final = 60.0
FIRST_WAIT: Final = 0.05
LONGEST_WAIT: Final = 2.0
# A connection that lasted less is a failed try, however friendly its beginning was.
LASTING: Final = 5.0
# A server that we left comes after the others, until each of them failed this often.
_PENALTY: Final = 4


class Nodes:
    """Servers by address and by their own id: a cluster tells addresses of servers that have others here, too."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ids: dict[str, str] = {}
        self._left: dict[str, float] = {}
        self._left_addresses: set[str] = set()
        self._arrived: float | None = None
        self._short = 0

    def arrived(self, address: str, server_id: str) -> None:
        """A connection is there."""
        self._ids[address] = server_id
        self._arrived = self._clock()

    def lost(self) -> None:
        """The connection is gone."""
        if self._arrived is not None:
            self._short = self._short + 1 if self._clock() - self._arrived < LASTING else 0
            self._arrived = None

    def leave(self, address: str) -> None:
        """Do not come back to this server for a while, by whichever address."""
        self._left[self._ids.get(address, address)] = self._clock() + AVOIDED_FOR
        self._left_addresses.add(address)

    def avoided(self, address: str) -> bool:
        """Whether it was left lately."""
        return self._left.get(self._ids.get(address, address), 0.0) > self._clock()

    def left_by_another_address(self, address: str) -> bool:
        """Whether this address leads to a server that was left lately by another one."""
        return self.avoided(address) and address not in self._left_addresses

    def others(self, addresses: Sequence[str], current: str) -> bool:
        """Whether one of the addresses may be of another server, as far as is known."""
        own = self._ids.get(current)
        return any(address != current and self._ids.get(address) != own for address in addresses)

    def choose(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """The server that failed least, and the seconds to wait for it: few at first, then 2."""
        server = min(servers, key=self._cost)
        tries = min(max(server.reconnects, self._short), 10)
        return server, min(FIRST_WAIT * 2.0**tries, LONGEST_WAIT)

    def _cost(self, server: Server) -> int:
        address = server.uri.netloc.rpartition("@")[2]
        return int(server.reconnects) + (_PENALTY if self.avoided(address) else 0)
