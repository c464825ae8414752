"""The check whether JetStream works at the connected server; if it does not, another server is tried.

A node that is cut off from its cluster keeps its connections, answers pings and describes streams as it last knew them.
Only its information about the account and its answers to pull requests count.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec
import nats.errors

from events.errors import BrokerError
from streams.jetstream.client import NatsClient
from streams.jetstream.messaging import Messaging
from streams.jetstream.nodes import Nodes

logger = logging.getLogger(__name__)

CHECK_EVERY: Final = 5.0
MIN_ANSWER_SECONDS: Final = 1.0
LEAVE_AFTER: Final = 20.0
# Once every known server was left, all are likely to have the same fault: they are changed less often.
_SLOWER: Final = 4

_DISABLED: Final = frozenset((10039, 10076))
UNAVAILABLE: Final = 10008

State = Literal["works", "absent", "unavailable", "silent"]


@dataclass(kw_only=True, eq=False)
class AvailabilityCheck:
    """Checks JetStream every `check_every` seconds, and leaves a server after `leave_after` seconds without it.

    `info_subject` is where the account's information is requested. A single known server is never left. While all
    sources get answers to their pull requests, JetStream works, whatever its API answers.
    """

    client: NatsClient
    messaging: Messaging
    nodes: Nodes
    info_subject: str
    domain: str
    check_every: float
    leave_after: float
    _since: float = field(
        default_factory=time.monotonic, init=False
    )  # it last worked, or the connection began
    _reason: str = field(default="", init=False)
    _leaves: int = field(default=0, init=False)
    _pulls: dict[str, float] = field(default_factory=dict, init=False)

    @property
    def problem(self) -> str | None:
        """Why JetStream does not work at the connected server; None while it works."""
        lasting = time.monotonic() - self._since >= 2 * self.check_every
        return self.failure if self._reason and lasting and not self._pulls_answered() else None

    @property
    def failure(self) -> str:
        """The last failure, with server and domain."""
        what = (
            f"no JetStream answers for domain {self.domain}" if self.domain else "JetStream does not answer"
        )
        return f"{what} at {self.client.address}: {self._reason}"

    @property
    def has_untried_servers(self) -> bool:
        """Whether there are servers that were not tried yet."""
        return not self._tried_all() and self.nodes.has_others(self.client.addresses, self.client.address)

    def note_pull(self, subject: str) -> None:
        """Note that a pull request to `subject` was answered, or that a source begins to pull there."""
        self._pulls[subject] = time.monotonic()

    def note_connected(self) -> None:
        """Note a new connection."""
        self._since = time.monotonic()
        self._reason = ""

    def note_works(self) -> None:
        """Note that JetStream has answered."""
        self.note_connected()
        self._leaves = 0

    async def check(self) -> State:
        """Check once; the result is also kept for `problem`."""
        try:
            timeout = max(self.check_every, MIN_ANSWER_SECONDS)
            answer = await self.messaging.request(self.info_subject, b"", timeout)
        except nats.errors.NoRespondersError:
            # If this node or others of its cluster have JetStream, the cluster is not complete yet.
            info = self.client.server_info
            incomplete = (info.get("jetstream") or info.get("cluster")) and not self.domain
            return self._failed("unavailable" if incomplete else "absent", "nobody serves its API")
        except BrokerError as error:
            # A denied permission is no fault of this server.
            self.note_connected()
            return self._failed("silent", str(error))
        except (nats.errors.Error, TimeoutError, OSError) as error:
            return self._failed("silent", type(error).__name__)
        refusal = msgspec.json.decode(answer.data).get("error", {})
        if (code := refusal.get("err_code")) in _DISABLED:
            return self._failed("absent", refusal.get("description", ""))
        if code == UNAVAILABLE:
            return self._failed("unavailable", refusal.get("description", ""))
        self.note_works()
        return "works"

    async def run(self) -> None:
        """Check regularly, until cancelled."""
        while True:
            await asyncio.sleep(self.check_every)
            if self.client.is_connected and time.monotonic() - self._since >= self.check_every:
                await self.check()
                await self.leave_if_stuck()

    async def leave_if_stuck(self) -> None:
        """Connect to another server if this one has been without JetStream for too long."""
        address = self.client.address
        if (
            not self._reason
            or time.monotonic() - self._since < self._leave_seconds()
            or self._pulls_answered()
        ):
            return
        if self.client.is_connected and self.nodes.has_others(self.client.addresses, address):
            logger.warning(
                "%s for %.0f s: trying another server", self.failure, time.monotonic() - self._since
            )
            self._leaves += 1
            await self._leave(address)

    async def leave_if_avoided(self) -> bool:
        """Leave at once a server that was left lately and is now connected at another of its addresses."""
        avoided = self.nodes.was_left_at_another_address(self.client.address)
        if avoided:
            await self._leave(self.client.address)
        return avoided

    async def _leave(self, address: str) -> None:
        self.nodes.leave(address)
        await self.client.force_reconnect()

    def _leave_seconds(self) -> float:
        return self.leave_after * (_SLOWER if self._tried_all() else 1)

    def _tried_all(self) -> bool:
        return self._leaves >= len(self.client.addresses)

    def _pulls_answered(self) -> bool:
        recent = time.monotonic() - max(self.leave_after / 2, self.check_every)
        return bool(self._pulls) and min(self._pulls.values()) > recent

    def _failed(self, state: State, reason: str) -> State:
        self._reason = reason
        return state
