"""How PostgreSQL looks things up for us: by an index, whatever it knows of a table."""

from __future__ import annotations

import pytest

from tables.connection.pool import Database
from tables.queries import load

_STATEMENTS = [
    ("messages", ("lock", "update", "unclaimed", "probe", "lock_keys", "drop_keys")),
    ("chats", ("lock", "update", "drop_steps")),
    ("contacts", ("find", "update")),
    ("agents", ("lock", "update")),
    ("onboarding", ("find", "update")),
]


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file, names in _STATEMENTS for name in names], ids="-".join
)
async def test_nothing_is_looked_up_by_reading_a_whole_table_even_while_it_is_empty(
    database: Database, schema: str, file: str, name: str
) -> None:
    text = load(file, schema)[name]
    async with database.connection() as connection:
        parameters = (await connection.prepare(text)).get_parameters()
        arguments: list[object] = [[] if each.kind == "array" else None for each in parameters]
        rows = await connection.fetch(f"EXPLAIN (GENERIC_PLAN) {text}", *arguments)
    plan = "\n".join(row["QUERY PLAN"] for row in rows)
    assert "Index" in plan
    assert "Seq Scan" not in plan, plan
