"""Change data capture: the publication that other systems subscribe to (contract 6.4)."""

from __future__ import annotations

from tables.pool import Database
from tables.queries import load
from tables.turns import publication_turn


async def publish_changes(database: Database, schema: str) -> None:
    """Add what is missing of the tenant's tables and partitions to `daisi_pub`, with whole rows as identity.

    Tenants that start together take turns. Raises `StorageError`, which need not keep the service from
    working: the server may lack logical WAL or the role the rights.
    """
    sql = load("publication", schema)
    async with database.transaction() as connection:
        await publication_turn(connection)
        if not await connection.fetchval(sql["exists"]):
            await connection.execute(sql["create"])
        additions = await connection.fetch(sql["additions"], schema)
        if additions:
            await connection.execute("; ".join(row["ddl"] for row in additions))


async def holds_messages(database: Database, schema: str) -> bool:
    """Whether the tenant's messages are published."""
    async with database.connection() as connection:
        return bool(await connection.fetchval(load("publication", schema)["holds_messages"], schema))
