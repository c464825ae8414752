"""Everything stored for one tenant."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final

from events.subjects import Tenant
from tables.connection.pool import Database
from tables.errors import StorageError
from tables.exhausted import ExhaustedEvents
from tables.mutation_writer import MutationWriter
from tables.mutations import Mutation, WriteRejection
from tables.onboarding import OnboardingTables
from tables.post_scan import DELAY, PostScanJobs
from tables.queries import Observer
from tables.write_probe import WriteProbe

if TYPE_CHECKING:
    from tables.connection.pool import Connection

_UNDEFINED_TABLE: Final = "42P01"


class TenantTables:
    """The tables of one tenant's schema."""

    def __init__(
        self, database: Database, schema: str, observer: Observer, *, post_scan_delay: float = DELAY
    ) -> None:
        """`post_scan_delay` in seconds."""
        self._database = database
        self._schema = schema
        self.exhausted = ExhaustedEvents(schema, observer)
        self.onboarding = OnboardingTables(database, schema, observer)
        self.post_scan = PostScanJobs(database, schema, observer, delay=post_scan_delay)
        self._writer = MutationWriter(schema, observer, self.post_scan)
        self.messages = self._writer.messages
        self.probe = WriteProbe(database, schema)

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """A connection in a transaction: committed on leaving, rolled back on an exception."""
        return self._database.transaction(self._schema)

    async def write(self, mutations: Sequence[Mutation], *, bulk: bool = False) -> list[WriteRejection]:
        """Write all mutations; returns the ones that no row takes. `bulk` marks a history import.

        Raises `tables.errors.StorageError`; then nothing is written, or some new messages, and all may be repeated.
        """
        try:
            return await self._write(mutations, bulk=bulk)
        except StorageError as error:
            if error.sqlstate == _UNDEFINED_TABLE:
                # A partition that was known may have been dropped: the next try goes through the parent.
                self.messages.partitions = frozenset()
            raise

    async def _write(self, mutations: Sequence[Mutation], *, bulk: bool) -> list[WriteRejection]:
        if not self.messages.are_likely_new(mutations):
            async with self._database.transaction(self._schema) as connection:
                return await self._writer.write(connection, mutations, bulk=bulk)
        # A single statement commits by itself: one round trip to the server instead of three.
        async with self._database.connection(self._schema) as connection:
            stored = await self.messages.insert_new(connection, mutations, bulk=bulk)
        if not stored:
            return []
        async with self._database.transaction(self._schema) as connection:
            return await self.messages.merge_stored(connection, stored, bulk=bulk)

    async def unresolved(self) -> int:
        """How many parked events no operator has resolved."""
        async with self._database.connection(self._schema) as connection:
            return await self.exhausted.unresolved(connection)

    async def newest_exhausted(self) -> datetime.datetime | None:
        """When an event was last parked; None without any."""
        async with self._database.connection(self._schema) as connection:
            return await self.exhausted.newest(connection)


class CompanyTables(dict[Tenant, TenantTables]):
    """Each company's tables, made when they are first asked for."""

    def __init__(self, make: Callable[[Tenant], TenantTables]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, tenant: Tenant) -> TenantTables:
        tables = self[tenant] = self._make(tenant)
        return tables
