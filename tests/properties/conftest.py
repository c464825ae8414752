"""Two replicas on one migrated schema for all the cases of a module, and how many cases there are."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings

from events.subjects import Tenant
from tables.connection.pool import Database
from tables.schema.migrations import migrate
from testkit.servers import PostgresServer
from tests.conftest import _administer
from tests.properties.replicas import DeadLetterStream, LoggedErrors, Replica
from tests.properties.worlds import COMPANY

SOAK: Final = os.environ.get("SOAK") == "1"
# Thousands of examples are one test, and hours under `make soak`.
takes_long: Final = pytest.mark.timeout(0 if SOAK else 900)
# In a mutation check only the fact of a failure counts, not its smallest form.
PHASES: Final = (Phase.generate,) if os.environ.get("SHRINK") == "0" else tuple(Phase)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the tests with real workers did: with pytest-xdist their own output goes nowhere."""
    for report in terminalreporter.getreports("passed"):
        for name, told in report.user_properties:
            if name == "convergence":
                terminalreporter.write_line(f"{name}, {told}")


def cases(normal: int, soak: int) -> settings:
    """So many examples: always the same ones in a normal run, fresh ones under `make soak`."""
    return settings(
        max_examples=soak if SOAK else normal,
        derandomize=not SOAK,
        database=None,
        deadline=None,
        phases=PHASES,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@dataclass
class Simulation:
    """The replicas, and the loop that they live in."""

    runner: asyncio.Runner
    replicas: list[Replica]
    logged_errors: LoggedErrors

    def play(self, play: Coroutine[Any, Any, None]) -> None:
        """Run one case; whatever is logged as an unexpected exception fails it."""
        self.logged_errors.texts.clear()
        try:
            self.runner.run(play)
        except AssertionError as failure:
            failure.add_note("\n".join(self.logged_errors.texts))
            raise
        assert not self.logged_errors.texts, self.logged_errors.texts[0]


@pytest.fixture(scope="module")
def simulation(postgres_server: PostgresServer) -> Iterator[Simulation]:
    """Two replicas of one company, on a database of the module's own."""
    name = f"test_{uuid4().hex}"
    logged_errors = LoggedErrors()
    with asyncio.Runner() as runner:
        runner.run(_administer(postgres_server.dsn, f"CREATE DATABASE {name}"))
        replicas = runner.run(_replicas(postgres_server.dsn_of(name)))
        logger = logging.getLogger("agents")
        logger.addHandler(logged_errors)
        # Tens of thousands of events are given up here on purpose, each with a warning.
        logger.propagate = False
        yield Simulation(runner, replicas, logged_errors)
        logger.propagate = True
        logger.removeHandler(logged_errors)
        for replica in replicas:
            runner.run(replica.close())
        runner.run(_administer(postgres_server.dsn, f"DROP DATABASE {name} WITH (FORCE)"))


async def _replicas(dsn: str) -> list[Replica]:
    stream, tenant = DeadLetterStream(), Tenant(COMPANY)
    replicas = []
    for _ in range(2):
        database = Database(dsn, size=6)
        await database.open()
        replicas.append(database)
    await migrate(replicas[0], tenant.schema)
    return [Replica(database, tenant, stream, unaware=number > 0) for number, database in enumerate(replicas)]
