"""`companies`, `companies-provision`, `companies-forget`: the commands for companies."""

from __future__ import annotations

import json

from faust.cli import argument, option

from events.errors import EventError
from events.subjects import Tenant, company_problem
from streams.cli.company_overview import as_objects, as_table, overviews
from streams.cli.company_removal import belongings, forget
from streams.cli.exhausted_events import CommandFailed
from streams.cli.operations import OperatorCommand
from streams.jetstream.company_durables import survey
from streams.lifecycle.fleet import FleetRules
from tables.errors import StorageError
from tables.schema.companies import list_companies


class companies(OperatorCommand):  # noqa: N801 - Faust takes the command's name from the class
    """List every company with a schema, a consumer or events, those in trouble first.

    The lag of a fleet's company is given as `least..most` where the server does not tell whose unsettled events are.
    """

    options = [  # noqa: RUF012 - Faust's own way
        argument("pattern", required=False, default="*"),
        option("--no-lag", is_flag=True, help="Without the lag, which is asked for company by company."),
        option("--limit", type=int, default=1000, show_default=True, help="At most so many."),
    ]

    async def run(self, pattern: str, no_lag: bool, limit: int) -> None:
        """See the class."""
        if limit < 1:
            raise CommandFailed(f"--limit {limit}: expected 1 or more")
        operations = self.operations
        async with operations.storage(), operations.connected() as broker:
            known = await survey(broker, operations.settings)
            found = await overviews(
                broker, operations.database, operations.settings, known, pattern=pattern, lag=not no_lag
            )
        shown = found[:limit]
        self.say(json.dumps(as_objects(shown)) if self.json else as_table(shown))
        if len(found) > limit:
            self.say(f"{len(found) - limit} more; --limit shows them", file=self.stderr)


class companies_provision(OperatorCommand):  # noqa: N801
    """Make or extend the schemas of these companies, also under COMPANY_PROVISION=existing."""

    options = [argument("names", nargs=-1)]  # noqa: RUF012

    async def run(self, names: tuple[str, ...]) -> None:
        """See the class."""
        if not names:
            raise CommandFailed("expected the names of companies")
        failures = [problem for name in names if (problem := company_problem(name)) is not None]
        good = [Tenant(name) for name in dict.fromkeys(names) if company_problem(name) is None]
        async with self.operations.storage():
            for tenant in good:
                try:
                    await self._provision(tenant)
                except (CommandFailed, StorageError, EventError) as error:
                    failures.append(str(error))
        if failures:
            raise CommandFailed("; ".join(failures))

    async def _provision(self, tenant: Tenant) -> None:
        owners = {each.schema: each.name for each in await list_companies(self.operations.database)}
        owner = owners.get(tenant.schema)
        if owner not in (None, tenant.company):
            raise CommandFailed(
                f"company {tenant.company!r}: schema {tenant.schema} belongs to {owner!r}, "
                "which differs only in case"
            )
        await self.operations.provision(tenant)
        self.say(f"{tenant.schema} is up to date")
        settings = self.operations.settings
        if settings.fleet and not FleetRules.of(settings).allows(tenant.company):
            self.say(
                f"{tenant.company} is not served: see COMPANY_ALLOW and COMPANY_EXCLUDE", file=self.stderr
            )


class companies_forget(OperatorCommand):  # noqa: N801
    """Delete the consumers that a company has for itself; without `--yes`, show what would go.

    Its data stay without `--drop-data`. An event that comes later makes its schema anew, where a fleet serves it.
    """

    options = [  # noqa: RUF012
        argument("name"),
        option("--drop-data/--keep-data", default=False, help="Drop its schema, too, with all rows."),
        option("--yes/--no", "sure", default=False, help="Do it; without this nothing is changed."),
    ]

    async def run(self, name: str, drop_data: bool, sure: bool) -> None:
        """See the class."""
        operations, settings = self.operations, self.operations.settings
        if (problem := company_problem(name)) is not None:
            raise CommandFailed(problem)
        async with operations.storage(), operations.connected() as broker:
            known = await survey(broker, settings)
            found = await belongings(operations.database, known, name)
            if not found.durables and not drop_data:
                raise CommandFailed(f"{name} has no consumer of its own; its data stay without --drop-data")
            if not sure:
                for line in found.lines(data=drop_data):
                    self.say(line)
                raise CommandFailed(f"nothing forgotten: --yes confirms that this of {name} is to go")
            for line in await forget(broker, operations.database, found, data=drop_data):
                self.say(line)
        if drop_data and settings.fleet and FleetRules.of(settings).allows(name):
            self.say(
                f"the next event of {name} makes its schema anew, unless COMPANY_EXCLUDE names it",
                file=self.stderr,
            )
