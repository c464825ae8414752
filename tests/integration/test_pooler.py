"""A connection pooler before PostgreSQL: session mode works, transaction mode only where statements are kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from tables.connection.dsn import parse
from tables.connection.hosts import Connector, HostConnection
from tables.connection.pool import Database
from tables.connection.session import are_shared, require_prepared
from tables.errors import Unavailable
from tables.schema.migrations import migrate
from tables.tenant import TenantTables
from testkit.servers import PostgresServer
from tests.programs import required
from tests.servers.pooler import IGNORED, KEEPS_PREPARED, Pooler, version

SESSION, TRANSACTION = "pool_mode = session", "pool_mode = transaction"


@contextlib.asynccontextmanager
async def opened(dsn: str, size: int = 4) -> AsyncIterator[Database]:
    database = Database(dsn, size=size)
    try:
        await database.open()
        yield database
    finally:
        await database.close()


@pytest.fixture(autouse=True)
def installed() -> None:
    required("pgbouncer")


@pytest.fixture
def name(database_dsn: str) -> str:
    """The test's own database."""
    return database_dsn.rpartition("/")[2]


async def use(database: Database, schema: str) -> None:
    """Make a schema, and write with several connections at a time."""
    await migrate(database, schema)
    tables = [TenantTables(database, schema, lambda *_: None) for _ in range(8)]
    await asyncio.gather(*(each.unresolved() for each in tables))


async def test_a_pooler_in_session_mode_works(postgres_server: PostgresServer, name: str) -> None:
    with Pooler(postgres_server, SESSION, IGNORED) as pooler:
        async with opened(pooler.dsn_of(name)) as database:
            await use(database, "daisi_pooled")


