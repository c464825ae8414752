"""Who changes tables now: replicas and tenants that start together take turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tables.queries import load

if TYPE_CHECKING:
    from tables.pool import Connection

# Seconds, for the driver: waiting for the turn and building an index on adopted data take as long as they take.
PATIENCE: Final = 24 * 3600.0


async def migration_turn(connection: Connection, schema: str) -> None:
    """Wait for the turn to change the tables of `schema`; the transaction then holds it."""
    await _wait(connection, f"schema {schema}")


async def publication_turn(connection: Connection) -> None:
    """Wait for the turn to change the publication, over all tenants; the transaction then holds it."""
    await _wait(connection, "publication")


async def _wait(connection: Connection, what: str) -> None:
    sql = load("turns", "")
    await connection.execute(sql["lift_limits"])
    await connection.execute(sql["wait"], f"daisi {what}", timeout=PATIENCE)
    await connection.execute(sql["limit_locks"])
