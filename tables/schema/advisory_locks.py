"""Who changes tables now: replicas take turns, and wait for no lock that others use longer than a moment."""

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
# Milliseconds for another worker to end its turn, which holds nobody else up.
TURN_WAIT: Final = 5000
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_LOCK_NOT_AVAILABLE: Final = "55P03"


async def migration_lock(connection: Connection, schema: str) -> None:
    """Wait for the turn to change the tables of `schema`; the transaction then holds it, and waits briefly for locks.

    Raises `Expired` (of the driver's) if another worker holds it for long.
    """
    await _wait(connection, f"schema {schema}")


async def publication_lock(connection: Connection) -> None:
    """The same for the publication, over all tenants."""
    await _wait(connection, "publication")


async def limit_locks(connection: Connection, milliseconds: int = LOCK_WAIT) -> None:
    """From now on the transaction waits only this long for each lock."""
    await connection.execute(load("turns", "")["limit_locks"], str(milliseconds))


async def briefly(
    database: Database,
    schema: str,
    what: str,
    work: Callable[[Connection], Awaitable[Result]],
    *,
    within: float = 0.0,
) -> Result:
    """The result of `work` in a transaction; when a lock is in the way, again with growing pauses for `within` seconds.

    `work` is to limit its waits for locks (`migration_turn`, `limit_locks`). Raises `Expired` that names `what` waits,
    for which table, and who holds it, otherwise `StorageError`.
    """
    deadline, pause = time.monotonic() + within, _FIRST_PAUSE
    while True:
        try:
            async with database.transaction() as connection:
                return await work(connection)
        except (QueryTimeout, SerializationFailure) as error:
            if error.sqlstate != _LOCK_NOT_AVAILABLE and not isinstance(error, SerializationFailure):
                raise
            if time.monotonic() >= deadline:
                holder = await _holder(database, schema)
                raise QueryTimeout(f"{what} of {schema}: waits for a lock{holder}", error.sqlstate) from error
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(pause * 2, _LONGEST_PAUSE)


async def _wait(connection: Connection, what: str) -> None:
    sql = load("turns", "")
    await limit_locks(connection, TURN_WAIT)
    await connection.execute(sql["wait"], f"daisi {what}")
    await limit_locks(connection)


async def _holder(database: Database, schema: str) -> str:
    """Whose transaction has lasted longest among those that use the schema's tables; nothing if that is not told."""
    try:
        async with database.connection() as connection:
            row = await connection.fetchrow(load("turns", "")["holder"], schema)
    except StorageError:
        return ""
    if row is None:
        return ""
    who = ", ".join(filter(None, (row["application_name"], row["state"], row["lasts"])))
    return f": {row['relname']} is in use by process {row['pid']}" + (f" ({who})" if who else "")
