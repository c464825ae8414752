"""The monthly partitions of a tenant's messages, made ahead of time and without keeping writers waiting (TAB-2)."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tables.connection.pool import Database
from tables.errors import DatabaseError
from tables.month_partition import last_day, name_of
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


def this_and_last_month(today: datetime.date) -> tuple[datetime.date, datetime.date]:
    """Their first and last day."""
    first = today.replace(day=1)
    return (first - datetime.timedelta(days=1)).replace(day=1), last_day(first)


async def make_first(connection: Connection, schema: str, today: datetime.date) -> None:
    """Make the partitions of a schema that is new in this transaction. Raises the driver's errors."""
    sql = load("partitions", schema)
    await connection.execute(
        await connection.fetchval(sql["make_first"], schema, months(today)), timeout=PATIENCE
    )


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
        missing = [row["month"] for row in await connection.fetch(sql["missing"], schema, months(today))]
        # No more than one above the limit are counted.
        rows = {
            month: await connection.fetchval(sql["in_the_way"], month, _MOVED_AT_ONCE + 1)
            for month in missing
        }
    empty = [month for month in missing if not rows[month]]
    large = [month for month in missing if rows[month] > _MOVED_AT_ONCE and not patient]
    # Months without rows some at a time, each of the others alone.
    batches = [empty[start : start + _AT_ONCE] for start in range(0, len(empty), _AT_ONCE)]
    batches += [[month] for month in missing if month not in (*empty, *large)]
    made: list[str] = []
    for batch in batches:
        made += await _make(database, schema, batch, patient=patient)
    if large:
        names = ", ".join(f"{month:%Y-%m}" for month in large)
        raise DatabaseError(
            f"messages_default of {schema} holds more than {_MOVED_AT_ONCE} rows of {names}: "
            "they stay there until the command migrate moves them, while writers of that partition wait"
        )
    return made


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


async def attached(database: Database, schema: str) -> frozenset[str]:
    """The names of the partitions in use. Raises `StorageError`."""
    async with database.connection() as connection:
        rows = await connection.fetch(load("partitions", schema)["attached"], schema)
    return frozenset(row["relname"] for row in rows)


async def months_ahead(database: Database, schema: str, today: datetime.date) -> int:
    """How many months after the one of `today` have their partition, up to the first that has none.

    Raises `StorageError`.
    """
    known = await attached(database, schema)
    month = today.year * 12 + today.month
    ahead = 0
    while name_of(datetime.date(month // 12, month % 12 + 1, 1)) in known:
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
