"""The monthly partitions of a tenant's messages, made ahead of time and without keeping writers waiting (TAB-2)."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from tables.connection.pool import Database
from tables.errors import DatabaseError
from tables.queries import load
from tables.schema import publication
from tables.schema.advisory_locks import PATIENCE, briefly, migration_lock

if TYPE_CHECKING:
    from tables.connection.pool import Connection

_MONTHS_AHEAD: Final = 2
# Writers of the default partition wait for as long as a partition is made: some empty ones take some 100 ms, and so
# many rows are moved in less than a second.
_AT_ONCE: Final = 4
_MOVED_AT_ONCE: Final = 5000
# Milliseconds for making a partition.
_LIMIT: Final = 1000
_PATIENT: Final = 60.0


def months(today: datetime.date) -> list[datetime.date]:
    """The first days of the months that need a partition: January of last year to this December, and at least
    two months ahead of `today`."""
    first = (today.year - 1) * 12
    last = max(today.year * 12 + 11, today.year * 12 + today.month - 1 + _MONTHS_AHEAD)
    return [datetime.date(month // 12, month % 12 + 1, 1) for month in range(first, last + 1)]


async def make_partitions(
    database: Database, schema: str, today: datetime.date, *, patient: bool = False
) -> list[str]:
    """Make the partitions missing for `today`; the rows in the way move into them. Returns their names.

    One replica at a time. No writer waits longer than about a second: a month with more rows in the default partition
    than can be moved in that time is left there, unless `patient`. Raises `DatabaseError` that names such a month,
    `QueryTimeout` that names who holds the lock in the way, otherwise `StorageError`; the next call goes on.
    """
    sql = load("partitions", schema)
    async with database.connection() as connection:
        missing = await connection.fetch(sql["missing"], schema, months(today))
        counts = [await _in_the_way(connection, schema, row["month"]) for row in missing]
    made: list[str] = []
    large = []
    for batch in _batches([row["month"] for row in missing], counts):
        if batch[1] > _MOVED_AT_ONCE and not patient:
            large += [f"{month:%Y-%m}" for month in batch[0]]
        else:
            made += await _make(database, schema, batch[0], patient=patient)
    if large:
        raise DatabaseError(
            f"messages_default of {schema} holds more than {_MOVED_AT_ONCE} rows of {', '.join(large)}: "
            "they stay there until the command migrate moves them, while writers of that partition wait"
        )
    return made


def _batches(
    missing: Sequence[datetime.date], counts: Sequence[int]
) -> Iterator[tuple[list[datetime.date], int]]:
    """Months without rows some at a time, each of the others alone, with its rows."""
    empty: list[datetime.date] = []
    for month, count in zip(missing, counts, strict=True):
        if count:
            yield [month], count
            continue
        empty.append(month)
        if len(empty) == _AT_ONCE:
            yield empty, 0
            empty = []
    if empty:
        yield empty, 0


async def _in_the_way(connection: Connection, schema: str, month: datetime.date) -> int:
    """How many rows of the month the default partition holds; no more than one above the limit are counted."""
    count = await connection.fetchval(load("partitions", schema)["in_the_way"], month, _MOVED_AT_ONCE + 1)
    return int(count)


async def _make(
    database: Database, schema: str, wanted: Sequence[datetime.date], *, patient: bool
) -> list[str]:
    sql = load("partitions", schema)

    async def work(connection: Connection) -> list[str]:
        await migration_lock(connection, schema)
        missing = await connection.fetch(sql["make"], schema, wanted)
        if missing:
            await connection.execute(sql["limit"], "0" if patient else str(_LIMIT))
            await connection.execute(sql["lock_default"])
            await connection.execute("; ".join(row["ddl"] for row in missing), timeout=PATIENCE)
        return [row["name"] for row in missing]

    return await briefly(database, schema, "partitions", work, within=_PATIENT if patient else 0.0)


async def months_ahead(database: Database, schema: str, today: datetime.date) -> int:
    """How many months after the one of `today` have their partition, up to the first that has none.

    Raises `StorageError`.
    """
    sql = load("partitions", schema)
    async with database.connection() as connection:
        attached = {row["relname"] for row in await connection.fetch(sql["attached"], schema)}
    month = today.year * 12 + today.month
    ahead = 0
    while f"messages_y{month // 12}m{month % 12 + 1:02}" in attached:
        ahead, month = ahead + 1, month + 1
    return ahead


async def ensure_partitions(database: Database, schema: str, today: datetime.date) -> list[str]:
    """The daily upkeep (UTC): make the partitions missing for `today` and return their names.

    They join the publication if the schema's messages are published. Raises `StorageError`; the next call goes on.
    """
    made = await make_partitions(database, schema, today)
    if await publication.holds_messages(database, schema):
        await publication.publish_changes(database, schema)
    return made
