"""A start says when PostgreSQL may lose what is acknowledged: standbys that no commit waits for."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from tables.connection.pool import Database
from tables.connection.replication import durability_warnings
from testkit.servers import PostgresServer
from tests.servers.postgres_pair import STANDBY, PostgresNode, fetch_value


@pytest.fixture(scope="module")
def primary() -> Iterator[PostgresNode]:
    """A server of this module's own: what is set on it is for all its databases."""
    with PostgresNode() as server:
        yield server


@pytest.fixture(scope="module")
def standby(primary: PostgresNode) -> Iterator[PostgresNode]:
    """It follows the primary."""
    with PostgresNode(primary) as server:
        yield server


@contextlib.asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Database]:
    database = Database(dsn, size=2)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def until_it_follows(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(20):
            while not await connection.fetchval(
                "SELECT count(*) FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming'",
                STANDBY,
            ):
                await asyncio.sleep(0.05)
    finally:
        await connection.close()


async def test_a_server_alone_is_no_reason_to_warn(database: Database) -> None:
    assert await durability_warnings(database) == []


async def test_asynchronous_standbys_are_warned_of_until_commits_wait_for_one(
    primary: PostgresNode, standby: PostgresNode
) -> None:
    await until_it_follows(primary.dsn)
    async with opened(primary.dsn) as database:
        (warning,) = await durability_warnings(database)
        assert "a standby" in warning
        assert "synchronous_standby_names" in warning

        await primary.wait_for("*")
        try:
            async with asyncio.timeout(20):
                while await durability_warnings(database):
                    await asyncio.sleep(0.05)
        finally:
            await primary.wait_for("")


async def test_an_ordinary_role_is_told_too(primary: PostgresNode, standby: PostgresNode) -> None:
    await until_it_follows(primary.dsn)
    await fetch_value(primary.dsn, "CREATE ROLE ordinary LOGIN")
    async with opened(primary.dsn.replace("postgres@", "ordinary@")) as database:
        assert len(await durability_warnings(database)) == 1


async def test_a_subscriber_of_changes_is_no_standby(
    postgres_server: PostgresServer, database: Database
) -> None:
    async with database.connection() as connection:
        name = await connection.fetchval("SELECT current_database()")
        await connection.fetchval("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", name)
        await connection.execute("CREATE PUBLICATION of_this_test FOR ALL TABLES")
    reader = subprocess.Popen(
        [
            str(postgres_server._programs / "pg_recvlogical"),
            *("-d", postgres_server.dsn_of(name), "--slot", name, "--start", "-f", "/dev/null"),
            *("-o", "proto_version=1", "-o", "publication_names=of_this_test"),
        ]
    )
    try:
        async with asyncio.timeout(20), database.connection() as connection:
            while not await connection.fetchval(
                "SELECT active FROM pg_replication_slots WHERE slot_name = $1", name
            ):
                await asyncio.sleep(0.05)
            assert await connection.fetchval("SELECT count(*) FROM pg_stat_replication") == 1
        assert await durability_warnings(database) == []
    finally:
        reader.terminate()
        reader.wait()
        async with asyncio.timeout(20), database.connection() as connection:
            while await connection.fetchval(
                "SELECT active FROM pg_replication_slots WHERE slot_name = $1", name
            ):
                await asyncio.sleep(0.05)
            await connection.execute("SELECT pg_drop_replication_slot($1)", name)


@pytest.mark.parametrize(("value", "expected"), [("off", 1), ("local", 0), ("on", 0), ("remote_apply", 0)])
async def test_a_commit_that_waits_for_no_disk_is_warned_of(
    database: Database, database_dsn: str, value: str, expected: int
) -> None:
    async with database.connection() as connection:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = '{value}'")
    async with opened(database_dsn) as later:
        assert len(await durability_warnings(later)) == expected
