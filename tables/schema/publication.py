"""Change data capture: the publication that other systems subscribe to (TAB-4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tables.connection.pool import Database
from tables.errors import QueryTimeout
from tables.queries import load
from tables.schema.advisory_locks import briefly, execute_briefly, limit_locks, publication_lock

if TYPE_CHECKING:
    from tables.connection.pool import Connection

# Milliseconds for each lock while others are held: writers wait for all of them.
_UNUSED_WAIT: Final = 10


async def publish_changes(database: Database, schema: str) -> None:
    """Add what is missing of the tenant's tables and partitions to `daisi_pub`, with whole rows as identity.

    Tenants that start together do so one after the other, some milliseconds each. All tables are changed at once if
    nobody uses them, as in a new schema, otherwise each by itself, so that a writer waits for one lock for a moment
    only. Raises `QueryTimeout` that names who holds the lock in the way, otherwise `StorageError`. Without it the
    service works all the same: the server may lack logical WAL or the role the rights. The next call goes on.
    """
    sql = load("publication", schema)

    async def create(connection: Connection) -> list[str]:
        if not await connection.fetchval(sql["exists"]):
            await publication_lock(connection)
            if not await connection.fetchval(sql["exists"]):
                await connection.execute(sql["create"])
        return [row["identity"] for row in await connection.fetch(sql["members"], schema) if row["identity"]]

    async def add(connection: Connection) -> None:
        await publication_lock(connection)
        members = await connection.fetch(sql["members"], schema)
        if additions := [row["addition"] for row in members if row["addition"]]:
            await connection.execute(f"ALTER PUBLICATION daisi_pub ADD TABLE {', '.join(additions)}")

    identities = await briefly(database, schema, "publication", create)
    if identities and not await _execute_unused(database, schema, identities):
        for statement in identities:
            await execute_briefly(database, schema, "publication", statement)
    # Last: an update of a published table without an identity fails.
    await briefly(database, schema, "publication", add)


async def _execute_unused(database: Database, schema: str, statements: Sequence[str]) -> bool:
    """Run them in one transaction; False, and nothing is changed, if others use the tables."""

    async def work(connection: Connection) -> None:
        await limit_locks(connection, _UNUSED_WAIT)
        await connection.execute("; ".join(statements))

    try:
        await briefly(database, schema, "publication", work)
    except QueryTimeout:
        return False
    return True


async def holds_messages(database: Database, schema: str) -> bool:
    """Whether the tenant's messages are published."""
    async with database.connection() as connection:
        return bool(await connection.fetchval(load("publication", schema)["holds_messages"], schema))
