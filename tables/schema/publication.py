"""Change data capture: the publication that other systems subscribe to (TAB-4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tables.connection.pool import Database
from tables.queries import load
from tables.schema.advisory_locks import briefly, execute_briefly, publication_lock

if TYPE_CHECKING:
    from tables.connection.pool import Connection


async def publish_changes(database: Database, schema: str) -> None:
    """Add what is missing of the tenant's tables and partitions to `daisi_pub`, with whole rows as identity.

    Tenants that start together do so one after the other; each table is changed by itself, so that a writer waits for
    one lock for a moment only. Raises `QueryTimeout` that names who holds the lock in the way, otherwise
    `StorageError`. Without it the service works all the same: the server may lack logical WAL or the role the rights.
    The next call goes on.
    """
    sql = load("publication", schema)

    async def create(connection: Connection) -> list[str]:
        await publication_lock(connection)
        if not await connection.fetchval(sql["exists"]):
            await connection.execute(sql["create"])
        return [row["identity"] for row in await connection.fetch(sql["members"], schema) if row["identity"]]

    async def add(connection: Connection) -> None:
        await publication_lock(connection)
        members = await connection.fetch(sql["members"], schema)
        if additions := [row["addition"] for row in members if row["addition"]]:
            await connection.execute("; ".join(additions))

    for statement in await briefly(database, schema, "publication", create):
        await execute_briefly(database, schema, "publication", statement)
    # Last: an update of a published table without an identity fails.
    await briefly(database, schema, "publication", add)


async def holds_messages(database: Database, schema: str) -> bool:
    """Whether the tenant's messages are published."""
    async with database.connection() as connection:
        return bool(await connection.fetchval(load("publication", schema)["holds_messages"], schema))
