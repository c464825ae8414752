"""Whether a schema that was prepared before needs anything: two short looks, so that a fleet starts in seconds."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, NamedTuple

from tables.connection.pool import Database
from tables.month_partition import name_of, of_days
from tables.queries import load
from tables.schema import companies, migrations, partitions
from tables.schema.advisory_locks import briefly

if TYPE_CHECKING:
    from tables.connection.pool import Connection


class Prepared(NamedTuple):
    """What there is to know of a schema that needs nothing."""

    keys_complete: bool  # whether every message has its key
    partitions: frozenset[str]  # those of the messages, by name


async def inspect(
    database: Database, schema: str, company: str, *, auto_migrate: bool, today: datetime.date
) -> Prepared | None:
    """None unless the schema is that of `company`, complete for this release and `today`, and published.

    Without `auto_migrate` nothing is published, and that is no obstacle. Raises `SchemaTaken` if it is another
    company's, otherwise as `briefly`.
    """
    wanted = [name_of(month) for month in partitions.months(today)]
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
    complete = await _keys_complete(database, schema, today)
    return None if complete is None else Prepared(complete, frozenset(state["partitions"]))


async def _keys_complete(database: Database, schema: str, today: datetime.date) -> bool | None:
    """What only the tables themselves tell: whether every message has its key; None if something is to be done."""
    text = of_days(load("schema", schema)["contents"], *partitions.this_and_last_month(today))

    async def work(connection: Connection) -> bool | None:
        row = await connection.fetchrow(text, schema)
        if row is None or row["lacks_index"] or (row["complete"] and not row["newest_has_key"]):
            return None
        return bool(row["complete"])

    return await briefly(database, schema, "inspection", work)
