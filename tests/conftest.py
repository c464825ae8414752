"""Real servers for the session, and a database, a company and connections for each test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import nats
import pytest
from hypothesis import settings
from nats.aio.client import Client
from nats.js import JetStreamContext

from events.subjects import Tenant
from tables.connection.pool import Database
from tables.schema.migrations import migrate
from testkit.servers import NatsServer, PostgresServer
from tests.hanging import pytest_timeout_set_timer as pytest_timeout_set_timer

# What the developer's shell says about the processor must not change what the tests see.
_OURS = (
    "NATS_",
    "POSTGRES_",
    "DATABASE_",
    "WORKERPOOLS_",
    "COMPANY_",
    "SERVER_",
    "METRICS_",
    "LOG_LEVEL",
    "ENVIRONMENT",
    "POSTSCAN_DELAY",
    "STALL_TIMEOUT",
    "STOP_TIMEOUT",
    "EVENTS",
)
for _name in [name for name in os.environ if name.startswith(_OURS)]:
    del os.environ[_name]

# No speed is asserted: a busy machine is not a bug.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Folders with the slowest files first: a file runs in one worker, and the others are idle while the last one waits.
_SLOWEST_FIRST = (
    "faults",
    "soak",
    "properties",
    "acceptance",
    "monitoring",
    "contract",
    "integration",
    "unit",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files; within one the tests stay as they are."""
    root = Path(__file__).parent
    items.sort(key=lambda item: _SLOWEST_FIRST.index(item.path.relative_to(root).parts[0]))


_EMPTY = "template_empty"
_MIGRATED = "template_migrated"


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """The session's NATS (one for each xdist worker). Tests that stop or pause a server start their own."""
    with NatsServer() as server:
        yield server


@pytest.fixture(scope="session")
def nats_url(nats_server: NatsServer) -> str:
    """Where the session's NATS is."""
    return nats_server.url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL (one for each xdist worker). Tests that stop or pause it start their own."""
    with PostgresServer() as server:
        asyncio.run(_administer(server.dsn, f"CREATE DATABASE {_EMPTY}"))
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> str:
    """A template with one migrated schema, made once: copying and renaming is 20 times faster than migrating."""
    asyncio.run(_administer(postgres_server.dsn, f"CREATE DATABASE {_MIGRATED}"))
    asyncio.run(_migrate(postgres_server.dsn_of(_MIGRATED)))
    return _MIGRATED


@pytest.fixture
def template(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> str:
    """What this test's database is a copy of: empty, unless the test asks for `schema`."""
    if "schema" in request.fixturenames:
        return str(request.getfixturevalue("migrated_template"))
    return _EMPTY


@pytest.fixture(scope="session")
def postgres_dsn(postgres_server: PostgresServer) -> str:
    """Where the session's PostgreSQL is; its database `postgres` is shared."""
    return postgres_server.dsn


@pytest.fixture
def company() -> str:
    """A company that no other test has, in mixed case."""
    return f"Kopi{uuid4().hex[:12].upper()}nusa"


@pytest.fixture
def tenant(company: str) -> Tenant:
    """The tenant of `company`."""
    return Tenant(company)


@pytest.fixture
async def database_dsn(postgres_server: PostgresServer, template: str) -> AsyncIterator[str]:
    """A database of this test's own."""
    name = f"test_{uuid4().hex}"
    await _administer(postgres_server.dsn, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgres_server.dsn_of(name)
    await _administer(postgres_server.dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    """The test's own database, opened."""
    database = Database(database_dsn)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
async def schema(database: Database, tenant: Tenant) -> str:
    """The tenant's schema, migrated, in the test's own database."""
    async with database.connection() as connection:
        await connection.execute(f'ALTER SCHEMA "{_MIGRATED}" RENAME TO "{tenant.schema}"')
    return tenant.schema


@pytest.fixture
async def nc(nats_url: str) -> AsyncIterator[Client]:
    """A connection to the session's NATS."""
    client = await nats.connect(nats_url)
    yield client
    await client.close()


@pytest.fixture
def js(nc: Client) -> JetStreamContext:
    """JetStream of the session's NATS: its streams are shared by all tests of a worker."""
    return nc.jetstream()


async def _administer(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _migrate(dsn: str) -> None:
    database = Database(dsn, size=1)
    await database.open()
    try:
        await migrate(database, _MIGRATED)
    finally:
        # CREATE DATABASE refuses a template that somebody is connected to.
        await database.close()
