"""Which company a schema belongs to, in its exact spelling, and all companies of a database (SUB-5)."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from tables.connection.pool import Database
from tables.queries import load
from tables.schema.advisory_locks import briefly, migration_lock
from tables.schema.problems import SchemaTaken

if TYPE_CHECKING:
    from tables.connection.pool import Connection

logger = logging.getLogger(__name__)

_PREFIX: Final = "daisi_"


class Note(NamedTuple):
    """What is kept with a schema: its company, and the migrations that were applied when it was written last."""

    company: str
    migrations: frozenset[str]


@dataclass(frozen=True, slots=True)
class Company:
    """A schema of the database. `name` is None while nobody has noted it: a schema that this release never served.

    `migrations` are those noted; an older release may have applied none since. `bytes` is None unless asked for.
    """

    schema: str
    name: str | None
    migrations: frozenset[str]
    bytes: int | None


async def list_companies(database: Database, *, sizes: bool = False) -> Sequence[Company]:
    """All companies that have a schema, by its name, with one statement. Raises `StorageError`.

    `sizes` has each table's files looked at: about a second for 1,000 companies.
    """
    async with database.connection() as connection:
        rows = await connection.fetch(load("companies", "")["all"], sizes)
    found: list[Company] = []
    for row in rows:
        note = parse(row["note"])
        name, migrations = note or (None, frozenset[str]())
        found.append(Company(row["schema"], name, migrations, row["bytes"]))
    return found


async def name_in_rows(database: Database, schema: str) -> str | None:
    """The company that the rows of a schema without a note name; None if none or several. Raises `StorageError`."""
    async with database.connection() as connection:
        rows = await connection.fetch(load("companies", schema)["rows"], "")
    names = {row["company_id"] for row in rows if _PREFIX + row["company_id"].lower() == schema}
    return names.pop() if len(names) == 1 else None


async def read_note(connection: Connection, schema: str) -> Note | None:
    """What is noted beside a schema. Raises the driver's errors."""
    row = await connection.fetchrow(load("companies", "")["note"], schema)
    return parse(row["note"]) if row is not None else None


async def write_note(connection: Connection, schema: str, company: str, migrations: Iterable[str]) -> bool:
    """Note the company and the migrations applied; False if the role has not the right. Raises the driver's errors."""
    sql = load("companies", "")
    row = await connection.fetchrow(sql["note"], schema)
    if row is None or not row["is_ours"]:
        return False
    text = json.dumps({"company": company, "migrations": sorted(migrations)}, ensure_ascii=False)
    if row["note"] != text:
        await connection.execute(await connection.fetchval(sql["write_note"], schema, text))
    return True


async def claim(database: Database, schema: str, company: str, migrations: Collection[str]) -> None:
    """Note `company` as the owner of a schema with all its tables, unless its note or rows name another spelling.

    Of replicas that claim it for different spellings one wins, for ever. Raises `SchemaTaken`, or what `briefly`
    raises.
    """

    async def work(connection: Connection) -> bool:
        await migration_lock(connection, schema)
        require_owner(await read_note(connection, schema), schema, company)
        rows = await connection.fetch(load("companies", schema)["rows"], company)
        for found in sorted(row["company_id"] for row in rows):
            if found.lower() == company.lower():
                raise SchemaTaken(schema, company, found)
        return await write_note(connection, schema, company, migrations)

    if not await briefly(database, schema, "owner", work):
        logger.warning(
            "schema %s cannot be noted as that of %s: schema_migrations belongs to another role; "
            "run the command migrate with that role, or every start looks at the rows again",
            schema,
            company,
        )


def require_owner(note: Note | None, schema: str, company: str) -> None:
    """Raises `SchemaTaken` if the note names another company."""
    if note is not None and note.company != company:
        raise SchemaTaken(schema, company, note.company)


def parse(text: str | None) -> Note | None:
    """A note as it was written; None for any other comment."""
    try:
        found = json.loads(text or "")
        return Note(str(found["company"]), frozenset(map(str, found["migrations"])))
    except (ValueError, TypeError, KeyError):
        return None
