"""The command `migrate` for many companies: all that can be done is done, and what cannot is named (RUN-2)."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from events.subjects import Tenant
from streams.cli.exhausted_events import CommandFailed
from streams.cli.schema_migration import SchemaMigration
from streams.config.settings import Settings
from streams.lifecycle.bootstrap import Bootstrap
from tables.connection.pool import Database
from tables.queries import quoted
from tables.schema.companies import list_companies
from tables.schema.migrations import migrate, names


class _AnyTables(dict[Tenant, Any]):
    """What the start tells a company's tables, which no command uses."""

    def __missing__(self, tenant: Tenant) -> Any:
        return SimpleNamespace(messages=SimpleNamespace())


class _Command:
    """The command for these settings, and what it has said."""

    def __init__(self, database: Database, companies: str, *, fleet: bool = False) -> None:
        settings = Settings.from_env({"POSTGRES_DSN": "postgres://db/wa", "COMPANY_ID": companies})
        if fleet:
            settings = dataclasses.replace(settings, tenants=())
        self.lines: list[str] = []
        bootstrap = Bootstrap(settings, database, cast(Any, None), _AnyTables())
        self._migration = SchemaMigration(settings, database, bootstrap, self.lines.append)

    async def run(self, *companies: str) -> list[str]:
        await self._migration.run(companies)
        return self.lines


async def _execute(database: Database, statement: str, *arguments: object) -> None:
    async with database.connection() as connection:
        await connection.execute(statement, *arguments)


async def _names(database: Database) -> set[str | None]:
    return {company.name for company in await list_companies(database)}


async def test_every_company_of_the_settings_is_migrated_and_counted(
    database: Database, company: str
) -> None:
    companies = [f"{company}{number}" for number in range(5)]
    lines = await _Command(database, ",".join(companies)).run()
    assert [line.split(":")[0] for line in lines] == [f"{number} of 5" for number in range(1, 6)]
    assert await _names(database) == set(companies)
    assert len(await _Command(database, ",".join(companies)).run()) == 5


async def test_one_company_is_migrated_without_a_count(database: Database, tenant: Tenant) -> None:
    assert await _Command(database, tenant.company).run() == [f"{tenant.schema} is up to date"]


async def test_a_company_that_fails_stops_no_other_and_is_named_at_the_end(
    database: Database, company: str
) -> None:
    companies = [f"{company}{number}" for number in range(6)]
    for broken in (companies[0], companies[3]):
        await migrate(database, Tenant(broken).schema, company=broken)
        await _execute(database, f'ALTER TABLE "{Tenant(broken).schema}".contacts RENAME COLUMN origin TO o')
    await migrate(database, Tenant(companies[1]).schema, company=companies[1].upper())

    command = _Command(database, ",".join(companies))
    with pytest.raises(CommandFailed) as caught:
        await command.run()

    first, *failed = str(caught.value).splitlines()
    assert first == "3 of 6 schemas are not up to date:"
    for number in (0, 1, 3):
        assert any(line.startswith(Tenant(companies[number]).schema) for line in failed)
    assert sum("is up to date" in line for line in command.lines) == 3

    await _execute(
        database, f'ALTER TABLE "{Tenant(companies[0]).schema}".contacts RENAME COLUMN o TO origin'
    )
    with pytest.raises(CommandFailed, match="2 of 6"):
        await _Command(database, ",".join(companies)).run()


async def test_only_the_companies_that_are_asked_for_are_migrated(database: Database, company: str) -> None:
    companies = [f"{company}{number}" for number in range(3)]
    await _Command(database, ",".join(companies)).run(companies[2], companies[2])
    assert await _names(database) == {companies[2]}
    with pytest.raises(CommandFailed, match="not in COMPANY_ID: Other"):
        await _Command(database, ",".join(companies)).run("Other")


async def test_a_fleet_migrates_all_companies_of_the_database(database: Database, company: str) -> None:
    """Those that this release made or served, and those whose rows name them."""
    await migrate(database, Tenant(company).schema, company=company, auto_migrate=True)
    by_rows, nobody = f"{company}Rows", f"{company}Nobody"
    for name in (by_rows, nobody):
        await migrate(database, Tenant(name).schema)
    await _execute(
        database, f"INSERT INTO {quoted(Tenant(by_rows).schema)}.chats (company_id) VALUES ($1)", by_rows
    )

    command = _Command(database, company, fleet=True)
    with pytest.raises(CommandFailed, match="1 of 3") as caught:
        await command.run()
    assert Tenant(nobody).schema in str(caught.value)
    assert "--company" in str(caught.value)
    assert await _names(database) == {company, by_rows, None}

    await _Command(database, company, fleet=True).run(nobody)
    assert len(await _Command(database, company, fleet=True).run()) == 3
    found = await list_companies(database)
    assert {each.migrations for each in found} == {names(auto_migrate=True)}


async def test_a_fleet_migrates_no_company_that_is_not_there(database: Database, company: str) -> None:
    assert await _Command(database, company, fleet=True).run() == []
    with pytest.raises(CommandFailed, match="not in the database: Other"):
        await _Command(database, company, fleet=True).run("Other")
