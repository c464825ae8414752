"""The command `migrate`: the schemas of all companies, several at a time, and a list of those that failed."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from events.subjects import Tenant
from streams.cli.exhausted_events import CommandFailed
from streams.config.settings import Settings
from streams.lifecycle.bootstrap import SCHEMAS_AT_ONCE, Bootstrap
from tables.connection.pool import Database
from tables.errors import StorageError
from tables.schema import indexes
from tables.schema.companies import list_companies, name_in_rows
from tables.schema.partitions import make_partitions

_UNKNOWN: Final = "nobody has noted its company, and its rows name none or several: name it with --company"


@dataclass(eq=False)
class SchemaMigration:
    """Makes or extends schemas. What was done is not done again, so a run that was stopped is begun anew."""

    settings: Settings
    database: Database
    bootstrap: Bootstrap
    say: Callable[[str], None]
    _failures: list[str] = field(default_factory=list, init=False)
    _ended: int = field(default=0, init=False)

    async def run(self, companies: Sequence[str] = ()) -> None:
        """Migrate the schemas of `companies`, or of all; a line for each that has ended.

        All are those of the settings, or, if those name none, all in the database. Raises `CommandFailed` with every
        company that failed and why, once the others are done, and `StorageError` if no company can be asked for.
        """
        tenants, unknown = await self._wanted(companies)
        total = len(tenants) + len(unknown)
        for schema in unknown:
            self._failed(schema, _UNKNOWN, total)
        at_once = asyncio.Semaphore(SCHEMAS_AT_ONCE)

        async def one(tenant: Tenant) -> None:
            async with at_once:
                await self._one(tenant, total)

        async with asyncio.TaskGroup() as tasks:
            for tenant in tenants:
                tasks.create_task(one(tenant))
        if len(self._failures) == total == 1:
            raise CommandFailed(self._failures[0])
        if self._failures:
            lines = "\n".join(self._failures)
            raise CommandFailed(f"{len(self._failures)} of {total} schemas are not up to date:\n{lines}")

    async def _wanted(self, companies: Sequence[str]) -> tuple[Sequence[Tenant], Sequence[str]]:
        """The companies, and schemas of which nobody knows whose they are."""
        if self.settings.tenants:
            return _among(self.settings.tenants, companies, "COMPANY_ID"), ()
        tenants: list[Tenant] = []
        unknown: list[str] = []
        by_schema = {Tenant(company).schema: company for company in companies}
        for found in await list_companies(self.database):
            name = found.name or by_schema.get(found.schema)
            if name is None and not companies:
                name = await name_in_rows(self.database, found.schema)
            if name is not None:
                tenants.append(Tenant(name))
            elif not companies:
                unknown.append(found.schema)
        return _among(tenants, companies, "the database"), unknown

    async def _one(self, tenant: Tenant, total: int) -> None:
        today = datetime.datetime.now(datetime.UTC).date()
        try:
            await self.bootstrap.provision(tenant)
            # What a worker does in its periodic tasks.
            await make_partitions(self.database, tenant.schema, today, patient=True)
            await indexes.build(self.database, tenant.schema)
        except StorageError as error:
            self._failed(tenant.schema, str(error), total)
        else:
            self._say(f"{tenant.schema} is up to date", total)

    def _failed(self, schema: str, reason: str, total: int) -> None:
        text = f"{schema}: {reason.removeprefix(f'schema {schema}: ')}"
        self._failures.append(text)
        if total > 1:
            self._say(text, total)

    def _say(self, text: str, total: int) -> None:
        self._ended += 1
        self.say(f"{self._ended} of {total}: {text}" if total > 1 else text)


def _among(tenants: Iterable[Tenant], companies: Sequence[str], where: str) -> list[Tenant]:
    """Those of `tenants` that are asked for; all if none is. Raises `CommandFailed` for one that is not there."""
    found = {tenant.company: tenant for tenant in tenants}
    if missing := [company for company in companies if company not in found]:
        raise CommandFailed(f"not in {where}: {', '.join(missing)}")
    return [found[company] for company in dict.fromkeys(companies or found)]
