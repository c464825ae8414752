"""The commands but `worker`: `migrate`, `topology`, `version`, and those for companies and exhausted events.

They run without Faust's worker around them, so that their output is their own and their exit code is plain. Faust
knows a command once its class is made: all of them are named here, and `streams.container` imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence

from faust.cli import option

from streams.cli import fleet_topology
from streams.cli.company_commands import companies, companies_forget, companies_provision
from streams.cli.dead_letter_commands import exhausted, exhausted_discard, exhausted_replay, exhausted_show
from streams.cli.operations import CommandApp, Operations, OperatorCommand
from streams.jetstream import topology as jetstream
from streams.jetstream.broker import Broker
from streams.jetstream.changes import TopologyChange
from streams.jetstream.company_durables import survey
from streams.jetstream.specs import ConsumerSpec, worker_consumers
from streams.version import VERSION

__all__ = [
    "CommandApp",
    "Operations",
    "companies",
    "companies_forget",
    "companies_provision",
    "exhausted",
    "exhausted_discard",
    "exhausted_replay",
    "exhausted_show",
    "migrate",
    "topology",
    "version",
]


class migrate(OperatorCommand):  # noqa: N801 - Faust takes the command's name from the class
    """Make or extend the schema of every company, as the worker does at its start, four at a time."""

    options = [  # noqa: RUF012 - Faust's own way
        option("--company", multiple=True, help="Only of this company; may be given more than once."),
    ]

    async def run(self, company: Sequence[str]) -> None:
        """See the class."""
        await self.operations.migrate(company, self.say)


class topology(OperatorCommand):  # noqa: N801
    """Show the streams as they are, and what would be made or changed; nothing is touched without an option."""

    options = [  # noqa: RUF012 - Faust's own way
        option("--apply/--no-apply", default=False, help="Do it."),
        option(
            "--drop-old/--no-drop-old",
            default=False,
            help="Delete the old durables whose positions ours have taken over.",
        ),
    ]

    async def run(self, apply: bool, drop_old: bool) -> None:
        """See the class."""
        operations, settings = self.operations, self.operations.settings
        async with operations.connected() as broker:
            for line in await jetstream.description(broker, settings):
                self.say(line)
            specs = worker_consumers(settings)
            changes = await jetstream.plan(broker, settings, specs, await broker.count_nodes())
            if settings.fleet:
                for line in fleet_topology.description(await survey(broker, settings), settings):
                    self.say(line)
            if apply:
                await jetstream.apply(broker, changes)
            if drop_old:
                changes += await self._drop_old(broker, specs)
        for change in changes:
            self.say(f"{change.kind} {change.name}: {change.text}")
        for warning in await operations.durability_warnings():
            self.say(warning)
        if not changes:
            self.say("nothing to change")

    async def _drop_old(self, broker: Broker, specs: Sequence[ConsumerSpec]) -> list[TopologyChange]:
        settings = self.operations.settings
        if not settings.fleet:
            return await jetstream.drop_old(broker, specs)
        drops, kept = fleet_topology.plan_drop(await survey(broker, settings), settings)
        await jetstream.apply(broker, drops)
        for line in kept:
            self.say(line)
        return drops


class version(OperatorCommand):  # noqa: N801
    """Show the version of this service."""

    async def run(self) -> None:
        """See the class."""
        self.say(VERSION)
