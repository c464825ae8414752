"""Changes of tables: one replica at a time, and no long wait for a lock that other transactions use."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from tables.errors import QueryTimeout, SerializationFailure, StorageError
from tables.queries import load

if TYPE_CHECKING:
    from tables.connection.pool import Connection, Database

Result = TypeVar("Result")

# Seconds, for the driver: an index on a table with data takes as long as it takes.
PATIENCE: Final = 24 * 3600.0
# Milliseconds: whoever comes later queues behind us, writers of events among them.
LOCK_WAIT: Final = 300
# Milliseconds for another worker to release an advisory lock, for which no writer waits.
ADVISORY_LOCK_WAIT: Final = 5000
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_LOCK_NOT_AVAILABLE: Final = "55P03"


async def migration_lock(connection: Connection, schema: str) -> None:
    """Lock the tables of `schema` against other workers that change them, until the transaction ends.

    Raises the driver's error of a lock that is not available if another worker holds it for long.
    """
    await _lock(connection, f"schema {schema}")


async def publication_lock(connection: Connection) -> None:
    """The same for the publication, over all tenants."""
    await _lock(connection, "publication")


async def briefly(
    database: Database,
    schema: str,
    what: str,
    work: Callable[[Connection], Awaitable[Result]],
    *,
    within: float = 0.0,
) -> Result:
    """The result of `work` in a transaction that waits only `LOCK_WAIT` for each lock.

    While a lock is in the way, again with growing pauses for `within` seconds. Raises `QueryTimeout` that names `what`
    waits, for which table, and who holds it, otherwise `StorageError`.
    """
    deadline, pause = time.monotonic() + within, _FIRST_PAUSE
    while True:
        try:
            async with database.transaction(schema) as connection:
                await limit_locks(connection, LOCK_WAIT)
                return await work(connection)
        except (QueryTimeout, SerializationFailure) as error:
            if error.sqlstate != _LOCK_NOT_AVAILABLE and not isinstance(error, SerializationFailure):
                raise
            if time.monotonic() >= deadline:
                holder = await _holder(database, schema)
                raise QueryTimeout(f"{what} of {schema}: waits for a lock{holder}", error.sqlstate) from error
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(pause * 2, _LONGEST_PAUSE)


async def execute_briefly(
    database: Database, schema: str, what: str, statement: str, *, within: float = 0.0
) -> None:
    """Run one statement as `briefly` does."""
    await briefly(database, schema, what, lambda connection: connection.execute(statement), within=within)


async def _lock(connection: Connection, what: str) -> None:
    await limit_locks(connection, ADVISORY_LOCK_WAIT)
    await connection.execute(load("advisory_locks", "")["wait"], f"daisi {what}")
    await limit_locks(connection, LOCK_WAIT)


async def limit_locks(connection: Connection, milliseconds: int) -> None:
    """From now on the transaction waits only this long for each lock."""
    await connection.execute(load("advisory_locks", "")["limit_locks"], str(milliseconds))


async def _holder(database: Database, schema: str) -> str:
    """Which transaction has lasted longest among those that use the schema's tables; "" if that cannot be seen."""
    try:
        async with database.connection() as connection:
            row = await connection.fetchrow(load("advisory_locks", "")["holder"], schema)
    except StorageError:
        return ""
    if row is None:
        return ""
    who = ", ".join(filter(None, (row["application_name"], row["state"], row["lasts"])))
    return f": {row['relname']} is in use by process {row['pid']}" + (f" ({who})" if who else "")
