"""Work on the tables beside the events holds up neither a start nor a writer; what is blocked is done later."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from events.subjects import Tenant
from streams.lifecycle.schema_upkeep import CompanyTask
from tables.connection import session
from tables.connection.pool import Database
from tables.errors import DatabaseError, DataError, QueryTimeout, StorageError
from tables.queries import quoted
from tables.schema import advisory_locks, indexes, partitions
from tables.schema.key_backfill import fill_message_keys
from tables.schema.migrations import _Migration, migrate
from tables.schema.partitions import ensure_partitions, make_partitions
from tables.schema.publication import publish_changes

Date = datetime.date
NOVEMBER, DECEMBER = Date(2025, 11, 1), Date(2025, 12, 1)
EXISTING = (Path(__file__).parent / "existing_service.sql").read_text(encoding="utf-8")
# The tables had no index but their keys: all the others have to be built.
BARE = """
ALTER TABLE {schema}.messages DROP CONSTRAINT IF EXISTS messages_message_id_message_date_key;
INSERT INTO {schema}.messages (message_id, message_date, company_id, chat_id)
SELECT 'm' || n, date '2025-11-01' + n % 60, 'Kopi', 'c' || n FROM generate_series(1, 3000) AS n;
INSERT INTO {schema}.chats (chat_id, company_id) SELECT 'c' || n, 'Kopi' FROM generate_series(1, 1000) AS n;
INSERT INTO {schema}.contacts (id, chat_id, phone_number, agent_id)
SELECT 'u' || n, 'c' || n, '62' || n, 'a' FROM generate_series(1, 1000) AS n;
"""


@contextlib.asynccontextmanager
async def left_open(dsn: str, statement: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A transaction that has run the statement and does nothing more."""
    connection = await asyncpg.connect(dsn, server_settings={"application_name": "pg_dump"})
    try:
        await connection.execute("BEGIN")
        await connection.execute(statement)
        yield connection
    finally:
        await connection.close()


async def written_all_the_while(dsn: str, schema: str, until: asyncio.Task[Any]) -> int:
    """Write until the task is done; fails if a statement waits for a lock for more than two seconds."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("SET lock_timeout = '2s'")
    count, mark = 0, uuid4().hex
    try:
        while not until.done() or not count:
            count += 1
            await connection.execute(
                f"INSERT INTO {quoted(schema)}.messages (message_id, message_date) VALUES ($1, '1999-01-01')",
                f"{mark} {count}",
            )
            await connection.execute(
                f"UPDATE {quoted(schema)}.messages SET status = 'READ' WHERE message_id = $1",
                f"{mark} {count}",
            )
            await connection.execute(
                f"INSERT INTO {quoted(schema)}.chats (chat_id) VALUES ($1)", f"{mark} {count}"
            )
    finally:
        await connection.close()
    return count


async def names(database: Database, schema: str) -> set[str]:
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", schema)
    return {row["tablename"] for row in rows}


async def test_a_start_needs_no_partition_and_holds_up_no_writer(
    database: Database, database_dsn: str, tenant: Tenant
) -> None:
    schema = tenant.schema
    await migrate(database, schema, today=NOVEMBER)

    async with left_open(database_dsn, f"SELECT FROM {quoted(schema)}.messages"):
        starting = asyncio.create_task(migrate(database, schema, today=DECEMBER))
        await written_all_the_while(database_dsn, schema, starting)
        assert await starting == []
        assert "messages_y2026m02" not in await names(database, schema)
        with pytest.raises(
            QueryTimeout, match=r"is in use by process \d+ \(pg_dump, idle in transaction, for"
        ):
            await ensure_partitions(database, schema, DECEMBER)

    assert await ensure_partitions(database, schema, DECEMBER) == ["messages_y2026m02"]


async def test_two_replicas_start_while_a_dump_runs(
    database: Database, database_dsn: str, tenant: Tenant
) -> None:
    schema = tenant.schema
    await migrate(database, schema, today=NOVEMBER)

    async with left_open(database_dsn, f"SELECT FROM {quoted(schema)}.messages"):
        starting = asyncio.gather(*(migrate(database, schema, today=DECEMBER) for _ in range(2)))
        await written_all_the_while(database_dsn, schema, asyncio.ensure_future(starting))
        assert await starting == [[], []]


async def test_a_migration_waits_briefly_and_says_for_whom(
    database: Database, database_dsn: str, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new version alters a table that a dump reads."""
    schema = tenant.schema
    await migrate(database, schema, today=NOVEMBER)
    monkeypatch.setattr("tables.schema.migrations._TRIED_FOR", 1.0)
    change = "ALTER TABLE {schema}.chats ADD COLUMN IF NOT EXISTS news text"
    monkeypatch.setattr("tables.schema.migrations._migrations", lambda: (_Migration("9999_news", change),))

    async with left_open(database_dsn, f"SELECT FROM {quoted(schema)}.chats"):
        starting = asyncio.create_task(migrate(database, schema, today=NOVEMBER))
        await written_all_the_while(database_dsn, schema, starting)
        with pytest.raises(QueryTimeout, match=r"migration of .* chats is in use by process"):
            await starting

    assert await migrate(database, schema, today=NOVEMBER) == ["9999_news"]


