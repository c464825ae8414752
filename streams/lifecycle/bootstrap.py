"""The steps of the start: connections, and each company's schema."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from events.subjects import Tenant
from streams.config.settings import Settings
from streams.jetstream.broker import Broker, Unusable
from streams.lifecycle.retrying import Fatal
from streams.lifecycle.startup import StartupStep
from streams.version import VERSION
from tables.connection.pool import Database
from tables.connection.replication import durability_warnings
from tables.errors import StorageError
from tables.schema import migrations
from tables.schema.inspection import Prepared, inspect
from tables.schema.key_backfill import message_keys_complete
from tables.schema.partitions import attached
from tables.schema.publication import publish_changes
from tables.tenant import TenantTables

logger = logging.getLogger(__name__)

# How many schemas are made or checked concurrently.
SCHEMAS_AT_ONCE: Final = 4
# Wrong password, no such role, no such database: the operator has to change a setting.
_MISCONFIGURED: Final = {"28000", "28P01", "3D000"}


@dataclass(eq=False)
class Bootstrap:
    """The steps of the start; each can be repeated."""

    settings: Settings
    database: Database
    broker: Broker
    tables: Mapping[Tenant, TenantTables]

    def __post_init__(self) -> None:
        # Each holds a connection; the pool has to have some left for the companies that are served already.
        at_once = max(1, min(SCHEMAS_AT_ONCE, self.settings.postgres_pool_size // 2))
        self._at_once = asyncio.Semaphore(at_once)
        # A build takes connections beside the pool, and may take hours: it holds up no company that needs none.
        self._builds = asyncio.Semaphore(at_once)
        self._misconfigured: set[Tenant] = set()

    def steps(self) -> list[StartupStep]:
        """What all companies share, in the order in which it is run."""
        return [
            StartupStep("start", self.announce),
            StartupStep("PostgreSQL", self.open_database),
            StartupStep("NATS", self.connect),
        ]

    async def announce(self) -> None:
        """Log version, environment and companies."""
        logger.info(
            "starting version %s in environment %s for %s",
            VERSION,
            self.settings.environment,
            ", ".join(tenant.company for tenant in self.settings.tenants),
        )

    async def open_database(self) -> None:
        """Connect. Raises `Fatal` for a wrong password or an unknown database."""
        try:
            await self.database.open()
        except StorageError as error:
            if error.sqlstate in _MISCONFIGURED:
                raise Fatal(f"POSTGRES_DSN: {error}") from error
            raise
        await self._warn_of_loss()

    async def _warn_of_loss(self) -> None:
        try:
            for warning in await durability_warnings(self.database):
                logger.warning("%s", warning)
        except StorageError as error:
            logger.info("PostgreSQL does not show its standbys: %s", error)

    async def schema(self, tenant: Tenant) -> None:
        """Make or adopt the schema of a company that the settings name.

        Raises `StorageError` with the schema's name, and `Fatal` where the settings are wrong: the schema is another
        company's, or no company has a schema that can be used as it is.
        """
        try:
            await self.provision(tenant)
        except migrations.SchemaTaken as error:
            raise Fatal(f"COMPANY_ID: {error}") from error
        except migrations.SchemaProblem as error:
            self._misconfigured.add(tenant)
            if len(self._misconfigured) == len(self.settings.tenants):
                raise Fatal(str(error)) from error
            raise
        self._misconfigured.discard(tenant)

    async def provision(self, tenant: Tenant, *, create: bool = True) -> None:
        """Make or adopt a company's schema; one that needs nothing is only looked at, in some milliseconds.

        Raises `SchemaProblem` if only an operator can help: `SchemaTaken` among it, and `SchemaMissing` without
        `create`. Otherwise `StorageError` with the schema's name.
        """
        try:
            async with self._at_once:
                prepared = await self._inspect(tenant)
            if prepared is None:
                await self._migrate(tenant, create=create)
                async with self._at_once:
                    prepared = await self._prepare(tenant)
        except migrations.SchemaProblem:
            raise
        except StorageError as error:
            raise StorageError(f"schema {tenant.schema}: {error}", error.sqlstate) from error
        messages = self.tables[tenant].messages
        messages.keys_complete, messages.partitions = prepared

    async def _inspect(self, tenant: Tenant) -> Prepared | None:
        return await inspect(
            self.database,
            tenant.schema,
            tenant.company,
            auto_migrate=self.settings.postgres_auto_migrate,
            today=datetime.datetime.now(datetime.UTC).date(),
        )

    async def _migrate(self, tenant: Tenant, *, create: bool) -> None:
        applied = await migrations.migrate(
            self.database,
            tenant.schema,
            company=tenant.company,
            create=create,
            auto_migrate=self.settings.postgres_auto_migrate,
            at_once=self._at_once,
            builds=self._builds,
        )
        for name in applied:
            logger.info("migration %s applied", name, extra={"company_id": tenant.company})

    async def _prepare(self, tenant: Tenant) -> Prepared:
        """Look at what is in the schema, and publish its tables."""
        prepared = Prepared(
            keys_complete=await message_keys_complete(self.database, tenant.schema),
            partitions=await attached(self.database, tenant.schema),
        )
        if self.settings.postgres_auto_migrate:
            await self._publish(tenant)
        return prepared

    async def _publish(self, tenant: Tenant) -> None:
        try:
            await publish_changes(self.database, tenant.schema)
        except StorageError as error:
            # A server without logical WAL, or without the rights, must still work.
            logger.warning("publication daisi_pub: %s", error, extra={"company_id": tenant.company})

    async def connect(self) -> None:
        """Wait for NATS. Raises `Fatal` if it is too old or has no JetStream."""
        try:
            await self.broker.wait_connected()
        except Unusable as error:
            raise Fatal(str(error)) from error
