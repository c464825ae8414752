"""Commands beside `worker`: `migrate`, `topology` and `version`.

They run without Faust's worker around them, so that their output is their own and their exit code is plain.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from faust.cli import AppCommand, option

from streams import topology as jetstream
from streams.broker import Broker
from streams.errors import EventError
from streams.intake import Fatal
from streams.preparation import Preparation
from streams.specs import TopologyConfig
from streams.stored import ApiError
from streams.subjects import Tenant
from streams.version import VERSION
from tables.errors import StorageError
from tables.pool import Database

# Seconds a command waits for a server before it says that there is none; the worker waits for ever.
PATIENCE: Final = 15.0

_EXPECTED: Final = (Fatal, StorageError, ApiError, EventError, jetstream.TopologyError)


class CommandFailed(Exception):
    """The command could not do its work; the text is for the operator."""


@dataclass(frozen=True, slots=True)
class Operations:
    """What the commands need of the worker's parts."""

    tenants: Sequence[Tenant]
    database: Database
    broker: Broker
    topology: TopologyConfig
    preparation: Preparation

    async def migrate(self) -> None:
        """Make or extend every tenant's schema. Raises `CommandFailed`."""
        try:
            await self.preparation.open_database()
            await self.preparation.migrate()
        finally:
            await self.database.close()

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Broker]:
        """The connection to NATS. Raises `CommandFailed` if there is none in time."""
        await self.broker.start()
        try:
            async with asyncio.timeout(PATIENCE):
                await self.preparation.connect()
            yield self.broker
        except TimeoutError:
            raise CommandFailed(f"NATS_URL: {self.broker.problem}") from None
        finally:
            await self.broker.stop()


class _OperatorCommand(AppCommand):
    """A command that ends with 0, or with 1 and one line on stderr."""

    abstract = True

    @property
    def operations(self) -> Operations:
        """The parts of the app that was given with `-A`."""
        operations: Operations = self.app.operations  # type: ignore[attr-defined]
        return operations

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run to the end. Raises `SystemExit`."""
        raise SystemExit(asyncio.run(self._ended(lambda: self.run(*self.args, **self.kwargs))))

    async def _ended(self, run: Callable[[], Awaitable[None]]) -> int:
        try:
            await run()
        except (CommandFailed, *_EXPECTED) as error:
            self.say(str(error), file=self.stderr)
            return 1
        return 0


class migrate(_OperatorCommand):  # noqa: N801 - Faust takes the command's name from the class
    """Make or extend the schema of every company, as the worker does at its start."""

    async def run(self) -> None:
        """See the class."""
        await self.operations.migrate()
        for tenant in self.operations.tenants:
            self.say(f"{tenant.schema} is up to date")


class topology(_OperatorCommand):  # noqa: N801
    """Show which streams and consumers would be made or changed; nothing is touched without an option."""

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
        operations = self.operations
        async with operations.connected() as broker:
            changes = await jetstream.plan(broker, operations.topology, operations.tenants)
            if apply:
                await jetstream.apply(broker, changes)
            if drop_old:
                changes += await jetstream.drop_old(broker, operations.topology, operations.tenants)
        for change in changes:
            self.say(f"{change.kind} {change.name}: {change.text}")
        if not changes:
            self.say("nothing to change")


class version(_OperatorCommand):  # noqa: N801
    """Show the version of this service."""

    async def run(self) -> None:
        """See the class."""
        self.say(VERSION)
