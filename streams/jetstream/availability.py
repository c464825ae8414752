"""Whether JetStream answers at the server that we are connected to; if it does not, another server is tried.

A node that is cut off from its cluster keeps its connections, answers pings and tells of streams as it knew them: only
what it says of the account counts, and answers to pulls.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import msgspec
import nats.errors
from nats.aio.msg import Msg

from events.errors import BrokerError
from streams.jetstream.client import NatsClient
from streams.jetstream.nodes import Nodes

logger = logging.getLogger(__name__)

ASK_EVERY: Final = 5.0
SHORTEST_WAIT: Final = 1.0
LEAVE_AFTER: Final = 20.0
# Once every known server has been tried, all are likely to have the same trouble: they are changed less often.
_SLOWER: Final = 4

_DISABLED: Final = frozenset((10039, 10076))
UNAVAILABLE: Final = 10008

State = Literal["works", "absent", "unavailable", "silent"]


class AvailabilityCheck:
    """Asks from time to time, and leaves a server after `leave_after` seconds without an answer.

    * `ask` requests the account's information. It raises `BrokerError` when a right is denied, and errors of
      nats-py.
    * A single known server is never left: nothing is gained by it.
    * While all sources get answers to their pulls, JetStream works for us, whatever its API says.
    """

    def __init__(
        self,
        *,
        client: NatsClient,
        nodes: Nodes,
        ask: Callable[[float], Awaitable[Msg]],
        domain: str,
        ask_every: float = ASK_EVERY,
        leave_after: float = LEAVE_AFTER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._nodes = nodes
        self._ask = ask
        self._domain = domain
        self._every = ask_every
        self._leave_after = leave_after
        self._clock = clock
        self._since = clock()  # when it last worked, or the connection began
        self._reason = ""
        self._leaves = 0
        self._pulls: list[Callable[[], float]] = []

    @property
    def problem(self) -> str | None:
        """Why nothing can be done at this server, though it is connected; None while JetStream works."""
        lasting = self._clock() - self._since >= 2 * self._every
        return self.complaint if self._reason and lasting and not self._served() else None

    @property
    def complaint(self) -> str:
        """The last failure, with server and domain."""
        what = (
            f"no JetStream answers for domain {self._domain}" if self._domain else "JetStream does not answer"
        )
        return f"{what} at {self._client.address}: {self._reason}"

    @property
    def elsewhere(self) -> bool:
        """Whether there are servers that were not tried yet."""
        return not self._tried_all() and self._nodes.others(self._client.addresses, self._client.address)

    def watch_pulls(self, answered: Callable[[], float]) -> None:
        """`answered` tells when a source was last answered, in `time.monotonic()` seconds."""
        self._pulls.append(answered)

    def connected(self) -> None:
        """A connection has begun."""
        self._since = self._clock()
        self._reason = ""

    def worked(self) -> None:
        """JetStream has answered."""
        self.connected()
        self._leaves = 0

    async def look(self) -> State:
        """Ask once; also remembered for `problem`."""
        try:
            answer = await self._ask(max(self._every, SHORTEST_WAIT))
        except nats.errors.NoRespondersError:
            # Of a node that has JetStream, or whose neighbours may, it means that the cluster is not complete yet.
            incomplete = (self._client.offers_jetstream or self._client.clustered) and not self._domain
            return self._failed("unavailable" if incomplete else "absent", "nobody serves its API")
        except BrokerError as error:
            # Which rights we have says nothing of the server.
            self.connected()
            return self._failed("silent", str(error))
        except (nats.errors.Error, TimeoutError, OSError) as error:
            return self._failed("silent", type(error).__name__)
        refusal = msgspec.json.decode(answer.data).get("error", {})
        if (code := refusal.get("err_code")) in _DISABLED:
            return self._failed("absent", refusal.get("description", ""))
        if code == UNAVAILABLE:
            return self._failed("unavailable", refusal.get("description", ""))
        self.worked()
        return "works"

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            if self._client.is_connected and self._clock() - self._since >= self._every:
                await self.look()
                await self.leave_if_stuck()

    async def leave_if_stuck(self) -> None:
        """Go to another server if this one has been without JetStream for too long, or was left lately."""
        address = self._client.address
        if not self._reason or self._clock() - self._since < self._patience() or self._served():
            return
        if self._client.is_connected and self._nodes.others(self._client.addresses, address):
            logger.warning(
                "%s for %.0f s: trying another server", self.complaint, self._clock() - self._since
            )
            self._leaves += 1
            await self._leave(address)

    async def left_again(self) -> bool:
        """Go on at once from a server that was left lately and was reached by another of its addresses."""
        again = self._nodes.left_by_another_address(self._client.address)
        if again:
            await self._leave(self._client.address)
        return again

    async def _leave(self, address: str) -> None:
        self._nodes.leave(address)
        await self._client.force_reconnect()

    def _patience(self) -> float:
        return self._leave_after * (_SLOWER if self._tried_all() else 1)

    def _tried_all(self) -> bool:
        return self._leaves >= len(self._client.addresses)

    def _served(self) -> bool:
        recent = self._clock() - max(self._leave_after / 2, self._every)
        return bool(self._pulls) and all(answered() > recent for answered in self._pulls)

    def _failed(self, state: State, reason: str) -> State:
        self._reason = reason
        return state
