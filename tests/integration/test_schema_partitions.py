"""Partitions are there before their month, whatever lies in the default one (TAB-2)."""

from __future__ import annotations

import asyncio
import datetime
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.subjects import Tenant
from tables.connection.pool import Database
from tables.queries import quoted
from tables.schema.migrations import migrate
from tables.schema.partitions import ensure_partitions, months, months_ahead

Date = datetime.date


@given(st.dates(min_value=Date(1971, 1, 1), max_value=Date(2200, 1, 1)))
def test_every_day_from_last_year_to_two_months_ahead_has_its_month(today: Date) -> None:
    made = months(today)

    assert made[0] == Date(today.year - 1, 1, 1)
    assert Date(today.year, 12, 1) in made
    assert all((later - earlier).days in (28, 29, 30, 31) for earlier, later in itertools.pairwise(made))
    assert (made[-1].year * 12 + made[-1].month) - (today.year * 12 + today.month) >= 2


@pytest.mark.parametrize(
    ("today", "last"),
    [
        (Date(2025, 1, 1), Date(2025, 12, 1)),
        (Date(2025, 10, 31), Date(2025, 12, 1)),
        (Date(2025, 11, 1), Date(2026, 1, 1)),
        (Date(2025, 12, 31), Date(2026, 2, 1)),
        (Date(2026, 1, 1), Date(2026, 12, 1)),
    ],
)
def test_the_turn_of_the_year_is_made_ahead(today: Date, last: Date) -> None:
    assert months(today)[-1] == last


async def _insert(database: Database, schema: str, *days: Date) -> None:
    async with database.connection() as connection:
        await connection.execute(
            f"INSERT INTO {quoted(schema)}.messages (message_id, message_date, key)"
            " SELECT 'm-' || day, day, '{\"id\": 1}' FROM unnest($1::date[]) AS day",
            list(days),
        )


async def _homes(database: Database, schema: str) -> dict[Date, str]:
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT m.message_date, c.relname"
            f" FROM {quoted(schema)}.messages AS m JOIN pg_class AS c ON c.oid = m.tableoid"
        )
    return {row[0]: row[1] for row in rows}


async def _text_of_rows(database: Database, schema: str) -> list[str]:
    async with database.connection() as connection:
        rows = await connection.fetch(f"SELECT m::text FROM {quoted(schema)}.messages AS m ORDER BY id")
    return [row[0] for row in rows]


async def test_a_message_of_the_next_year_has_its_month_in_december(
    database: Database, tenant: Tenant
) -> None:
    await migrate(database, tenant.schema, today=Date(2025, 12, 31))
    await _insert(database, tenant.schema, Date(2024, 1, 1), Date(2026, 1, 5), Date(2026, 2, 28))

    assert await _homes(database, tenant.schema) == {
        Date(2024, 1, 1): "messages_y2024m01",
        Date(2026, 1, 5): "messages_y2026m01",
        Date(2026, 2, 28): "messages_y2026m02",
    }


async def test_days_without_a_month_go_to_the_default_partition(database: Database, tenant: Tenant) -> None:
    await migrate(database, tenant.schema, today=Date(2025, 6, 1))
    await _insert(database, tenant.schema, Date(1970, 1, 1), Date(2199, 12, 31))

    assert set((await _homes(database, tenant.schema)).values()) == {"messages_default"}


async def test_rows_in_the_way_move_into_the_new_partition(database: Database, tenant: Tenant) -> None:
    await migrate(database, tenant.schema, today=Date(2025, 6, 1))
    days = [Date(2025, 12, 31), Date(2026, 1, 1), Date(2026, 1, 31), Date(2026, 2, 1), Date(2031, 1, 1)]
    await _insert(database, tenant.schema, *days)
    before = await _text_of_rows(database, tenant.schema)

    made = await ensure_partitions(database, tenant.schema, Date(2025, 12, 1))

    assert made == ["messages_y2026m01", "messages_y2026m02"]
    assert await _homes(database, tenant.schema) == {
        days[0]: "messages_y2025m12",
        days[1]: "messages_y2026m01",
        days[2]: "messages_y2026m01",
        days[3]: "messages_y2026m02",
        days[4]: "messages_default",
    }
    assert await _text_of_rows(database, tenant.schema) == before


async def test_a_moved_month_has_every_index_of_the_table(database: Database, tenant: Tenant) -> None:
    await migrate(database, tenant.schema, today=Date(2025, 6, 1))
    await ensure_partitions(database, tenant.schema, Date(2025, 12, 1))

    async with database.connection() as connection:
        counts = await connection.fetch(
            "SELECT count(*) AS indexes FROM pg_indexes WHERE schemaname = $1 AND tablename LIKE 'messages\\_y%'"
            " OR schemaname = $1 AND tablename = 'messages' GROUP BY tablename",
            tenant.schema,
        )
    assert {row["indexes"] for row in counts} == {8}


async def test_the_next_day_of_the_same_month_makes_nothing(database: Database, tenant: Tenant) -> None:
    await migrate(database, tenant.schema, today=Date(2025, 11, 1))

    assert await ensure_partitions(database, tenant.schema, Date(2025, 11, 2)) == []


async def test_months_ahead_end_at_the_first_without_an_attached_partition(
    database: Database, tenant: Tenant
) -> None:
    await migrate(database, tenant.schema, today=Date(2025, 11, 1))

    async def ahead(today: Date) -> int:
        return await months_ahead(database, tenant.schema, today)

    assert await ahead(Date(2025, 11, 30)) == 2
    assert await ahead(Date(2026, 1, 1)) == 0
    async with database.connection() as connection:
        schema = quoted(tenant.schema)
        await connection.execute(f"ALTER TABLE {schema}.messages DETACH PARTITION {schema}.messages_y2025m12")
    assert await ahead(Date(2025, 11, 30)) == 0
    assert await ahead(Date(2025, 10, 1)) == 1


async def test_replicas_that_make_a_month_at_once_make_it_once(database: Database, tenant: Tenant) -> None:
    await migrate(database, tenant.schema, today=Date(2025, 11, 1))

    made = await asyncio.gather(
        *(ensure_partitions(database, tenant.schema, Date(2025, 12, 1)) for _ in range(3))
    )

    assert sorted(made) == [[], [], ["messages_y2026m02"]]


async def test_rows_written_while_their_month_is_made_are_kept(database: Database, tenant: Tenant) -> None:
    """A writer that is not done keeps the month waiting; its row moves with the others."""
    await migrate(database, tenant.schema, today=Date(2025, 11, 1))
    async with database.transaction() as writer:
        await writer.execute(
            f"INSERT INTO {quoted(tenant.schema)}.messages (message_id, message_date) VALUES ('m', '2026-02-03')"
        )
        making = asyncio.create_task(ensure_partitions(database, tenant.schema, Date(2025, 12, 1)))
        await _until_someone_waits(database)

    assert await making == ["messages_y2026m02"]
    assert await _homes(database, tenant.schema) == {Date(2026, 2, 3): "messages_y2026m02"}


async def _until_someone_waits(database: Database) -> None:
    async with asyncio.timeout(30), database.connection() as connection:
        while not await connection.fetchval(
            "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
            " WHERE NOT l.granted AND d.datname = current_database()"
        ):
            await asyncio.sleep(0.01)
