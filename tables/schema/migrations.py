"""The tenant's schema: made, extended or taken over from the existing service at start (TAB-1, TAB-5)."""

from __future__ import annotations

import datetime
import logging
import re
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tables.connection.pool import Database
from tables.errors import StorageError
from tables.queries import load, quoted
from tables.schema import companies, indexes, partitions
from tables.schema.advisory_locks import PATIENCE, briefly, migration_lock
from tables.schema.problems import SchemaMissing as SchemaMissing
from tables.schema.problems import SchemaProblem as SchemaProblem
from tables.schema.problems import SchemaTaken as SchemaTaken
from tables.schema.statements import missing_parts

if TYPE_CHECKING:
    from tables.connection.pool import Connection

logger = logging.getLogger(__name__)

# Seconds of trying before an error names who holds the lock; the caller tries again.
_TRIED_FOR: Final = 3.0
_UNLIMITED: Final = nullcontext()

# Made by auto-migrate only; without it they have to exist.
SHARED_TABLES: Final = ("agents", "chats", "contacts", "exhausted_events", "onboarding_log")

_FOLDER: Final = Path(__file__).parents[1] / "sql" / "migrations"
_SHARED_MARK: Final = "-- auto-migrate only\n"
_TABLE: Final = re.compile(r"CREATE TABLE IF NOT EXISTS \{schema\}\.(\w+) \((.*?)\n\)", re.DOTALL)
_COLUMN: Final = re.compile(r"^    ([a-z_]+) ", re.MULTILINE)


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


def names(*, auto_migrate: bool) -> frozenset[str]:
    """The migrations that a schema has once it is up to date."""
    return frozenset(migration.name for migration in _migrations() if auto_migrate or not migration.shared)


async def migrate(
    database: Database,
    schema: str,
    *,
    company: str | None = None,
    create: bool = True,
    auto_migrate: bool = True,
    today: datetime.date | None = None,
    at_once: AbstractAsyncContextManager[object] = _UNLIMITED,
    builds: AbstractAsyncContextManager[object] = _UNLIMITED,
) -> list[str]:
    """Make or extend the tenant's schema; returns the names of the migrations applied.

    Without `create` it has to exist, else `SchemaMissing` is raised. `company` is noted as its owner, in this
    spelling; another one is refused from then on, also while there are no rows. Replicas that start together do it
    once. Tables of the existing service are taken over as they are; indexes that writes need are built on them before
    this returns, while others write. `today` (default: the UTC day) decides which partitions are made; a partition
    that cannot be made now is left to `ensure_partitions`, since the default partition takes the rows. `at_once`
    limits how many schemas are looked at at a time, `builds` how many have indexes built. No lock that others need is
    waited for longer than a moment. Raises `SchemaTaken` if it is another company's, `SchemaProblem` that names the
    tables or columns that are missing, `QueryTimeout` that names who holds the lock in the way, otherwise
    `StorageError`; the next call goes on.
    """
    today = today or datetime.datetime.now(datetime.UTC).date()
    extend = partial(
        _extend, schema=schema, company=company, create=create, auto_migrate=auto_migrate, today=today
    )
    async with at_once:
        extended = await briefly(database, schema, "migration", extend, within=_TRIED_FOR)
        wanted = await indexes.wanted(database, schema, required=True)
    if wanted:
        async with builds:
            await indexes.build(database, schema, required=True)
    async with at_once:
        try:
            await partitions.make_partitions(database, schema, today)
        except StorageError as error:
            logger.warning("partitions of %s are made later: %s", schema, error)
        async with database.connection() as connection:
            await _require_tables(connection, schema)
            await _require_columns(connection, schema)
        if company is not None and not extended.is_owned:
            # Its tables may hold rows of another spelling; all of them are there now.
            await companies.claim(database, schema, company, extended.done)
    return extended.applied


class _Extended(NamedTuple):
    applied: list[str]  # migrations, by this call
    done: frozenset[str]  # by all calls so far
    is_owned: bool  # whether the company is noted as the owner


async def _extend(
    connection: Connection,
    *,
    schema: str,
    company: str | None,
    create: bool,
    auto_migrate: bool,
    today: datetime.date,
) -> _Extended:
    sql = load("schema", schema)
    await migration_lock(connection, schema)
    is_new = not await connection.fetchval(sql["schema_exists"], schema)
    if is_new:
        if not create:
            raise SchemaMissing(schema)
        await connection.execute(sql["create_schema"])
    await connection.execute(sql["create_journal"])
    note = await companies.read_note(connection, schema)
    if company is not None:
        companies.require_owner(note, schema, company)
    done = {row["name"] for row in await connection.fetch(sql["applied"])}
    pending = [m for m in _migrations() if m.name not in done and (auto_migrate or not m.shared)]
    if pending:
        await _apply(connection, schema, pending)
    if is_new:
        # Nobody else sees its tables yet, so no writer waits for their locks.
        await partitions.make_first(connection, schema, today)
    else:
        await connection.execute(load("message_keys", schema)["resume_fill"])
    applied = [migration.name for migration in pending]
    done.update(applied)
    is_owned = False
    if company is not None and (is_new or note is not None):
        is_owned = await companies.write_note(connection, schema, company, done)
    return _Extended(applied, frozenset(done), is_owned)


async def _apply(connection: Connection, schema: str, pending: list[_Migration]) -> None:
    sql = load("schema", schema)
    await connection.execute(sql["set_schema"], schema)
    for name in ("create_wanted", "create_index_once", "create_index_now_or_later"):
        await connection.execute(sql[name])
    for migration in pending:
        text = migration.text.replace("{schema}", quoted(schema))
        await connection.execute(text, timeout=PATIENCE)
    await connection.execute(sql["drop_index_once"])
    await connection.execute(sql["record"], [migration.name for migration in pending])


async def _require_tables(connection: Connection, schema: str) -> None:
    rows = await connection.fetch(load("schema", schema)["missing_tables"], schema, list(SHARED_TABLES))
    if rows:
        names = ", ".join(row["name"] for row in rows)
        raise SchemaProblem(
            f"schema {schema} has no table {names}: set DATABASE_POSTGRESAUTOMIGRATE to true to have it made"
        )


@cache
def _columns() -> tuple[tuple[str, str], ...]:
    """Every column of the tables that migrations make where nobody else has, with its table."""
    tables = (made for migration in _migrations() for made in _TABLE.finditer(migration.text))
    return tuple((made[1], column) for made in tables for column in _COLUMN.findall(made[2]))


def columns_made() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tables of `_columns`, and beside each its column."""
    tables, columns = zip(*_columns(), strict=True)
    return tables, columns


async def _require_columns(connection: Connection, schema: str) -> None:
    if not await connection.fetchval(load("schema", schema)["lacks_columns"], schema, *columns_made()):
        return
    # Not every column is used: the statements themselves are the measure, at one round trip each.
    if missing := await missing_parts(connection, schema):
        raise SchemaProblem(
            f"schema {schema} lacks what is needed: {'; '.join(missing)}: "
            "add it; no migration changes a table that another program made"
        )
