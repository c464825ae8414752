"""The pool against a real server: what it says when it cannot lend a connection, and which ones it gives up."""

from __future__ import annotations

import pytest

from tables import pool
from tables.errors import Unavailable
from tables.pool import Database


async def test_a_full_pool_is_an_outage_and_no_events_fault(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "ACQUIRE_TIMEOUT", 0.05)
    database = Database(database_dsn, size=1)
    await database.open()
    async with database.connection():
        with pytest.raises(Unavailable, match="no connection"):
            async with database.connection():
                pass
    await database.close()


async def test_a_connection_to_a_read_only_server_is_not_lent_again(database: Database) -> None:
    async with database.connection() as connection:
        first = await connection.fetchval("SELECT pg_backend_pid()")

    async def write() -> None:
        async with database.transaction() as connection:
            await connection.execute("SET TRANSACTION READ ONLY")
            await connection.execute("CREATE TABLE public.nothing ()")

    with pytest.raises(Unavailable):
        await write()
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT pg_backend_pid()") != first


async def test_the_database_cannot_be_used_before_it_is_open(database_dsn: str) -> None:
    with pytest.raises(Unavailable, match="open"):
        async with Database(database_dsn).connection():
            pass
