"""A company that was prepared before costs two short looks, and whatever it needs is seen (RUN-6)."""

from __future__ import annotations

import asyncio
import datetime

import pytest

from events.subjects import Tenant
from tables.connection.pool import Database
from tables.queries import quoted
from tables.schema import migrations
from tables.schema.advisory_locks import migration_lock, publication_lock
from tables.schema.inspection import Prepared, inspect
from tables.schema.migrations import SchemaTaken, migrate
from tables.schema.partitions import attached
from tables.schema.publication import publish_changes

TODAY = datetime.date(2025, 11, 15)


@pytest.fixture
async def prepared(database: Database, tenant: Tenant) -> Tenant:
    """A company whose schema needs nothing."""
    await migrate(database, tenant.schema, company=tenant.company, today=TODAY)
    await publish_changes(database, tenant.schema)
    return tenant


async def _inspect(
    database: Database, tenant: Tenant, *, auto_migrate: bool = True, today: datetime.date = TODAY
) -> Prepared | None:
    return await inspect(database, tenant.schema, tenant.company, auto_migrate=auto_migrate, today=today)


async def _prepared(database: Database, tenant: Tenant, *, keys_complete: bool = True) -> Prepared:
    return Prepared(keys_complete, await attached(database, tenant.schema))


async def _change(database: Database, tenant: Tenant, statement: str) -> None:
    async with database.connection() as connection:
        await connection.execute(statement.replace("{schema}", quoted(tenant.schema)))


async def test_a_prepared_company_waits_for_nobody(database: Database, prepared: Tenant) -> None:
    """Neither for a replica that changes its tables nor for one that changes the publication."""
    async with database.transaction() as other:
        await migration_lock(other, prepared.schema)
        await publication_lock(other)
        async with asyncio.timeout(4):
            assert await _inspect(database, prepared) == await _prepared(database, prepared)


async def test_a_company_without_a_schema_is_not_prepared(database: Database, tenant: Tenant) -> None:
    assert await _inspect(database, tenant) is None


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE {schema}.contacts",
        "DROP TABLE {schema}.messages_y2025m11",
        "ALTER TABLE {schema}.contacts DROP COLUMN origin",
        "ALTER PUBLICATION daisi_pub DROP TABLE {schema}.messages_y2025m11",
        "ALTER TABLE {schema}.chats REPLICA IDENTITY DEFAULT",
        "DROP PUBLICATION daisi_pub",
        "COMMENT ON TABLE {schema}.schema_migrations IS NULL",
        "COMMENT ON TABLE {schema}.schema_migrations IS 'something else'",
        "INSERT INTO {schema}.wanted_indexes VALUES ('chats_key', 'chats', 'chat_id', true)",
        "DELETE FROM {schema}.message_keys_fill",
    ],
)
async def test_whatever_is_missing_is_seen(database: Database, prepared: Tenant, change: str) -> None:
    await _change(database, prepared, change)
    assert await _inspect(database, prepared) is None


async def test_a_month_that_needs_a_partition_is_seen(database: Database, prepared: Tenant) -> None:
    assert await _inspect(database, prepared, today=datetime.date(2026, 1, 1)) is None


async def test_a_migration_of_a_newer_release_is_seen(
    database: Database, prepared: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = frozenset({*migrations.names(auto_migrate=True), "9999_news"})
    monkeypatch.setattr(migrations, "names", lambda **_: newer)
    assert await _inspect(database, prepared) is None


async def test_an_index_that_writes_do_not_need_is_left_to_the_upkeep(
    database: Database, prepared: Tenant
) -> None:
    await _change(
        database,
        prepared,
        "INSERT INTO {schema}.wanted_indexes VALUES ('chats_agent', 'chats', 'agent_id', false)",
    )
    assert await _inspect(database, prepared) == await _prepared(database, prepared)


async def test_without_auto_migrate_nothing_has_to_be_published(database: Database, tenant: Tenant) -> None:
    await migrate(database, tenant.schema, company=tenant.company, today=TODAY)
    assert await _inspect(database, tenant) is None
    assert await _inspect(database, tenant, auto_migrate=False) == await _prepared(database, tenant)


@pytest.mark.parametrize("day", ["2025-10-01", "2025-11-30", "2024-03-01", "0001-01-01"])
async def test_rows_that_another_service_wrote_are_seen(
    database: Database, prepared: Tenant, day: str
) -> None:
    await _change(
        database,
        prepared,
        f"INSERT INTO {{schema}}.messages (message_id, message_date) VALUES ('late', '{day}')",
    )
    assert await _inspect(database, prepared) is None


async def test_rows_with_their_keys_need_nothing(database: Database, prepared: Tenant) -> None:
    await _change(
        database,
        prepared,
        "INSERT INTO {schema}.messages (message_id, message_date) VALUES ('own', '2025-11-02'), (NULL, '2025-11-02')",
    )
    await _change(database, prepared, "INSERT INTO {schema}.message_keys VALUES ('own', '2025-11-02')")
    assert await _inspect(database, prepared) == await _prepared(database, prepared)


async def test_keys_that_are_still_filled_in_are_known_to_be_incomplete(
    database: Database, prepared: Tenant
) -> None:
    await _change(database, prepared, "UPDATE {schema}.message_keys_fill SET complete = false")
    assert await _inspect(database, prepared) == await _prepared(database, prepared, keys_complete=False)


@pytest.mark.rule("SUB-5")
async def test_another_spelling_is_refused_at_the_first_look(database: Database, prepared: Tenant) -> None:
    with pytest.raises(SchemaTaken):
        await _inspect(database, Tenant(prepared.company.upper()))
