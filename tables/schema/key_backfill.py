"""Filling message_keys for the rows that the existing service left."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tables.connection.pool import Database
from tables.queries import load
from tables.schema.advisory_locks import briefly

if TYPE_CHECKING:
    from tables.connection.pool import Connection


async def fill_message_keys(database: Database, schema: str, *, page: int = 5000) -> bool:
    """Fill in the keys of the next `page` rows, lowest id first; True when every row has its key.

    How far it got is kept in the database, so it goes on after a restart, and replicas take a page each. Raises
    `QueryTimeout` that names who holds the lock in the way, otherwise `StorageError`; the next call goes on.
    """
    return await briefly(database, schema, "keys", partial(_fill, schema=schema, page=page))


async def _fill(connection: Connection, *, schema: str, page: int) -> bool:
    sql = load("message_keys", schema)
    state = await connection.fetchrow(sql["lock_fill"])
    if state is None or state["complete"]:
        return True
    last = await connection.fetchval(sql["fill_page"], state["filled_to"], page)
    filled_to = state["filled_to"] if last is None else last
    await connection.execute(sql["note_fill"], filled_to, last is None)
    return last is None


async def message_keys_complete(database: Database, schema: str) -> bool:
    """Whether every row has its key, so that a message without one is new."""
    async with database.connection() as connection:
        return bool(await connection.fetchval(load("message_keys", schema)["is_complete"]))