async def test_publishing_waits_briefly_and_is_made_up_for(
    database: Database, database_dsn: str, tenant: Tenant
) -> None:
    schema = tenant.schema
    await migrate(database, schema, today=NOVEMBER)

    async with left_open(database_dsn, f"SELECT FROM {quoted(schema)}.messages"):
        publishing = asyncio.create_task(publish_changes(database, schema))
        await written_all_the_while(database_dsn, schema, publishing)
        with pytest.raises(QueryTimeout, match=r"publication of .* is in use by process"):
            await publishing

    await publish_changes(database, schema)
    async with database.connection() as connection:
        count = await connection.fetchval("SELECT count(*) FROM pg_publication_tables")
    assert count > 20


async def test_filling_keys_waits_briefly_for_the_row_of_its_progress(
    database: Database, database_dsn: str, schema: str
) -> None:
    statement = f"UPDATE {quoted(schema)}.message_keys_fill SET complete = false"
    async with left_open(database_dsn, statement) as other:
        with pytest.raises(QueryTimeout, match="keys of"):
            await fill_message_keys(database, schema)
        await other.execute("COMMIT")

    assert await fill_message_keys(database, schema)


async def test_a_company_whose_tables_are_in_use_holds_up_no_other(
    database: Database, database_dsn: str, tenant: Tenant
) -> None:
    tenants = [tenant, Tenant(f"{tenant.company}2")]
    for each in tenants:
        await migrate(database, each.schema, today=NOVEMBER)
    made: dict[str, list[str]] = {}

    async def make(each: Tenant) -> bool:
        made[each.schema] = await ensure_partitions(database, each.schema, DECEMBER)
        return False

    task = CompanyTask("partitions", tenants, 3600, make)
    async with left_open(database_dsn, f"SELECT FROM {quoted(tenant.schema)}.messages"):
        assert not await task.run_due()
    assert made == {tenants[1].schema: ["messages_y2026m02"]}


