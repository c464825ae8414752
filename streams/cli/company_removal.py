"""`companies-forget`: what a company has, and its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from events.subjects import Tenant
from streams.cli.exhausted_events import CommandFailed
from streams.cli.formatting import size
from streams.jetstream import topology
from streams.jetstream.company_durables import Durable, Survey, deletion
from streams.jetstream.stream_reader import Api
from tables.connection.pool import Database
from tables.schema import removal
from tables.schema.companies import list_companies
from tables.schema.removal import TableSize


@dataclass(frozen=True, slots=True)
class Belongings:
    """The durables and tables that a company has for itself."""

    tenant: Tenant
    durables: Sequence[Durable]
    tables: Sequence[TableSize]
    stored: int  # messages in the streams

    def lines(self, *, data: bool) -> list[str]:
        """What would go, and what stays, for a person."""
        lines = [
            f"consumer {each.name} on {each.stream}, with {each.left} events left to it"
            for each in self.durables
        ]
        if data:
            lines += [f"{self.tenant.schema}: {text}" for text in self._tables()]
        return lines

    def _tables(self) -> list[str]:
        if not self.tables:
            return []
        rows, space = sum(each.rows for each in self.tables), sum(each.bytes for each in self.tables)
        total = f"about {rows} rows in all, {size(space)}"
        return [*(f"{each.name}, about {each.rows} rows, {size(each.bytes)}" for each in self.tables), total]


async def belongings(database: Database, survey: Survey, company: str) -> Belongings:
    """What a company has. Raises `CommandFailed` while somebody uses a durable of it, and `StorageError`."""
    tenant = Tenant(company)
    durables = survey.of(company)
    for durable in [*durables, *survey.of(company, "existing")]:
        if durable.used is not None:
            raise CommandFailed(
                f"{company} is not forgotten: consumer {durable.name} on {durable.stream}: {durable.used}; "
                "stop its worker first"
            )
    owners = {each.schema: each.name for each in await list_companies(database)}
    owner = owners.get(tenant.schema)
    if owner not in (None, company):
        raise CommandFailed(f"schema {tenant.schema} belongs to {owner!r}, which differs only in case")
    tables = await removal.contents(database, tenant.schema)
    stored = sum(survey.stored.get(company, {}).values())
    if not durables and not tables:
        known = "events in the streams only" if stored else "no consumer, no schema and no events"
        raise CommandFailed(f"{company} has {known}: there is nothing to forget")
    return Belongings(tenant, durables, tables, stored)


async def forget(api: Api, database: Database, found: Belongings, *, data: bool) -> list[str]:
    """Delete the company's durables, and its schema with `data`; what was done, a line each.

    Can be repeated after a failure. Raises `TopologyError`, `StorageError` and `BrokerError`.
    """
    if data and found.tables:
        await removal.require_no_dependents(database, found.tenant.schema)
    await topology.apply(api, [deletion(each, "delete it") for each in found.durables])
    done = [f"consumer {each.name} deleted" for each in found.durables]
    if data and found.tables:
        await removal.drop(database, found.tenant.schema)
        done.append(f"schema {found.tenant.schema} dropped")
    return done
