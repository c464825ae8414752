"""Other systems subscribe to whole rows of the documented tables (TAB-4)."""

from __future__ import annotations

import asyncio
import datetime

import pytest

from events.subjects import Tenant
from tables.connection.pool import Database
from tables.errors import StorageError
from tables.schema.migrations import migrate
from tables.schema.partitions import ensure_partitions
from tables.schema.publication import publish_changes

TODAY = datetime.date(2025, 11, 1)


async def _members(database: Database) -> set[str]:
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT n.nspname || '.' || c.relname FROM pg_publication_rel AS r"
            " JOIN pg_publication AS p ON p.oid = r.prpubid AND p.pubname = 'daisi_pub'"
            " JOIN pg_class AS c ON c.oid = r.prrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        )
    return {row[0] for row in rows}


async def _with_full_identity(database: Database, schema: str) -> set[str]:
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT n.nspname || '.' || c.relname FROM pg_class AS c"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relreplident = 'f'",
            schema,
        )
    return {row[0] for row in rows}


def _expected(schema: str, *more: str) -> set[str]:
    months = [f"messages_y{year}m{month:02}" for year in (2024, 2025) for month in range(1, 13)]
    tables = ["chats", "agents", "contacts", "messages", "messages_default", "messages_y2026m01"]
    return {f"{schema}.{name}" for name in [*tables, *months, *more]}


async def test_the_documented_tables_and_every_partition_are_published(
    database: Database, tenant: Tenant
) -> None:
    await migrate(database, tenant.schema, today=TODAY)
    await publish_changes(database, tenant.schema)

    assert await _members(database) == _expected(tenant.schema)
    assert await _with_full_identity(database, tenant.schema) == _expected(tenant.schema)


async def test_the_publication_sends_all_kinds_of_changes_and_not_via_the_root(
    database: Database, tenant: Tenant
) -> None:
    await migrate(database, tenant.schema, today=TODAY)
    await publish_changes(database, tenant.schema)

    async with database.connection() as connection:
        row = await connection.fetchrow(
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, puballtables FROM pg_publication"
        )
    assert row is not None
    assert tuple(row) == (True, True, True, True, False, False)


async def test_publishing_again_changes_nothing(database: Database, tenant: Tenant) -> None:
    await migrate(database, tenant.schema, today=TODAY)
    await publish_changes(database, tenant.schema)
    await publish_changes(database, tenant.schema)

    assert await _members(database) == _expected(tenant.schema)


async def test_a_new_partition_is_published_with_whole_rows(database: Database, tenant: Tenant) -> None:
    await migrate(database, tenant.schema, today=TODAY)
    await publish_changes(database, tenant.schema)

    await ensure_partitions(database, tenant.schema, datetime.date(2025, 12, 1))

    expected = _expected(tenant.schema, "messages_y2026m02")
    assert await _members(database) == expected
    assert await _with_full_identity(database, tenant.schema) == expected


async def test_a_new_partition_of_an_unpublished_schema_stays_unpublished(
    database: Database, tenant: Tenant
) -> None:
    await migrate(database, tenant.schema, today=TODAY)

    await ensure_partitions(database, tenant.schema, datetime.date(2025, 12, 1))

    assert await _members(database) == set()
    assert await _with_full_identity(database, tenant.schema) == set()


async def test_tenants_that_start_together_all_join(database: Database, tenant: Tenant) -> None:
    schemas = [f"{tenant.schema}_{number}" for number in range(3)]
    await asyncio.gather(*(migrate(database, schema, today=TODAY) for schema in schemas))

    await asyncio.gather(*(publish_changes(database, schema) for schema in schemas * 2))

    assert await _members(database) == set().union(*(_expected(schema) for schema in schemas))


async def test_a_publication_of_all_tables_is_left_alone(database: Database, tenant: Tenant) -> None:
    await migrate(database, tenant.schema, today=TODAY)
    async with database.connection() as connection:
        await connection.execute("CREATE PUBLICATION daisi_pub FOR ALL TABLES")

    await publish_changes(database, tenant.schema)

    assert await _members(database) == set()
    assert await _with_full_identity(database, tenant.schema) == _expected(tenant.schema)


async def test_a_role_without_the_right_gets_our_error_and_changes_nothing(
    database: Database, tenant: Tenant
) -> None:
    role = f"limited_{tenant.schema}"
    async with database.connection() as connection:
        await connection.execute(f'CREATE ROLE "{role}"')
        await connection.execute(f'CREATE SCHEMA "{tenant.schema}" AUTHORIZATION "{role}"')
        user, name = await connection.fetchrow("SELECT current_user, current_database()") or ("", "")
        await connection.execute(f'ALTER ROLE "{user}" IN DATABASE "{name}" SET role TO "{role}"')
    await database.close()
    await database.open()
    await migrate(database, tenant.schema, today=TODAY)

    with pytest.raises(StorageError, match="permission denied"):
        await publish_changes(database, tenant.schema)

    assert await _with_full_identity(database, tenant.schema) == set()
