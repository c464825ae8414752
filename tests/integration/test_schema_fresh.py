"""A schema that this service makes itself (TAB-1)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import tables.schema.migrations
from events.subjects import Tenant
from tables.connection.pool import Database
from tables.schema.migrations import SHARED_TABLES, SchemaProblem, migrate

_FILES = sorted((Path(tables.schema.migrations.__file__).parents[1] / "sql" / "migrations").glob("*.sql"))
MIGRATIONS = [file.stem for file in _FILES]

# name, type, nullable, default, in the order of the documented tables
Column = tuple[str, str, bool, str | None]


def _columns(*names: str, type_name: str = "text") -> list[Column]:
    return [(name, type_name, True, None) for name in names]


def _serial(table: str) -> Column:
    return ("id", "bigint", False, f"nextval('{{schema}}.{table}_id_seq'::regclass)")


_TIMES = _columns("created_at", "updated_at", type_name="timestamp with time zone")
_METADATA = _columns("last_metadata", type_name="jsonb")

COLUMNS: dict[str, list[Column]] = {
    "messages": [
        _serial("messages"),
        *_columns("message_id", "from_phone", "to_phone", "chat_id", "jid"),
        *_columns("message_text", "message_url", "message_type", "company_id"),
        *_columns("key", "edited_message_obj", "message_obj", type_name="jsonb"),
        *_columns("flow", "agent_id", "status"),
        ("is_deleted", "boolean", True, "false"),
        *_columns("message_timestamp", type_name="bigint"),
        ("message_date", "date", False, None),
        *_METADATA,
        *_TIMES,
    ],
    "chats": [
        _serial("chats"),
        *_columns("chat_id", "jid", "push_name"),
        *_columns("is_group", type_name="boolean"),
        *_columns("group_name"),
        *_columns("unread_count", type_name="integer"),
        *_columns("last_message", type_name="jsonb"),
        *_columns("conversation_timestamp", type_name="bigint"),
        *_columns("not_spam", type_name="boolean"),
        *_columns("agent_id", "company_id", "phone_number"),
        *_METADATA,
        *_TIMES,
    ],
    "contacts": [
        ("id", "text", False, None),
        *_columns(
            "phone_number", "agent_id", "chat_id", "type", "custom_name", "notes", "tags", "company_id"
        ),
        *_columns("avatar", "assigned_to", "pob"),
        *_columns("dob", type_name="date"),
        ("gender", "text", True, "'MALE'::text"),
        *_columns("origin", "push_name"),
        ("status", "text", True, "'ACTIVE'::text"),
        *_columns("first_message_id"),
        *_columns("first_message_timestamp", type_name="bigint"),
        *_TIMES,
        *_METADATA,
    ],
    "agents": [
        _serial("agents"),
        *_columns("agent_id", "qr_code", "status", "agent_name", "phone_number", "host_name", "version"),
        *_columns("company_id"),
        *_TIMES,
        *_METADATA,
    ],
    "onboarding_log": [
        _serial("onboarding_log"),
        *_columns("message_id", "agent_id", "company_id", "phone_number"),
        *_columns("timestamp", type_name="bigint"),
        *_columns("created_at", type_name="timestamp with time zone"),
        *_METADATA,
    ],
    "exhausted_events": [
        _serial("exhausted_events"),
        *_columns("created_at", type_name="timestamp with time zone"),
        ("company_id", "text", False, None),
        ("source_subject", "text", False, None),
        *_columns("last_error"),
        *_columns("retry_count", type_name="bigint"),
        *_columns("event_timestamp", type_name="timestamp with time zone"),
        ("dlq_payload", "jsonb", False, None),
        *_columns("original_payload", type_name="jsonb"),
        ("resolved", "boolean", True, "false"),
        *_columns("resolved_at", type_name="timestamp with time zone"),
        *_columns("notes"),
    ],
}

# primary key first, then unique ones, then the others
INDEXES = {
    "messages": [
        "primary (id, message_date)",
        "unique (message_id, message_date)",
        "(agent_id)",
        "(chat_id)",
        "(from_phone)",
        "(jid)",
        "(message_date)",
        "(to_phone)",
    ],
    "chats": ["primary (id)", "unique (chat_id)", "(agent_id)"],
    "contacts": [
        "primary (id)",
        "unique (chat_id)",
        "(agent_id)",
        "(assigned_to)",
        "(phone_number, agent_id)",
        "(translate(phone_number, '+ ()'::text, ''::text))",
    ],
    "agents": ["primary (id)", "unique (agent_id)"],
    "onboarding_log": [
        "primary (id)",
        "(agent_id)",
        "(message_id)",
        "(phone_number)",
        "(phone_number, agent_id)",
    ],
    "exhausted_events": [
        "primary (id)",
        "(\"substring\"((dlq_payload ->> 'event_version'::text), '^[0-9]+-[0-9]+'::text))",
        "(((dlq_payload ->> 'event_version'::text)))",
        "(event_timestamp)",
        "(resolved)",
        "(resolved_at)",
        "(source_subject)",
    ],
}


async def _columns_of(database: Database, schema: str, table: str) -> list[Column]:
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT column_name, data_type, is_nullable = 'YES' AS nullable, column_default"
            " FROM information_schema.columns WHERE table_schema = $1 AND table_name = $2"
            " ORDER BY ordinal_position",
            schema,
            table,
        )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


async def _indexes_of(database: Database, schema: str, table: str) -> list[str]:
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT CASE WHEN i.indisprimary THEN 'primary ' WHEN i.indisunique THEN 'unique ' ELSE '' END"
            " || substring(pg_get_indexdef(i.indexrelid) FROM ' USING btree (.*)$') AS text"
            " FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname = $1 AND c.relname = $2"
            " ORDER BY i.indisprimary DESC, i.indisunique DESC, 1",
            schema,
            table,
        )
    return [row["text"] for row in rows]


async def _tables_of(database: Database, schema: str) -> set[str]:
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", schema)
    return {row["tablename"] for row in rows if not row["tablename"].startswith("messages_")}


@pytest.mark.rule("TAB-1")
@pytest.mark.parametrize("table", sorted(COLUMNS))
async def test_a_fresh_schema_has_the_documented_columns_and_indexes(
    database: Database, schema: str, table: str
) -> None:
    expected = [
        (name, kind, nullable, default and default.replace("{schema}", schema))
        for name, kind, nullable, default in COLUMNS[table]
    ]

    assert await _columns_of(database, schema, table) == expected
    assert await _indexes_of(database, schema, table) == INDEXES[table]


@pytest.mark.rule("TAB-1")
async def test_a_fresh_schema_has_no_triggers_foreign_keys_checks_or_helpers(
    database: Database, schema: str
) -> None:
    async with database.connection() as connection:
        triggers = await connection.fetchval(
            "SELECT count(*) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1",
            schema,
        )
        constraints = await connection.fetch(
            "SELECT c.conrelid::regclass::text FROM pg_constraint AS c"
            " JOIN pg_namespace AS n ON n.oid = c.connamespace"
            " WHERE n.nspname = $1 AND c.contype IN ('f', 'c', 't', 'x')",
            schema,
        )
        functions = await connection.fetchval(
            "SELECT count(*) FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace"
            " WHERE n.nspname = $1",
            schema,
        )

    assert triggers == 0
    # The one check is on a table of our own, which no other system reads.
    assert [row[0] for row in constraints] == [f"{schema}.message_keys_fill"]
    assert functions == 0


async def test_migrating_again_changes_nothing(database: Database, tenant: Tenant) -> None:
    assert await migrate(database, tenant.schema) == MIGRATIONS
    assert await migrate(database, tenant.schema) == []


@pytest.mark.rule("TAB-6")
async def test_replicas_that_start_together_migrate_once(database: Database, tenant: Tenant) -> None:
    applied = await asyncio.gather(*(migrate(database, tenant.schema) for _ in range(4)))

    assert sorted(applied) == [[], [], [], MIGRATIONS]


async def test_a_schema_may_have_any_name_that_a_company_may_have(database: Database) -> None:
    schema = Tenant("Kopi\"'$$$1Ünusa{schema}").schema

    assert await migrate(database, schema) == MIGRATIONS
    assert set(COLUMNS) <= await _tables_of(database, schema)


@pytest.mark.rule("TAB-5")
async def test_without_auto_migrate_only_messages_and_our_own_tables_are_made(
    database: Database, tenant: Tenant
) -> None:
    with pytest.raises(SchemaProblem, match="agents, chats, contacts, exhausted_events, onboarding_log"):
        await migrate(database, tenant.schema, auto_migrate=False)

    assert await _tables_of(database, tenant.schema) == {
        "chat_steps",
        "exhausted_reopened",
        "message_keys",
        "message_keys_fill",
        "messages",
        "post_scan_jobs",
        "schema_migrations",
        "wanted_indexes",
    }
    assert await _indexes_of(database, tenant.schema, "messages") == INDEXES["messages"]


@pytest.mark.rule("TAB-5")
@pytest.mark.parametrize("missing", SHARED_TABLES)
async def test_without_auto_migrate_each_missing_table_is_named(
    database: Database, schema: str, missing: str
) -> None:
    async with database.connection() as connection:
        await connection.execute(f'DROP TABLE "{schema}".{missing}')

    with pytest.raises(SchemaProblem, match=f"no table {missing}: .*DATABASE_POSTGRESAUTOMIGRATE"):
        await migrate(database, schema, auto_migrate=False)


def test_the_columns_that_are_looked_for_are_those_of_the_tables_that_others_may_have_made() -> None:
    expected = {(table, column[0]) for table in ("messages", *SHARED_TABLES) for column in COLUMNS[table]}
    assert set(tables.schema.migrations._columns()) == expected


async def test_a_missing_column_that_no_statement_uses_is_no_obstacle(
    database: Database, schema: str
) -> None:
    async with database.connection() as connection:
        await connection.execute(f'ALTER TABLE "{schema}".contacts DROP COLUMN dob')

    assert await migrate(database, schema) == []


@pytest.mark.parametrize("auto_migrate", [True, False])
async def test_every_missing_column_is_named_with_auto_migrate_or_without(
    database: Database, schema: str, auto_migrate: bool
) -> None:
    """No migration adds a column to a table that exists: events of that table would wait for it for ever."""
    columns = [
        ("agents", "host_name"),
        ("chats", "not_spam"),
        ("contacts", "origin"),
        ("onboarding_log", "timestamp"),
    ]
    columns += [("exhausted_events", "resolved_at"), ("messages", "message_url")]
    async with database.connection() as connection:
        for table, column in columns:
            await connection.execute(
                f'ALTER TABLE "{schema}".{table} RENAME COLUMN {column} TO {column}_of_others'
            )

    with pytest.raises(SchemaProblem) as caught:
        await migrate(database, schema, auto_migrate=auto_migrate)

    for _, column in columns:
        assert f'"{column}"' in str(caught.value) or f".{column} " in str(caught.value)
    async with database.connection() as connection:
        for table, column in columns:
            await connection.execute(
                f'ALTER TABLE "{schema}".{table} RENAME COLUMN {column}_of_others TO {column}'
            )
    assert await migrate(database, schema, auto_migrate=auto_migrate) == []


async def test_without_auto_migrate_a_complete_schema_is_accepted(database: Database, schema: str) -> None:
    assert await migrate(database, schema, auto_migrate=False) == []


async def test_auto_migrate_switched_on_later_makes_the_rest(database: Database, tenant: Tenant) -> None:
    with pytest.raises(SchemaProblem):
        await migrate(database, tenant.schema, auto_migrate=False)

    assert await migrate(database, tenant.schema) == [*MIGRATIONS[2:5], MIGRATIONS[7]]


async def test_an_existing_schema_needs_no_right_to_create_one(database: Database, tenant: Tenant) -> None:
    role = f"limited_{tenant.schema}"
    async with database.connection() as connection:
        await connection.execute(f'CREATE ROLE "{role}"')
        await connection.execute(f'CREATE SCHEMA "{tenant.schema}" AUTHORIZATION "{role}"')
        user, name = await connection.fetchrow("SELECT current_user, current_database()") or ("", "")
        await connection.execute(f'ALTER ROLE "{user}" IN DATABASE "{name}" SET role TO "{role}"')
    await database.close()
    await database.open()

    assert await migrate(database, tenant.schema) == MIGRATIONS
