"""Whether a schema that was prepared before needs anything: two short looks, so that a fleet starts in seconds."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, NamedTuple

from tables.connection.pool import Database
from tables.queries import load, of_days
from tables.schema import companies, migrations, partitions
from tables.schema.advisory_locks import briefly

if TYPE_CHECKING:
    from tables.connection.pool import Connection


class Prepared(NamedTuple):
    """A schema that needs nothing, and whether every message of it has its key."""

    keys_complete: bool


async def inspect(
    database: Database, schema: str, company: str, *, auto_migrate: bool, today: datetime.date
) -> Prepared | None:
    """None unless the schema is that of `company`, complete for this release and `today`, and published.

    Without `auto_migrate` nothing is published, and that is no obstacle. Raises `SchemaTaken` if it is another
    company's, otherwise as `briefly`.
    """
    wanted = [partitions.name_of(month) for month in partitions.months(today)]
    wanted += [
        *migrations.SHARED_TABLES,
        "messages",
        "schema_migrations",
        "wanted_indexes",
        "message_keys_fill",
    ]
    made, columns = migrations.columns_made()
    async with database.connection() as connection:
        state = await connection.fetchrow(load("schema", "")["state"], schema, wanted, made, columns)
    note = companies.parse(state["note"]) if state is not None else None
    if state is None or note is None:
        return None
    companies.require_owner(note, schema, company)
    is_complete = state["has_tables"] and state["has_columns"] and (state["is_published"] or not auto_migrate)
    if not is_complete or not note.migrations >= migrations.names(auto_migrate=auto_migrate):
        return None
    return await _contents(database, schema, today)


async def _contents(database: Database, schema: str, today: datetime.date) -> Prepared | None:
    """What only the tables themselves tell."""
    text = of_days(load("schema", schema)["contents"], *partitions.this_and_last_month(today))

    async def work(connection: Connection) -> Prepared | None:
        row = await connection.fetchrow(text, schema)
        if row is None or row["lacks_index"] or (row["complete"] and not row["newest_has_key"]):
            return None
        return Prepared(keys_complete=row["complete"])

    return await briefly(database, schema, "inspection", work)
