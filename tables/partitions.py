"""The monthly partitions of a tenant's messages, made ahead of time (contract 6.3)."""

from __future__ import annotations

import datetime
from typing import Final

from tables import publication
from tables.pool import Database
from tables.queries import load
from tables.turns import PATIENCE, migration_turn

_MONTHS_AHEAD: Final = 2


def months(today: datetime.date) -> list[datetime.date]:
    """The first days of the months that need a partition: January of last year to this December, and at least
    two months ahead of `today`."""
    first = (today.year - 1) * 12
    last = max(today.year * 12 + 11, today.year * 12 + today.month - 1 + _MONTHS_AHEAD)
    return [datetime.date(month // 12, month % 12 + 1, 1) for month in range(first, last + 1)]


async def make_partitions(database: Database, schema: str, today: datetime.date) -> list[str]:
    """Make the partitions missing for `today`; the rows in the way move into them. Returns their names.

    Replicas take turns. Raises `StorageError`; none is made then.
    """
    sql = load("partitions", schema)
    async with database.transaction() as connection:
        await migration_turn(connection, schema)
        missing = await connection.fetch(sql["make"], schema, months(today))
        if missing:
            await connection.execute(sql["lock_default"])
            await connection.execute("; ".join(row["ddl"] for row in missing), timeout=PATIENCE)
    return [row["name"] for row in missing]


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
    """What is to be done every day (UTC): make the partitions missing for `today` and return their names.

    They join the publication if the schema's messages are published. Raises `StorageError`; what failed is
    made up for by the next call.
    """
    made = await make_partitions(database, schema, today)
    if await publication.holds_messages(database, schema):
        await publication.publish_changes(database, schema)
    return made
