"""Adopted messages get their keys in the background."""

from __future__ import annotations

import asyncio
import datetime

import pytest

from tables.connection.pool import Database
from tables.queries import quoted
from tables.schema.key_backfill import fill_message_keys, message_keys_complete
from tables.schema.migrations import migrate

Date = datetime.date
Row = tuple[str | None, Date]


@pytest.fixture
async def adopted(database: Database, schema: str) -> str:
    """A schema whose keys are not filled at all, with five rows, two of them for one message."""
    rows: list[Row] = [
        ("m3", Date(2025, 3, 1)),
        ("m1", Date(2025, 5, 1)),
        (None, Date(2025, 5, 1)),
        ("m3", Date(2025, 1, 1)),
        ("m2", Date(1, 1, 1)),
    ]
    async with database.connection() as connection:
        await connection.executemany(
            f"INSERT INTO {quoted(schema)}.messages (message_id, message_date) VALUES ($1, $2)", rows
        )
        await connection.execute(f"UPDATE {quoted(schema)}.message_keys_fill SET complete = false")
    return schema


async def _keys(database: Database, schema: str) -> dict[str, Date]:
    async with database.connection() as connection:
        rows = await connection.fetch(f"SELECT message_id, message_date FROM {quoted(schema)}.message_keys")
    return {row[0]: row[1] for row in rows}


LOWEST = {"m1": Date(2025, 5, 1), "m2": Date(1, 1, 1), "m3": Date(2025, 3, 1)}


async def test_a_schema_made_by_us_needs_no_filling(database: Database, schema: str) -> None:
    assert await message_keys_complete(database, schema)
    assert await fill_message_keys(database, schema)


@pytest.mark.parametrize("page", [1, 2, 3, 5, 5000])
async def test_the_lowest_id_wins_whatever_the_page(database: Database, adopted: str, page: int) -> None:
    calls = 0
    while not await fill_message_keys(database, adopted, page=page):
        assert not await message_keys_complete(database, adopted)
        calls += 1

    assert calls == -(-5 // page)
    assert await message_keys_complete(database, adopted)
    assert await _keys(database, adopted) == LOWEST


async def test_replicas_share_the_filling(database: Database, adopted: str) -> None:
    async def fill() -> None:
        while not await fill_message_keys(database, adopted, page=1):
            pass

    await asyncio.gather(*(fill() for _ in range(3)))

    assert await _keys(database, adopted) == LOWEST


async def test_a_key_that_a_writer_made_meanwhile_stays(database: Database, adopted: str) -> None:
    async with database.connection() as connection:
        await connection.execute(
            f"INSERT INTO {quoted(adopted)}.message_keys VALUES ('m1', '2025-05-01'), ('new', '2025-06-01')"
        )

    await fill_message_keys(database, adopted)

    assert await _keys(database, adopted) == LOWEST | {"new": Date(2025, 6, 1)}


async def test_rows_that_another_service_wrote_after_the_filling_are_noticed_at_the_next_start(
    database: Database, schema: str
) -> None:
    async with database.connection() as connection:
        await connection.execute(
            f"INSERT INTO {quoted(schema)}.messages (message_id, message_date) VALUES ('late', '2025-06-01')"
        )

    await migrate(database, schema)

    assert not await message_keys_complete(database, schema)
    while not await fill_message_keys(database, schema):
        pass
    assert await _keys(database, schema) == {"late": Date(2025, 6, 1)}
