"""Whether NATS and PostgreSQL can be used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from streams.jetstream.broker import Broker
from streams.lifecycle.conditions import Conditions

# Seconds; less than the time-out of the usual probe.
PING_TIMEOUT: Final = 2.0


@dataclass(eq=False)
class Outages:
    """Asks for the state of both servers."""

    conditions: Conditions
    broker: Broker
    ping_database: Callable[[], Awaitable[None]]
    _ping: asyncio.Future[None] | None = field(default=None, init=False)

    async def problems(self) -> Mapping[str, str]:
        """Problem by server."""
        found = {"nats": self.broker.problem, "postgres": await self._database_problem()}
        return {server: problem for server, problem in found.items() if problem}

    async def current(self) -> str | None:
        """A known reason for which events are not processed: a server is away, or the worker starts or stops."""
        return (
            self.conditions.phase
            or next(iter((await self.problems()).values()), None)
            or next(iter(self.conditions.pauses.all().values()), None)
        )

    async def database_down(self) -> bool:
        """Whether PostgreSQL answers nobody, or takes no writes."""
        return await self._ping_problem() is not None

    async def _database_problem(self) -> str | None:
        return await self._ping_problem() or self.conditions.database_waits()

    async def _ping_problem(self) -> str | None:
        # A ping that hangs is not cancelled, which would ask the same silent server, and no second one is sent
        # meanwhile, which would take another connection.
        ping = self._ping = self._ping or asyncio.ensure_future(self.ping_database())
        done, _ = await asyncio.wait({ping}, timeout=PING_TIMEOUT)
        if not done:
            return "no answer"
        self._ping = None
        error = ping.exception()
        return None if error is None else str(error)
