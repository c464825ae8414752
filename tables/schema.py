"""The tenant's schema: made, extended and taken over from the existing service at start (contract 6)."""

from __future__ import annotations

import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tables import partitions
from tables.errors import StorageError
from tables.pool import Database
from tables.queries import load, quoted
from tables.statements import missing_parts
from tables.turns import PATIENCE, migration_turn

if TYPE_CHECKING:
    from tables.pool import Connection

# For the shared tables auto-migrate must be on; without it they must be there (contract 6.5).
SHARED_TABLES: Final = ("agents", "chats", "contacts", "exhausted_events", "onboarding_log")

_FOLDER: Final = Path(__file__).parent / "sql" / "migrations"
_SHARED_MARK: Final = "-- auto-migrate only\n"


class SchemaProblem(StorageError):
    """The schema is not one that this service can work with; waiting does not help."""


class _Migration(NamedTuple):
    name: str
    text: str

    @property
    def shared(self) -> bool:
        return self.text.startswith(_SHARED_MARK)


@cache
def _migrations() -> tuple[_Migration, ...]:
    files = sorted(_FOLDER.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    return tuple(_Migration(file.stem, file.read_text(encoding="utf-8")) for file in files)


async def migrate(
    database: Database, schema: str, *, auto_migrate: bool = True, today: datetime.date | None = None
) -> list[str]:
    """Make or extend the tenant's schema and its partitions; returns the names of the migrations applied.

    Replicas that start together do it once. Tables of the existing service are taken over as they are. `today`
    (default: the UTC day) decides which partitions are made. Raises `SchemaProblem` if auto-migrate is off and
    shared tables are missing, otherwise `StorageError`; the next call goes on (contract 6.3, 6.5).
    """
    applied = await _migrate_tables(database, schema, auto_migrate=auto_migrate)
    # Apart from the tables: both wait for locks that a running replica may hold in another order.
    await partitions.make_partitions(database, schema, today or datetime.datetime.now(datetime.UTC).date())
    async with database.connection() as connection:
        await _require_shared(connection, schema)
        if not auto_migrate:
            await _require_columns(connection, schema)
    return applied


async def _migrate_tables(database: Database, schema: str, *, auto_migrate: bool) -> list[str]:
    sql = load("schema", schema)
    async with database.transaction() as connection:
        await migration_turn(connection, schema)
        if not await connection.fetchval(sql["schema_exists"], schema):
            await connection.execute(sql["create_schema"])
        await connection.execute(sql["create_journal"])
        done = {row["name"] for row in await connection.fetch(sql["applied"])}
        pending = [m for m in _migrations() if m.name not in done and (auto_migrate or not m.shared)]
        if pending:
            await _apply(connection, schema, pending)
        await connection.execute(load("message_keys", schema)["resume_fill"])
    return [migration.name for migration in pending]


async def _apply(connection: Connection, schema: str, pending: list[_Migration]) -> None:
    sql = load("schema", schema)
    await connection.execute(sql["tell_schema"], schema)
    await connection.execute(sql["create_index_once"])
    for migration in pending:
        text = migration.text.replace("{schema}", quoted(schema))
        await connection.execute(text, timeout=PATIENCE)
    await connection.execute(sql["drop_index_once"])
    await connection.execute(sql["record"], [migration.name for migration in pending])


async def _require_shared(connection: Connection, schema: str) -> None:
    rows = await connection.fetch(load("schema", schema)["missing_tables"], schema, list(SHARED_TABLES))
    if rows:
        names = ", ".join(row["name"] for row in rows)
        raise SchemaProblem(
            f"schema {schema} has no table {names}: set DATABASE_POSTGRESAUTOMIGRATE to true to have it made"
        )


async def _require_columns(connection: Connection, schema: str) -> None:
    if missing := await missing_parts(connection, schema):
        raise SchemaProblem(
            f"schema {schema} lacks what is needed: {'; '.join(missing)}: "
            "set DATABASE_POSTGRESAUTOMIGRATE to true to have it made"
        )


async def foreign_company(database: Database, schema: str, company: str) -> str | None:
    """Another spelling of `company` among the rows of a migrated schema, or None (contract C19, OC14).

    Looks at both ends of each table only, so that it costs the same whatever the size.
    """
    async with database.connection() as connection:
        rows = await connection.fetch(load("schema", schema)["companies"], company)
    spellings = (row["company_id"] for row in rows)
    return next((found for found in sorted(spellings) if found.lower() == company.lower()), None)
