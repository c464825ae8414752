"""The base of every command but `worker`: the worker's parts without its services, and how a command ends."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from faust.cli import AppCommand

from events.errors import EventError
from events.subjects import Tenant
from streams.cli.exhausted_events import CommandFailed, ExhaustedEventService
from streams.cli.schema_migration import SchemaMigration
from streams.config.settings import Settings
from streams.jetstream.broker import Broker
from streams.jetstream.changes import TopologyError
from streams.jetstream.stream_reader import ApiError
from streams.lifecycle.bootstrap import Bootstrap
from streams.lifecycle.retrying import Fatal
from streams.worker.application import EventsApp
from tables.connection.pool import Database
from tables.connection.replication import durability_warnings
from tables.errors import StorageError
from tables.schema import indexes
from tables.schema.companies import list_companies, name_in_rows
from tables.schema.partitions import make_partitions
from tables.schema.removal import count_exhausted

# Seconds a command waits for a server before it says that there is none; the worker waits for ever.
PATIENCE: Final = 15.0

_EXPECTED: Final = (CommandFailed, Fatal, StorageError, ApiError, EventError, TopologyError)


@dataclass(frozen=True, slots=True)
class Operations:
    """What the commands need of the worker's parts."""

    settings: Settings
    database: Database
    broker: Broker
    bootstrap: Bootstrap

    async def migrate(self, companies: Sequence[str], say: Callable[[str], None]) -> None:
        """Make or extend the schemas of these companies, or of all. Raises `Fatal` and `CommandFailed`."""
        async with self.storage():
            await SchemaMigration(self.settings, self.database, self.bootstrap, say).run(companies)

    async def provision(self, tenant: Tenant) -> None:
        """Make or extend one company's schema, within `storage`. Raises `StorageError`."""
        await self.bootstrap.provision(tenant)
        await self._keep_up(tenant)

    async def _keep_up(self, tenant: Tenant) -> None:
        """What a worker does in its periodic tasks."""
        today = datetime.datetime.now(datetime.UTC).date()
        await make_partitions(self.database, tenant.schema, today, patient=True)
        await indexes.build(self.database, tenant.schema)

    async def durability_warnings(self) -> list[str]:
        """What PostgreSQL may lose of what is acknowledged; a server that does not answer is a warning, too."""
        try:
            await self.database.open()
            return await durability_warnings(self.database)
        except StorageError as error:
            return [f"PostgreSQL was not asked: {error}"]
        finally:
            await self.database.close()

    async def exhausted_events(self) -> ExhaustedEventService:
        """The exhausted events of all companies, within `storage`; of a fleet all that have such a table.

        Raises `StorageError`.
        """
        tenants, of = self.settings.tenants, "among COMPANY_ID"
        if self.settings.fleet:
            tenants, of = await self._of_database(), "a company with exhausted events in this database"
        return ExhaustedEventService(tenants, self.database, self.settings.dlq_subject, of)

    async def _of_database(self) -> tuple[Tenant, ...]:
        found = await list_companies(self.database)
        countable = await count_exhausted(self.database, [each.schema for each in found])
        names = [
            each.name or await name_in_rows(self.database, each.schema)
            for each in found
            if each.schema in countable
        ]
        return tuple(Tenant(name) for name in names if name is not None)

    @contextlib.asynccontextmanager
    async def storage(self) -> AsyncIterator[None]:
        """The database, open. Raises `Fatal` and `CommandFailed` if it cannot be opened."""
        try:
            try:
                await self.bootstrap.open_database()
            except StorageError as error:
                raise CommandFailed(f"POSTGRES_DSN: {error}") from error
            yield
        finally:
            await self.database.close()

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Broker]:
        """The connection to NATS. Raises `CommandFailed` if there is none in time."""
        await self.broker.start()
        try:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self.bootstrap.connect()
            except TimeoutError:
                raise CommandFailed(f"NATS_URL: {self.broker.problem}") from None
            yield self.broker
        finally:
            await self.broker.stop()


class CommandApp(EventsApp):
    """The worker's app, with what the commands need."""

    def __init__(self, name: str, *, operations: Operations, **options: Any) -> None:
        super().__init__(name, **options)
        self.operations = operations


class OperatorCommand(AppCommand):
    """A command that ends with 0, or with 1 and one line on stderr."""

    abstract = True

    @property
    def operations(self) -> Operations:
        """The parts of the app that was given with `-A`."""
        assert isinstance(self.app, CommandApp)
        return self.app.operations

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run to the end. Raises `SystemExit`."""
        raise SystemExit(asyncio.run(self._ended(lambda: self.run(*self.args, **self.kwargs))))

    async def _ended(self, run: Callable[[], Awaitable[None]]) -> int:
        try:
            await run()
        except _EXPECTED as error:
            self.say(str(error), file=self.stderr)
            return 1
        return 0
