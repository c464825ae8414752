"""Whether the worker does its work: the reasons behind `/ready` (contract 8.1, C18)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

logger = logging.getLogger(__name__)

# Seconds without an answered pull request, or without any settled delivery while some are held, after which
# a source counts as stuck.
FETCH_SILENCE: Final = 15.0
NO_PROGRESS: Final = 60.0
# Below the time-out of the usual probe (contract 7).
PING_TIMEOUT: Final = 2.0


class WatchedSource(Protocol):
    """What is asked of a source."""

    @property
    def name(self) -> str:
        """Role and company."""
        ...

    @property
    def held(self) -> int:
        """Deliveries not settled yet."""
        ...

    @property
    def last_fetch(self) -> float:
        """When a pull request was last answered, `time.monotonic()` seconds; 0 before the first."""
        ...

    @property
    def last_progress(self) -> float:
        """When a delivery was last settled or nothing was held, `time.monotonic()` seconds."""
        ...


class Readiness:
    """Collects reasons not to be ready; an empty answer means ready."""

    def __init__(self) -> None:
        self._starting = "starting"
        self._paused: dict[str, str] = {}
        self.broker_problem: Callable[[], str | None] = lambda: "not connected yet"
        self.ping_database: Callable[[], Awaitable[None]] | None = None
        self.dead_agents: Callable[[], Sequence[str]] = lambda: ()
        self.sources: Sequence[WatchedSource] = ()
        self.stalled: Callable[[], Mapping[str, str]] = dict
        self._ping: asyncio.Future[None] | None = None

    def starting(self, step: str) -> None:
        """The worker has not come further than this step."""
        self._starting = step

    def started(self) -> None:
        """The worker has begun to fetch."""
        self._starting = ""

    def stopping(self) -> None:
        """The worker takes no new work."""
        self._starting = "stopping"

    def paused(self, waiter: str, reason: str) -> None:
        """`waiter` (what it does, and for whom) waits for the database."""
        if reason != self._paused.get(waiter):
            logger.warning("%s waits: %s", waiter, reason)
        self._paused[waiter] = reason

    def resumed(self, waiter: str) -> None:
        """`waiter` goes on."""
        if self._paused.pop(waiter, None) is not None:
            logger.info("%s works again", waiter)

    async def reasons(self) -> Mapping[str, str]:
        """Why the worker is not ready, by part; empty when it is."""
        found: dict[str, str] = {}
        if self._starting:
            found["worker"] = self._starting
        if problem := self.broker_problem():
            found["nats"] = problem
        if problem := await self._database_problem():
            found["postgres"] = problem
        if dead := self.dead_agents():
            found["agents"] = f"not running: {', '.join(dead)}"
        if not self._starting:
            found.update(self.stalled())
            found.update(self._source_problems(time.monotonic()))
        return found

    async def outage(self) -> str | None:
        """What is known to keep the worker from its work, and is waited out: a server is away, or it starts or
        stops."""
        return self._starting or self.broker_problem() or await self._database_problem()

    async def _database_problem(self) -> str | None:
        if self.ping_database is not None:
            # A ping that hangs is not waited for, not even for its end: cancelling it asks the same silent
            # server. Nor is a second one sent meanwhile, which would take another connection.
            ping = self._ping = self._ping or asyncio.ensure_future(self.ping_database())
            done, _ = await asyncio.wait({ping}, timeout=PING_TIMEOUT)
            if not done:
                return "no answer"
            self._ping = None
            if error := ping.exception():
                return str(error)
        return "; ".join(f"{waiter}: {reason}" for waiter, reason in self._paused.items()) or None

    def _source_problems(self, now: float) -> Mapping[str, str]:
        found = {}
        for source in self.sources:
            if now - source.last_fetch > FETCH_SILENCE and not source.held:
                found[source.name] = "no pull request was answered lately"
            elif source.held and now - source.last_progress > NO_PROGRESS:
                found[source.name] = f"{source.held} deliveries under way, none finished lately"
        return found
