"""Whether the worker does its work: the reasons behind `/ready`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from events.delivery import SourceStatus
from streams.lifecycle.wait_reasons import WaitReasons

# Seconds without an answered pull request, or without any settled delivery while some are held, after which
# a source counts as stuck.
FETCH_SILENCE: Final = 15.0
# As little is enough where the server said why.
REFUSED_SILENCE: Final = 3.0
NO_PROGRESS: Final = 60.0
# Below the time-out of the usual probe (contract 7).
PING_TIMEOUT: Final = 2.0
# Parts of the work that wait for PostgreSQL, by the first word of their names: told as its problem.
_OF_THE_DATABASE: Final = ("storing ", "onboarding ")


class Readiness:
    """Collects reasons not to be ready; an empty answer means ready.

    A part that waits is known by its name, such as `storing KopiNusa` or `stream dlq_stream`, has one reason at a
    time, and takes none from another part.
    """

    def __init__(self) -> None:
        self._starting = "starting"
        self._unserved = WaitReasons("waiting: {name}: {reason}", "no longer waiting: {name}")
        self._paused = WaitReasons("{name} waits: {reason}", "{name} works again")
        self._unanswered = WaitReasons("{name}: {reason}", "{name} is there again")
        self.sources: Sequence[SourceStatus] = ()
        self.broker_problem: Callable[[], str | None] = lambda: "not connected yet"
        self.ping_database: Callable[[], Awaitable[None]] | None = None
        self.dead_agents: Callable[[], Sequence[str]] = lambda: ()
        self.stalled: Callable[[], Mapping[str, str]] = dict
        self._ping: asyncio.Future[None] | None = None

    def starting(self, step: str) -> None:
        """The worker has not come further than this step."""
        self._starting = step

    def started(self) -> None:
        """What all companies share is there; some of them may still have to wait."""
        self._starting = ""

    def stopping(self) -> None:
        """The worker takes no new work."""
        self._starting = "stopping"

    def unserved(self, part: str, reason: str) -> None:
        """This part of the start is waited for, while the rest of the worker works."""
        self._unserved.begin(part, reason)

    def served(self, part: str) -> None:
        """This part of the start is through."""
        self._unserved.end(part)

    def paused(self, waiter: str, reason: str) -> None:
        """This part of the work cannot go on. `waiter` names work and company: `storing KopiNusa`."""
        self._paused.begin(waiter, reason)

    def resumed(self, waiter: str) -> None:
        """This part of the work goes on."""
        self._paused.end(waiter)

    def unanswered(self, source: str, reason: str) -> None:
        """Why this source gets no answer; told once it has got none for a while."""
        self._unanswered.begin(source, reason)

    def answered(self, source: str) -> None:
        """What this source needs is there again."""
        self._unanswered.end(source)

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
        found.update(self._unserved.all())
        found.update(self._paused.all(but=_OF_THE_DATABASE))
        if not self._starting:
            found.update(self.stalled())
            found.update(self._source_problems(time.monotonic()))
        return found

    async def outage(self) -> str | None:
        """What is known to keep the worker from its work, and is waited out: a server is away, or it starts or
        stops."""
        return (
            self._starting
            or self.broker_problem()
            or await self._database_problem()
            or next(iter(self._paused.all()), None)
        )

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
        return self._paused.summary(_OF_THE_DATABASE)

    def _source_problems(self, now: float) -> Mapping[str, str]:
        found = {}
        refused = self._unanswered.all()
        for source in self.sources:
            why = refused.get(source.name)
            silence = FETCH_SILENCE if why is None else REFUSED_SILENCE
            if now - source.last_fetch > silence and not source.held:
                found[source.name] = why or "no pull request was answered lately"
            elif source.held and now - source.last_progress > NO_PROGRESS:
                found[source.name] = f"{source.held} deliveries under way, none finished lately"
        return found
