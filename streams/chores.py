"""The chores of a worker: partitions ahead of time, adopted keys, due post-scan syncs, lag figures."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from streams import topology
from streams.maintenance import Chore
from streams.specs import ConsumerSpec, TopologyConfig, consumers
from streams.stored import Api
from streams.subjects import Tenant
from tables.message_keys import fill_message_keys
from tables.partitions import ensure_partitions
from tables.pool import Database
from tables.tenant import TenantTables

# Seconds between two rounds.
PARTITIONS_EVERY: Final = 3600.0
KEYS_EVERY: Final = 3600.0
POST_SCAN_EVERY: Final = 5.0
LAG_EVERY: Final = 5.0


class LagMeter(Protocol):
    """Where the figures go; None takes a figure away."""

    def lag(self, company: str, consumer: str, pending: int | None, unacknowledged: int | None) -> None:
        """What a consumer has before it."""
        ...

    def dlq_state(self, company: str, messages: int | None, oldest_age: float | None) -> None:
        """Dead letters waiting, and the age of the oldest in seconds."""
        ...

    def exhausted(self, company: str, unresolved: int | None) -> None:
        """Exhausted events nobody has resolved."""
        ...


class Chores:
    """Makes the chores for all tenants of a worker."""

    def __init__(
        self,
        *,
        database: Database,
        tenants: Sequence[Tenant],
        tables: Callable[[Tenant], TenantTables],
        api: Api,
        config: TopologyConfig,
        meter: LagMeter,
        post_scan: Callable[[Tenant], Awaitable[int]],
    ) -> None:
        self._database = database
        self._tenants = tenants
        self._tables = tables
        self._api = api
        self._config = config
        self._meter = meter
        self._post_scan = post_scan

    def all(self) -> list[Chore]:
        """Every chore with its interval."""
        return [
            Chore("partitions ahead of time", PARTITIONS_EVERY, self.make_partitions),
            Chore("keys of adopted messages", KEYS_EVERY, self.fill_keys),
            Chore("post-scan sync", POST_SCAN_EVERY, self.sync_contacts),
            Chore("lag figures", LAG_EVERY, self.measure_lag),
        ]

    async def make_partitions(self) -> bool:
        """Contract 6.3, daily and more often."""
        today = datetime.datetime.now(datetime.UTC).date()
        for tenant in self._tenants:
            await ensure_partitions(self._database, tenant.schema, today)
        return False

    async def fill_keys(self) -> bool:
        """One page of each tenant whose adopted rows lack keys; True while there are more."""
        more = False
        for tenant in self._tenants:
            complete = await fill_message_keys(self._database, tenant.schema)
            self._tables(tenant).messages.keys_complete = complete
            more = more or not complete
        return more

    async def sync_contacts(self) -> bool:
        """Contract 5.6."""
        for tenant in self._tenants:
            await self._post_scan(tenant)
        return False

    async def measure_lag(self) -> bool:
        """Read every consumer's position, and what waits for a human."""
        for tenant in self._tenants:
            for spec in consumers(self._config, tenant):
                await self._measure(tenant, spec)
            self._meter.exhausted(tenant.company, await self._tables(tenant).unresolved())
        return False

    async def _measure(self, tenant: Tenant, spec: ConsumerSpec) -> None:
        try:
            lag = await topology.lag(self._api, spec.stream, spec.durable)
            self._meter.lag(tenant.company, spec.role, lag.pending, lag.ack_pending)
            if spec.role == "dlq":
                age = await topology.oldest_age(self._api, spec.stream, spec.durable, spec.subjects[0])
                self._meter.dlq_state(tenant.company, lag.pending + lag.ack_pending, age)
        except Exception:
            # No number is better than an old one that looks fresh.
            self._meter.lag(tenant.company, spec.role, None, None)
            if spec.role == "dlq":
                self._meter.dlq_state(tenant.company, None, None)
            raise