async def test_a_pooler_that_refuses_our_parameters_is_connected_to_without_them_and_told_once(
    postgres_server: PostgresServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with Pooler(postgres_server, SESSION) as pooler:
        async with opened(pooler.dsn_of(name)) as database:
            await use(database, "daisi_pooled")
    texts = [record.getMessage() for record in caplog.records]
    assert len([text for text in texts if "refuses our start-up parameters" in text]) == 1
    (statements,) = [text for text in texts if "ALTER ROLE" in text]
    for setting in (
        "statement_timeout = '20000'",
        "lock_timeout",
        "jit",
        "plan_cache_mode",
        "enable_seqscan",
    ):
        assert setting in statements
    assert "timezone" not in statements


async def test_no_setting_is_missed_where_the_role_has_them(
    postgres_server: PostgresServer, database: Database, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What the worker tells to run is what it needs."""
    caplog.set_level(logging.WARNING)
    with Pooler(postgres_server, SESSION, IGNORED) as pooler:
        async with opened(pooler.dsn_of(name)):
            pass
        (told,) = [record.getMessage() for record in caplog.records if "ALTER ROLE" in record.getMessage()]
        async with database.connection() as connection:
            for statement in told.partition("Run: ")[2].split("; "):
                # In this test's database only: the role is everybody's.
                await connection.execute(statement.replace(" SET ", f" IN DATABASE {name} SET "))
    caplog.clear()
    with Pooler(postgres_server, SESSION, IGNORED) as pooler:
        async with opened(pooler.dsn_of(name)):
            pass
    assert not [record for record in caplog.records if "ALTER ROLE" in record.getMessage()]


async def test_an_old_pooler_in_transaction_mode_is_refused_in_words_and_taken_in_session_mode(
    postgres_server: PostgresServer, name: str
) -> None:
    if version() >= KEEPS_PREPARED:
        pytest.skip("this pgbouncer keeps prepared statements")
    with Pooler(postgres_server, TRANSACTION, IGNORED) as pooler:
        with pytest.raises(Unavailable, match="pooler in transaction mode") as caught:
            async with opened(pooler.dsn_of(name)):
                pass
        assert caught.value.sqlstate in {"26000", "42P05"}
        pooler.stop()
        pooler.lines = (SESSION, IGNORED)
        pooler.start()
        async with opened(pooler.dsn_of(name)) as database:
            await use(database, "daisi_pooled")


async def test_a_pooler_that_keeps_statements_works_in_transaction_mode(
    postgres_server: PostgresServer, name: str
) -> None:
    if version() < KEEPS_PREPARED:
        pytest.skip("this pgbouncer is older than 1.21: it keeps no prepared statements")
    with Pooler(postgres_server, TRANSACTION, IGNORED, "max_prepared_statements = 1000") as pooler:
        async with opened(pooler.dsn_of(name)) as database:
            await use(database, "daisi_pooled")


async def test_a_pooler_that_turns_to_transaction_mode_is_an_outage_that_names_it(
    postgres_server: PostgresServer, name: str
) -> None:
    """While a worker runs: no event is to blame."""
    if version() >= KEEPS_PREPARED:
        pytest.skip("this pgbouncer keeps prepared statements")
    with Pooler(postgres_server, SESSION, IGNORED) as pooler:
        async with opened(pooler.dsn_of(name)) as database:
            await database.ping()
            pooler.stop()
            pooler.lines = (TRANSACTION, IGNORED)
            pooler.start()
            found: set[str] = set()

            async def look(number: int) -> None:
                try:
                    async with database.connection() as connection:
                        await connection.fetchval(f"SELECT {number % 3}")
                        await connection.fetchval(f"SELECT {number % 3}")
                except Unavailable as error:
                    found.add(str(error))

            async with asyncio.timeout(30):
                while not any("pooler" in text for text in found):
                    await asyncio.gather(*map(look, range(8)))


@pytest.mark.parametrize(("mode", "shared"), [(SESSION, False), (TRANSACTION, True)])
async def test_sessions_are_shared_in_transaction_mode_only(
    postgres_server: PostgresServer, name: str, mode: str, shared: bool
) -> None:
    with Pooler(postgres_server, mode, IGNORED) as pooler:
        connector = Connector(parse(pooler.dsn_of(name)))
        first, second = await connector.connect(), await connector.connect()
        try:
            assert await are_shared(first, second) is shared
        finally:
            first.terminate()
            second.terminate()


async def test_sessions_of_a_server_are_not_shared(database_dsn: str) -> None:
    connector = Connector(parse(database_dsn))
    first, second = await connector.connect(), await connector.connect()
    try:
        assert not await are_shared(first, second)
    finally:
        first.terminate()
        second.terminate()


async def test_a_restart_of_the_pooler_passes(postgres_server: PostgresServer, name: str) -> None:
    with Pooler(postgres_server, SESSION, IGNORED) as pooler:
        async with opened(pooler.dsn_of(name)) as database:
            await database.ping()
            pooler.restart()
            async with asyncio.timeout(20):
                while True:
                    with contextlib.suppress(Unavailable):
                        await database.ping()
                        return
                    await asyncio.sleep(0.05)


async def test_without_a_pooler_nothing_is_told(database_dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with opened(database_dsn):
        pass
    assert not caplog.records


async def test_a_look_at_the_pooler_that_is_cut_short_leaves_no_connection_open(
    postgres_server: PostgresServer, name: str
) -> None:
    """A pooler at its limit of clients refuses the second one: each try at the start took one more from others."""
    with Pooler(postgres_server, TRANSACTION, IGNORED, "max_client_conn = 2") as pooler:
        connector = Connector(parse(pooler.dsn_of(name)))
        taken = await connector.connect()
        try:
            with pytest.raises(Unavailable):
                await require_prepared(connector.session)
            # The pooler notices the end of a connection a moment later.
            async with asyncio.timeout(10):
                again = await _connected(connector)
            again.terminate()
        finally:
            taken.terminate()


async def _connected(connector: Connector) -> HostConnection:
    while True:
        with contextlib.suppress(Unavailable):
            return await connector.connect()
        await asyncio.sleep(0.05)
