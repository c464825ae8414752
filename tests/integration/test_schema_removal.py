"""A company's schema goes with all its tables, and keeps nobody else waiting (FLT-9)."""

from __future__ import annotations

import asyncio

import pytest

from events.subjects import Tenant
from tables.connection.pool import Database
from tables.errors import QueryTimeout
from tables.queries import quoted
from tables.schema import removal
from tables.schema.migrations import SchemaProblem, migrate
from tables.schema.publication import holds_messages, publish_changes

OTHER = Tenant("Other")


async def _run(database: Database, statement: str) -> None:
    async with database.connection() as connection:
        await connection.execute(statement)


async def _store_chat(database: Database, schema: str) -> None:
    await _run(database, f"INSERT INTO {quoted(schema)}.chats (company_id) VALUES ('x')")


@pytest.mark.rule("FLT-9")
async def test_a_dropped_schema_takes_its_part_of_the_publication_along(
    database: Database, schema: str
) -> None:
    await migrate(database, OTHER.schema, company=OTHER.company)
    for name in (schema, OTHER.schema):
        await publish_changes(database, name)
    tables = await removal.contents(database, schema)
    assert {"messages", "chats", "contacts", "exhausted_events"} <= {each.name for each in tables}
    assert sum(each.bytes for each in tables) > 0

    await removal.drop(database, schema)
    await removal.drop(database, schema)

    assert await removal.contents(database, schema) == []
    assert await removal.existing_schemas(database) == {OTHER.schema}
    assert await holds_messages(database, OTHER.schema)
    assert not await holds_messages(database, schema)


@pytest.mark.rule("FLT-9")
async def test_a_drop_that_waits_for_a_lock_holds_up_no_other_company_and_names_the_holder(
    database: Database, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(database, OTHER.schema, company=OTHER.company)
    async with database.transaction(commit=False) as reader:
        await reader.execute(f"SELECT FROM {quoted(schema)}.messages")
        dropping = asyncio.create_task(removal.drop(database, schema))
        # As long as the reader reads, the drop cannot end.
        await publish_changes(database, OTHER.schema)
        await _store_chat(database, OTHER.schema)
        # Its own writers wait only for as long as a try lasts.
        await _store_chat(database, schema)
        assert not dropping.done()
    await dropping
    assert await removal.existing_schemas(database) == {OTHER.schema}

    monkeypatch.setattr(removal, "DROP_WITHIN", 0.5)
    async with database.transaction(commit=False) as reader:
        await reader.execute(f"SELECT FROM {quoted(OTHER.schema)}.messages")
        with pytest.raises(QueryTimeout, match=r"messages.* is in use by process"):
            await removal.drop(database, OTHER.schema)
    assert await removal.existing_schemas(database) == {OTHER.schema}


async def test_what_others_made_of_its_tables_is_named_and_keeps_it(database: Database, schema: str) -> None:
    await _run(database, "CREATE SCHEMA reports")
    await _run(database, f"CREATE VIEW reports.recent AS SELECT * FROM {quoted(schema)}.chats")
    with pytest.raises(SchemaProblem, match=r"reports\.recent would go"):
        await removal.drop(database, schema)
    assert await removal.contents(database, schema)


async def test_unresolved_exhausted_events_of_many_schemas_are_counted_at_once(
    database: Database, schema: str
) -> None:
    strange = 'daisi_it"s {number} $1'
    await migrate(database, strange, company='It"s {number} $1')
    for name, count in ((schema, 1), (strange, 2)):
        for resolved in [False] * count + [True]:
            await _run(
                database,
                f"INSERT INTO {quoted(name)}.exhausted_events (company_id, source_subject, dlq_payload, resolved)"
                f" VALUES ('x', 'v1', '{{}}', {resolved})",
            )
    await _run(database, "CREATE SCHEMA daisi_empty")
    names = [schema, strange, "daisi_empty", "daisi_missing"]
    assert await removal.count_exhausted(database, names) == {schema: 1, strange: 2}
    assert await removal.count_exhausted(database, []) == {}
