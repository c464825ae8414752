"""What a company has in the database, and its end: the schema with all its tables (FLT-9)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from tables.connection.pool import Database
from tables.queries import load
from tables.schema.advisory_locks import PATIENCE, briefly, migration_lock
from tables.schema.problems import SchemaProblem

if TYPE_CHECKING:
    from tables.connection.pool import Connection

# Seconds of trying to get the locks of all tables; each try waits for a moment only.
DROP_WITHIN: Final = 30.0
# Schemas whose exhausted events are counted by one statement.
_COUNTED_AT_ONCE: Final = 200


class TableSize(NamedTuple):
    """A table with its partitions: rows as the server's statistics have them, bytes with indexes."""

    name: str
    rows: int
    bytes: int


async def existing_schemas(database: Database) -> Collection[str]:
    """The schemas that are companies', also those without tables. Raises `StorageError`."""
    async with database.connection() as connection:
        rows = await connection.fetch(load("removal", "")["schemas"])
    return {row["nspname"] for row in rows}


async def contents(database: Database, schema: str) -> list[TableSize]:
    """The tables of a schema, the largest first; empty if there is none. Raises `StorageError`."""
    async with database.connection() as connection:
        rows = await connection.fetch(load("removal", "")["contents"], schema)
    return [TableSize(row["name"], row["rows"], row["bytes"]) for row in rows]


async def require_no_dependents(database: Database, schema: str) -> None:
    """Raises `SchemaProblem` that names what others have made of the schema's tables, and `StorageError`."""
    async with database.connection() as connection:
        rows = await connection.fetch(load("removal", "")["dependents"], schema)
    if rows:
        names = ", ".join(row["name"] for row in rows)
        raise SchemaProblem(
            f"{names} would go with schema {schema}: drop or change what uses its tables first"
        )


async def drop(database: Database, schema: str) -> None:
    """Drop a schema with all that is in it; nothing if there is none.

    Only this company's tables are locked, for which no try waits longer than a moment, and the publication is not:
    other companies go on. Raises `SchemaProblem` if others depend on its tables, `QueryTimeout` that names who holds a
    lock in the way, otherwise `StorageError`; then nothing was dropped.
    """
    sql = load("removal", schema)

    async def work(connection: Connection) -> None:
        await migration_lock(connection, schema)
        if schema in {row["nspname"] for row in await connection.fetch(sql["schemas"])}:
            await connection.execute(sql["no_limit"])
            await connection.execute(sql["drop"], timeout=PATIENCE)

    await require_no_dependents(database, schema)
    await briefly(database, schema, "drop", work, within=DROP_WITHIN)


async def count_exhausted(database: Database, schemas: Sequence[str]) -> Mapping[str, int]:
    """How many exhausted events nobody has resolved, by schema; without those that have no such table.

    Raises `StorageError`.
    """
    counts: dict[str, int] = {}
    async with database.connection() as connection:
        found = await connection.fetch(load("removal", "")["countable"], list(schemas))
        names = [row["schema"] for row in found]
        for start in range(0, len(names), _COUNTED_AT_ONCE):
            part = names[start : start + _COUNTED_AT_ONCE]
            rows = await connection.fetch(_counting(part))
            counts |= {part[row["number"]]: row["rows"] for row in rows}
    return counts


def _counting(schemas: Sequence[str]) -> str:
    texts = (
        f"SELECT {number} AS number, ({load('removal', schema)['exhausted']}) AS rows"
        for number, schema in enumerate(schemas)
    )
    return " UNION ALL ".join(texts)
