"""Which companies have a schema."""

from __future__ import annotations

from collections.abc import Sequence

from events.subjects import Tenant
from tables.connection.pool import Database


async def list_companies(database: Database) -> Sequence[Tenant]:
    """Every company whose schema is there. Raises `StorageError`."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT obj_description(oid, 'pg_namespace') AS company FROM pg_namespace"
            " WHERE nspname LIKE 'daisi\\_%' AND obj_description(oid, 'pg_namespace') LIKE 'company %'"
        )
    return [Tenant(row["company"].removeprefix("company ")) for row in rows]
