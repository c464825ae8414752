"""A schema with data that the existing service made is taken over unchanged (TAB-1, TAB-5)."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path

import pytest

from events.subjects import Tenant
from tables.connection.pool import Database
from tables.queries import quoted
from tables.schema import indexes
from tables.schema.key_backfill import message_keys_complete
from tables.schema.migrations import migrate

_EXISTING = Path(__file__).parent / "existing_service.sql"
_TABLES = ("messages", "chats", "contacts", "agents", "onboarding_log", "exhausted_events")
_ROWS = """
INSERT INTO {schema}.messages (message_id, message_date, company_id, jid, key)
VALUES ('m1', now()::date, 'Kopi', 'j', '{"id": "m1"}'), ('m2', '0001-01-01', 'Kopi', 'j', NULL),
       (NULL, now()::date, NULL, NULL, NULL);
INSERT INTO {schema}.chats (chat_id, unread_count) VALUES ('c1', 2), (NULL, NULL), (NULL, NULL);
INSERT INTO {schema}.contacts (id, phone_number, agent_id, chat_id)
VALUES ('', '62811', 'a', ''), ('u1', '62811', 'a', NULL), ('u2', '62811', 'a', NULL);
INSERT INTO {schema}.agents (agent_id) VALUES ('a');
INSERT INTO {schema}.onboarding_log (phone_number, agent_id) VALUES ('62811', 'a'), ('62811', 'a');
INSERT INTO {schema}.exhausted_events (company_id, source_subject, dlq_payload) VALUES ('Kopi', 's', '{}');
"""


@pytest.fixture
async def existing(database: Database, tenant: Tenant) -> str:
    """The tenant's schema as the existing service left it, with rows."""
    text = _EXISTING.read_text(encoding="utf-8") + _ROWS
    async with database.connection() as connection:
        await connection.execute(text.replace("{schema}", quoted(tenant.schema)))
    return tenant.schema


async def _indexes(database: Database, schema: str) -> dict[str, str]:
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = $1 AND tablename = ANY($2)",
            schema,
            list(_TABLES),
        )
    return {row["indexname"]: row["indexdef"] for row in rows}


async def _content(database: Database, schema: str) -> dict[str, list[str]]:
    async with database.connection() as connection:
        return {
            table: [
                row[0]
                for row in await connection.fetch(
                    f"SELECT t::text FROM {quoted(schema)}.{table} AS t ORDER BY 1"
                )
            ]
            for table in _TABLES
        }


async def test_rows_stay_as_they_are(database: Database, existing: str) -> None:
    before = await _content(database, existing)

    await migrate(database, existing)

    assert await _content(database, existing) == before


async def test_only_missing_indexes_are_added(database: Database, existing: str) -> None:
    before = await _indexes(database, existing)

    await migrate(database, existing)
    await indexes.build(database, existing)

    after = await _indexes(database, existing)
    added = sorted(after[name].split(" ON ")[1] for name in after.keys() - before.keys())
    assert before.items() <= after.items()
    assert [text.split(".")[1] for text in added] == [
        "contacts USING btree (phone_number, agent_id)",
        "contacts USING btree (translate(phone_number, '+ ()'::text, ''::text))",
        "exhausted_events USING btree (\"substring\"((dlq_payload ->> 'event_version'::text),"
        " '^[0-9]+-[0-9]+'::text))",
        "exhausted_events USING btree (((dlq_payload ->> 'event_version'::text)))",
        "onboarding_log USING btree (phone_number, agent_id)",
    ]


async def test_existing_partitions_stay_and_new_ones_join(database: Database, existing: str) -> None:
    year = datetime.datetime.now(datetime.UTC).year

    await migrate(database, existing, today=datetime.date(year, 12, 31))

    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = $1::text::regclass",
            f"{quoted(existing)}.messages",
        )
    names = {row["name"].rpartition(".")[2].strip('"') for row in rows}
    expected = {f"messages_y{y}m{m:02}" for y in (year - 1, year) for m in range(1, 13)}
    ahead = {f"messages_y{year + 1}m01", f"messages_y{year + 1}m02"}
    assert names == {"messages_default"} | expected | ahead


async def test_keys_of_adopted_messages_are_still_to_be_filled(database: Database, existing: str) -> None:
    await migrate(database, existing)

    assert not await message_keys_complete(database, existing)


async def test_replicas_that_start_together_take_it_over_once(database: Database, existing: str) -> None:
    applied = await asyncio.gather(*(migrate(database, existing) for _ in range(3)))

    assert sorted(bool(names) for names in applied) == [False, False, True]


async def test_it_is_accepted_without_auto_migrate_and_shared_tables_stay_untouched(
    database: Database, existing: str
) -> None:
    before = await _indexes(database, existing)

    own = ["0001_messages", "0002_own_tables", "0006_exhausted_reopened", "0007_step_incarnations"]
    assert await migrate(database, existing, auto_migrate=False) == own
    assert await _indexes(database, existing) == before


async def test_no_index_of_an_adopted_table_with_rows_is_built_before_the_service_begins(
    database: Database, existing: str
) -> None:
    """Such a build keeps writers waiting, and no start is through that takes longer than a statement may."""
    before = await _indexes(database, existing)

    await migrate(database, existing)

    assert await _indexes(database, existing) == before
    assert {index.table_name for index in await indexes.wanted(database, existing)} == {
        "contacts",
        "exhausted_events",
        "onboarding_log",
    }
