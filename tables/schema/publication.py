"""Change data capture: the publication that other systems subscribe to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tables.connection.pool import Database
from tables.queries import load
from tables.schema.advisory_locks import briefly, limit_locks, publication_lock

if TYPE_CHECKING:
    from tables.connection.pool import Connection


async def publish_changes(database: Database, schema: str) -> None:
    """Add what is missing of the tenant's tables and partitions to `daisi_pub`, with whole rows as identity.

    Tenants that start together take turns; each table is changed by itself, so that a writer waits for one lock of a
    moment only. Raises `Expired` that says whose lock is in the way, otherwise `StorageError`; neither need keep the
    service from working: the server may lack logical WAL or the role the rights. The next call goes on.
    """
    sql = load("publication", schema)

    async def make(connection: Connection) -> list[str]:
        await publication_lock(connection)
        if not await connection.fetchval(sql["exists"]):
            await connection.execute(sql["create"])
        return [row["ddl"] for row in await connection.fetch(sql["identities"], schema)]

    async def add(connection: Connection) -> None:
        await publication_lock(connection)
        for row in await connection.fetch(sql["additions"], schema):
            await connection.execute(row["ddl"])

    for ddl in await briefly(database, schema, "publication", make):
        await _alter(database, schema, ddl)
    # Last: an update of a published table without an identity fails.
    await briefly(database, schema, "publication", add)


async def _alter(database: Database, schema: str, ddl: str) -> None:
    async def work(connection: Connection) -> None:
        await limit_locks(connection)
        await connection.execute(ddl)

    await briefly(database, schema, "publication", work)


async def holds_messages(database: Database, schema: str) -> bool:
    """Whether the tenant's messages are published."""
    async with database.connection() as connection:
        return bool(await connection.fetchval(load("publication", schema)["holds_messages"], schema))