async def test_a_failed_task_comes_again_soon_and_only_for_its_company(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    asked: list[str] = []

    async def task(each: Tenant) -> bool:
        asked.append(each.company)
        if each.company == "Kopi":
            raise QueryTimeout("waits for a lock")
        return False

    partitioning = CompanyTask("partitions", [Tenant("Kopi"), Tenant("Teh")], 3600, task)
    for _ in range(4):
        await partitioning.run_due()
        clock += 7
    assert asked == ["Kopi", "Teh", "Kopi", "Kopi"]
    clock += 3600
    await partitioning.run_due()
    assert asked[-2:] == ["Kopi", "Teh"]


async def test_a_month_with_many_rows_in_the_way_is_moved_by_the_command_only(
    database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = tenant.schema
    monkeypatch.setattr(partitions, "_MOVED_AT_ONCE", 10)
    await migrate(database, schema, today=NOVEMBER)
    async with database.connection() as connection:
        await connection.execute(
            f"INSERT INTO {quoted(schema)}.messages (message_id, message_date)"
            " SELECT 'm' || n, '2026-02-01' FROM generate_series(1, 11) AS n"
        )

    with pytest.raises(DatabaseError, match=r"more than 10 rows of 2026-02: .*migrate"):
        await make_partitions(database, schema, DECEMBER)
    assert await make_partitions(database, schema, DECEMBER, patient=True) == ["messages_y2026m02"]
    async with database.connection() as connection:
        assert await connection.fetchval(f"SELECT count(*) FROM {quoted(schema)}.messages_y2026m02") == 11


async def test_a_month_whose_rows_take_too_long_is_given_up_in_time(
    database: Database, database_dsn: str, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = tenant.schema
    monkeypatch.setattr(partitions, "_LIMIT", 200)
    await migrate(database, schema, today=NOVEMBER)
    slow = (
        f"INSERT INTO {quoted(schema)}.messages (message_id, message_date) VALUES ('m', '2026-02-01'); "
        "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(30); RETURN OLD; END $$; "
        f"CREATE TRIGGER slow BEFORE DELETE ON {quoted(schema)}.messages_default "
        "FOR EACH ROW EXECUTE FUNCTION public.slow()"
    )
    async with database.connection() as connection:
        await connection.execute(slow)

    making = asyncio.create_task(make_partitions(database, schema, DECEMBER))
    await written_all_the_while(database_dsn, schema, making)
    with pytest.raises(QueryTimeout):
        await making


@pytest.fixture
async def bare(database: Database, tenant: Tenant) -> str:
    """Tables of the existing service with rows, and none of their indexes but the primary keys."""
    async with database.connection() as connection:
        await connection.execute((EXISTING + BARE).replace("{schema}", quoted(tenant.schema)))
        rows = await connection.fetch(
            "SELECT c.conname, c.conrelid::regclass::text AS home FROM pg_constraint AS c"
            " JOIN pg_namespace AS n ON n.oid = c.connamespace"
            " WHERE n.nspname = $1 AND c.contype = 'u' AND c.conparentid = 0",
            tenant.schema,
        )
        for row in rows:
            await connection.execute(f'ALTER TABLE {row["home"]} DROP CONSTRAINT "{row["conname"]}"')
        rows = await connection.fetch(
            "SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_index AS i"
            " JOIN pg_class AS c ON c.oid = i.indexrelid"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname = $1 AND NOT i.indisprimary AND NOT c.relispartition",
            tenant.schema,
        )
        for row in rows:
            await connection.execute(f"DROP INDEX {row['name']}")
    return tenant.schema


async def valid(database: Database, schema: str) -> dict[str, set[str]]:
    """The keys of each table's indexes that are valid, and whether any is not."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT c.relname, i.indisvalid, substring(pg_get_indexdef(i.indexrelid) FROM 'USING btree (.*)$') AS keys"
            " FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1",
            schema,
        )
    assert all(row["indisvalid"] for row in rows), "an index is left unfinished"
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["relname"], set()).add(row["keys"])
    return found


async def until_built(database: Database, schema: str) -> None:
    assert await indexes.wanted(database, schema) == []
    found = await valid(database, schema)
    assert {"(message_id, message_date)", "(jid)", "(chat_id)", "(agent_id)"} <= found["messages"]
    assert {"(chat_id)", "(agent_id)"} <= found["chats"]
    assert {"(chat_id)", "(phone_number, agent_id)"} <= found["contacts"]


async def test_indexes_of_adopted_tables_are_built_while_others_write(
    database: Database, database_dsn: str, bare: str
) -> None:
    """A writer that is not done keeps the build waiting, and the build keeps no other writer waiting."""
    statement = (
        f"INSERT INTO {quoted(bare)}.messages (message_id, message_date) VALUES ('open', '1999-01-01')"
    )
    async with left_open(database_dsn, statement) as other:
        starting = asyncio.create_task(migrate(database, bare, today=NOVEMBER))
        writing = asyncio.create_task(written_all_the_while(database_dsn, bare, starting))
        await until_a_build_waits(database, starting)
        await other.execute("COMMIT")
        await writing
    assert len(await starting) > 4

    required = await indexes.wanted(database, bare, required=True)
    assert required == [], "a company was served without what its writes stand on"
    building = asyncio.create_task(indexes.build(database, bare))
    await written_all_the_while(database_dsn, bare, building)
    assert await building
    await until_built(database, bare)


async def until_a_build_waits(database: Database, starting: asyncio.Task[Any]) -> None:
    async with asyncio.timeout(20), database.connection() as connection:
        while not starting.done():
            if await connection.fetchval(
                "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
                " WHERE NOT l.granted AND a.datname = current_database() AND a.query ILIKE '%create%index%'"
            ):
                return
            await asyncio.sleep(0.02)


async def test_an_interrupted_build_is_begun_anew(database: Database, bare: str) -> None:
    async with database.connection() as connection:
        await connection.execute(f"INSERT INTO {quoted(bare)}.chats (chat_id) VALUES ('twice'), ('twice')")
    with pytest.raises(DataError, match="23505"):
        await migrate(database, bare, today=NOVEMBER)
    with pytest.raises(AssertionError, match="unfinished"):
        await valid(database, bare)

    async with database.connection() as connection:
        await connection.execute(f"DELETE FROM {quoted(bare)}.chats WHERE chat_id = 'twice'")
    await migrate(database, bare, today=NOVEMBER)
    await indexes.build(database, bare)
    await until_built(database, bare)


async def test_replicas_build_an_index_once(database: Database, bare: str) -> None:
    async def start() -> None:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(QueryTimeout):
                    await migrate(database, bare, today=NOVEMBER)
                    await indexes.build(database, bare)
                    return
                await asyncio.sleep(0.1)

    await asyncio.gather(start(), start())
    await until_built(database, bare)


async def test_a_partition_made_while_indexes_wait_has_them_too(database: Database, bare: str) -> None:
    await migrate(database, bare, today=NOVEMBER)
    assert "messages_y2031m02" in await ensure_partitions(database, bare, Date(2030, 12, 1))
    await indexes.build(database, bare)

    found = await valid(database, bare)
    assert found["messages_y2031m02"] == found["messages"]


async def test_a_build_that_an_old_transaction_holds_up_is_tried_again(
    database: Database, database_dsn: str, bare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(database, bare, today=NOVEMBER)
    monkeypatch.setattr(indexes, "_OLD_TRANSACTIONS", 300)
    old = f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM {quoted(bare)}.contacts"
    async with left_open(database_dsn, old):
        with pytest.raises(QueryTimeout):
            await indexes.build(database, bare)
    await indexes.build(database, bare)
    await until_built(database, bare)


async def test_a_build_behind_a_pooler_in_transaction_mode_lifts_no_limit_and_says_so(
    database_dsn: str, database: Database, bare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit lifted for a session would be lifted for whoever gets its server process next."""

    async def shared(*_: object) -> bool:
        return True

    await migrate(database, bare, today=NOVEMBER)
    monkeypatch.setattr(indexes, "are_shared", shared)
    monkeypatch.setitem(session.SETTINGS, "lock_timeout", "300")
    behind = Database(database_dsn, size=4)
    await behind.open()
    try:
        old = f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM {quoted(bare)}.contacts"
        async with left_open(database_dsn, old):
            with pytest.raises(QueryTimeout, match="pooler in transaction mode"):
                await indexes.build(behind, bare)
    finally:
        await behind.close()
    monkeypatch.undo()
    await indexes.build(database, bare)
    await until_built(database, bare)


async def test_nobody_waits_long_for_another_workers_migration(
    database: Database, database_dsn: str, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advisory_locks, "ADVISORY_LOCK_WAIT", 100)
    monkeypatch.setattr("tables.schema.migrations._TRIED_FOR", 0.0)
    lock = f"SELECT pg_advisory_xact_lock(hashtextextended('daisi schema {tenant.schema}', 0))"
    async with left_open(database_dsn, lock):
        with pytest.raises(StorageError, match=r"migration of"):
            await migrate(database, tenant.schema)
