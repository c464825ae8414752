"""A schema belongs to one company in its exact spelling, and a database can be asked for its companies (SUB-5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from events.subjects import Tenant
from tables.connection.pool import Database
from tables.errors import Unavailable
from tables.queries import quoted
from tables.schema.companies import Company, list_companies, name_in_rows
from tables.schema.migrations import SchemaMissing, SchemaTaken, migrate, names
from tests.integration.test_schema_fresh import COLUMNS

ALL = names(auto_migrate=True)


@pytest.fixture
async def replica(database_dsn: str) -> AsyncIterator[Database]:
    """The pool of another process."""
    replica = Database(database_dsn)
    await replica.open()
    yield replica
    await replica.close()


async def _run(database: Database, statement: str, *arguments: object) -> None:
    async with database.connection() as connection:
        await connection.execute(statement, *arguments)


async def _store(database: Database, schema: str, table: str, company: str) -> None:
    required = {
        "messages": "(company_id, message_date) VALUES ($1, '2025-03-04')",
        "contacts": "(company_id, id) VALUES ($1, 'one')",
        "exhausted_events": "(company_id, source_subject, dlq_payload) VALUES ($1, 'v1', '{}')",
    }
    values = required.get(table, "(company_id) VALUES ($1)")
    await _run(database, f"INSERT INTO {quoted(schema)}.{table} {values}", company)


@pytest.mark.rule("SUB-5")
async def test_another_spelling_is_refused_while_there_are_no_rows(
    database: Database, tenant: Tenant
) -> None:
    await migrate(database, tenant.schema, company=tenant.company)

    for _ in range(2):
        with pytest.raises(SchemaTaken, match=f"'{tenant.company.upper()}'.*'{tenant.company}'") as caught:
            await migrate(database, tenant.schema, company=tenant.company.upper())
        assert (caught.value.company, caught.value.owner) == (tenant.company.upper(), tenant.company)
    assert await migrate(database, tenant.schema, company=tenant.company) == []


@pytest.mark.rule("SUB-5")
@pytest.mark.parametrize("exists", [False, True], ids=["new", "made before, without a note"])
async def test_of_two_spellings_that_replicas_meet_at_once_one_wins_for_ever(
    database: Database, replica: Database, tenant: Tenant, exists: bool
) -> None:
    if exists:
        await migrate(database, tenant.schema)
    spellings = [tenant.company, tenant.company.upper()]

    async def race() -> list[object]:
        racing = zip((database, replica), spellings, strict=True)
        return await asyncio.gather(
            *(migrate(pool, tenant.schema, company=spelling) for pool, spelling in racing),
            return_exceptions=True,
        )

    first = await race()
    refused = [isinstance(result, SchemaTaken) for result in first]
    assert sorted(refused) == [False, True], first
    for _ in range(3):
        assert [isinstance(result, SchemaTaken) for result in await race()] == refused
    [company] = await list_companies(database)
    assert company.name == spellings[refused.index(False)]


@pytest.mark.rule("SUB-5")
@pytest.mark.parametrize("table", sorted(COLUMNS))
async def test_rows_of_another_spelling_refuse_a_company_whose_schema_nobody_has_noted(
    database: Database, schema: str, company: str, table: str
) -> None:
    await _store(database, schema, table, company.upper())

    with pytest.raises(SchemaTaken) as caught:
        await migrate(database, schema, company=company)
    assert caught.value.owner == company.upper()
    assert await name_in_rows(database, schema) == company.upper()
    await migrate(database, schema, company=company.upper())
    [found] = await list_companies(database)
    assert found == Company(schema, company.upper(), ALL, None)


async def test_rows_of_two_spellings_name_no_company(database: Database, schema: str, company: str) -> None:
    for spelling in (company, company.upper()):
        await _store(database, schema, "chats", spelling)
    assert await name_in_rows(database, schema) is None


async def test_a_schema_is_listed_before_anybody_has_noted_its_company(
    database: Database, tenant: Tenant
) -> None:
    other = Tenant(f'{tenant.company}_"Ünusa"')
    await _run(database, f"CREATE SCHEMA {quoted(tenant.schema)}")
    await _run(database, f"CREATE TABLE {quoted(tenant.schema)}.messages (id bigint)")
    await _run(database, "CREATE SCHEMA daisi_not_ours")
    await migrate(database, other.schema, company=other.company)

    found = {company.schema: company for company in await list_companies(database, sizes=True)}

    assert found.keys() == {tenant.schema, other.schema}
    assert found[tenant.schema] == Company(tenant.schema, None, frozenset(), 0)
    assert found[other.schema].name == other.company
    assert (found[other.schema].bytes or 0) > 0


async def test_a_note_says_which_migrations_are_missing(database: Database, tenant: Tenant) -> None:
    await _run(database, f"CREATE SCHEMA {quoted(tenant.schema)}")
    own = names(auto_migrate=False)
    with pytest.raises(Exception, match="has no table"):
        await migrate(database, tenant.schema, company=tenant.company, auto_migrate=False)
    await migrate(database, tenant.schema, company=tenant.company)
    [complete] = await list_companies(database)
    assert own < complete.migrations == ALL


async def test_what_an_operator_wrote_to_a_schema_stays(database: Database, tenant: Tenant) -> None:
    await _run(database, f"CREATE SCHEMA {quoted(tenant.schema)}")
    await _run(database, f"COMMENT ON SCHEMA {quoted(tenant.schema)} IS 'ask Sari before you drop it'")
    await migrate(database, tenant.schema, company=tenant.company)
    async with database.connection() as connection:
        comment = await connection.fetchval(
            "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = $1", tenant.schema
        )
    assert comment == "ask Sari before you drop it"


async def test_without_the_right_to_note_a_company_it_is_served_and_its_rows_decide(
    database: Database, tenant: Tenant, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    role = f"limited_{schema}"
    await _run(database, f'CREATE ROLE "{role}"')
    for kind in ("SCHEMA", "ALL TABLES IN SCHEMA", "ALL SEQUENCES IN SCHEMA"):
        await _run(database, f'GRANT ALL ON {kind} "{schema}" TO "{role}"')
    async with database.connection() as connection:
        user, name = await connection.fetchrow("SELECT current_user, current_database()") or ("", "")
        await connection.execute(f'ALTER ROLE "{user}" IN DATABASE "{name}" SET role TO "{role}"')
    await database.close()
    await database.open()

    await migrate(database, schema, company=tenant.company)
    assert "cannot be noted" in caplog.text
    await _store(database, schema, "chats", tenant.company.upper())
    with pytest.raises(SchemaTaken):
        await migrate(database, schema, company=tenant.company)


async def test_a_schema_that_must_exist_is_not_made(database: Database, tenant: Tenant) -> None:
    with pytest.raises(SchemaMissing):
        await migrate(database, tenant.schema, company=tenant.company, create=False)
    assert await list_companies(database) == []
    await migrate(database, tenant.schema, company=tenant.company)
    await migrate(database, tenant.schema, company=tenant.company, create=False)


async def test_companies_cannot_be_listed_without_a_connection(database_dsn: str) -> None:
    with pytest.raises(Unavailable):
        await list_companies(Database(database_dsn))
