"""Whether NATS and PostgreSQL can be used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from streams.lifecycle.conditions import Conditions

# Seconds; less than the time-out of the usual probe.
PING_TIMEOUT: Final = 2.0


class BrokerStatus(Protocol):
    """The connection to NATS."""

    @property
    def problem(self) -> str | None:
        """Why it cannot be used; None if it can."""
        ...


class Outages:
    """Asks for the state of both servers."""

    def __init__(
        self, *, conditions: Conditions, broker: BrokerStatus, ping_database: Callable[[], Awaitable[None]]
    ) -> None:
        self._conditions = conditions
        self._broker = broker
        self._ping_database = ping_database
        self._ping: asyncio.Future[None] | None = None

    async def problems(self) -> Mapping[str, str]:
        """Problem by server."""
        found = {"nats": self._broker.problem, "postgres": await self._database_problem()}
        return {server: problem for server, problem in found.items() if problem}

    async def current(self) -> str | None:
        """A known reason for which events are not processed: a server is away, or the worker starts or stops."""
        return (
            self._conditions.phase
            or next(iter((await self.problems()).values()), None)
            or next(iter(self._conditions.pauses.all().values()), None)
        )

    async def _database_problem(self) -> str | None:
        # A ping that hangs is not cancelled, which would ask the same silent server, and no second one is sent
        # meanwhile, which would take another connection.
        ping = self._ping = self._ping or asyncio.ensure_future(self._ping_database())
        done, _ = await asyncio.wait({ping}, timeout=PING_TIMEOUT)
        if not done:
            return "no answer"
        self._ping = None
        if error := ping.exception():
            return str(error)
        return self._conditions.database_waits()
