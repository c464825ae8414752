"""The periodic tasks of a worker: partitions, adopted keys and indexes, post-scan syncs, gauges."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from events.errors import BrokerError
from events.subjects import Tenant
from streams.jetstream.consumer_state import ConsumerStates, oldest_age
from streams.jetstream.incarnation import Incarnation, compare_streams
from streams.jetstream.specs import ConsumerSpec
from streams.jetstream.stream_reader import Api
from streams.lifecycle.scheduler import PeriodicTask
from streams.lifecycle.schema_upkeep import LOOK_EVERY, CompanyTask
from streams.monitoring.metrics import Metrics
from tables.connection.pool import Database
from tables.errors import QueryTimeout, SerializationFailure, StorageError, Unavailable
from tables.schema import indexes
from tables.schema.key_backfill import fill_message_keys
from tables.schema.partitions import attached, ensure_partitions, months_ahead
from tables.schema.publication import publish_changes
from tables.tenant import TenantTables

Item = TypeVar("Item")

# Seconds between two runs.
PARTITIONS_EVERY: Final = 3600.0
KEYS_EVERY: Final = 3600.0
INDEXES_EVERY: Final = 3600.0
POST_SCAN_EVERY: Final = 5.0
GAUGES_EVERY: Final = 5.0
# SQLSTATE classes of rights, names and sequences.
_OF_ONE_COMPANY: Final = ("22", "42", "3F")


@dataclass(kw_only=True, eq=False)
class PeriodicTasks:
    """Makes the periodic tasks for all tenants of a worker."""

    database: Database
    tenants: Sequence[Tenant]  # may grow: a company joins when its schema is there
    tables: Callable[[Tenant], TenantTables]
    api: Api
    specs: Sequence[ConsumerSpec]
    incarnations: Sequence[Incarnation]
    served: Callable[[ConsumerSpec], bool]  # whether a consumer is there
    metrics: Metrics
    consumer_states: ConsumerStates
    post_scan: Callable[[Tenant], Awaitable[int]]
    publish: bool  # whether the tables are to be in the publication
    _published: set[Tenant] = field(default_factory=set, init=False)

    def all(self) -> list[PeriodicTask]:
        """Every task with its interval."""
        return [
            *self._upkeep(),
            PeriodicTask("post-scan sync", POST_SCAN_EVERY, self.sync_contacts),
            PeriodicTask("lag gauges", GAUGES_EVERY, self.measure_lag),
            PeriodicTask("gauges of the tables", GAUGES_EVERY, self.measure_tables),
            PeriodicTask("incarnations of streams", GAUGES_EVERY, self.compare_streams),
        ]

    def _upkeep(self) -> list[PeriodicTask]:
        """Upkeep of the tables, each in a loop of its own: an index may take an hour."""
        tasks = [
            ("partitions ahead of time", PARTITIONS_EVERY, self.make_partitions),
            ("keys of adopted messages", KEYS_EVERY, self.fill_keys),
            ("indexes of adopted tables", INDEXES_EVERY, self.build_indexes),
        ]
        return [
            PeriodicTask(name, LOOK_EVERY, CompanyTask(name, self.tenants, every, run).run_due)
            for name, every, run in tasks
        ]

    async def make_partitions(self, tenant: Tenant) -> bool:
        """The months ahead, and what the start could not publish."""
        await ensure_partitions(self.database, tenant.schema, _today())
        self.tables(tenant).messages.partitions = await attached(self.database, tenant.schema)
        if self.publish and tenant not in self._published:
            await self._publish(tenant)
            self._published.add(tenant)
        return False

    async def _publish(self, tenant: Tenant) -> None:
        """Once: a lock is waited for; a missing right was logged at the start."""
        try:
            await publish_changes(self.database, tenant.schema)
        except (QueryTimeout, SerializationFailure, Unavailable) as error:
            if error.sqlstate is None or not error.sqlstate.startswith("42"):
                raise
        except StorageError:
            return

    async def fill_keys(self, tenant: Tenant) -> bool:
        """One page of the keys that adopted rows lack; True while there are more."""
        complete = await fill_message_keys(self.database, tenant.schema)
        self.tables(tenant).messages.keys_complete = complete
        return not complete

    async def build_indexes(self, tenant: Tenant) -> bool:
        """The indexes of adopted tables with rows, while others write."""
        await indexes.build(self.database, tenant.schema)
        return False

    async def sync_contacts(self) -> bool:
        """Sync the contacts of accounts whose import has ended."""
        await _for_each(self.tenants, self.post_scan, lambda _: None, is_outage=_is_server_outage)
        return False

    async def compare_streams(self) -> bool:
        """Have sources doubt the incarnation of a stream that was made anew. Raises `BrokerError`."""
        await compare_streams(self.api, self.incarnations)
        return False

    async def measure_lag(self) -> bool:
        """Read every consumer's position."""
        served = filter(self.served, self.specs)
        await _for_each(
            served, self._read_lag, self._clear_lag, is_outage=lambda error: isinstance(error, BrokerError)
        )
        return False

    async def measure_tables(self) -> bool:
        """Count the unresolved exhausted events, and check whether the next months have their partitions."""
        await _for_each(self.tenants, self._read_tables, self._clear_tables, is_outage=_is_server_outage)
        return False

    async def _read_lag(self, spec: ConsumerSpec) -> None:
        company = spec.company
        state = await self.consumer_states.read(self.api, spec.stream, spec.durable)
        self.metrics.lag(company, spec.consumer_type, state.num_pending, state.num_ack_pending)
        if spec.consumer_type == "dlq":
            age = await oldest_age(self.api, spec.stream, spec.durable, spec.subjects[0])
            self.metrics.dlq_state(company, state.num_pending + state.num_ack_pending, age)

    # No number is better than an old one that looks fresh.
    def _clear_lag(self, spec: ConsumerSpec) -> None:
        self.metrics.lag(spec.company, spec.consumer_type, None, None)
        if spec.consumer_type == "dlq":
            self.metrics.dlq_state(spec.company, None, None)

    async def _read_tables(self, tenant: Tenant) -> None:
        tables = self.tables(tenant)
        newest = await tables.newest_exhausted()
        unresolved = await tables.unresolved()
        self.metrics.exhausted(tenant.company, unresolved, newest.timestamp() if newest else 0.0)
        ahead = await months_ahead(self.database, tenant.schema, _today())
        self.metrics.partitions(tenant.company, ahead)

    def _clear_tables(self, tenant: Tenant) -> None:
        self.metrics.exhausted(tenant.company, None, None)
        self.metrics.partitions(tenant.company, None)


async def _for_each(
    items: Iterable[Item],
    run: Callable[[Item], Awaitable[object]],
    failed: Callable[[Item], None],
    *,
    is_outage: Callable[[Exception], bool],
) -> None:
    """Run for each; one that fails keeps no other from running, except in an outage of the server.

    Raises the last failure.
    """
    problem: Exception | None = None
    for item in items:
        if problem is None or not is_outage(problem):
            try:
                await run(item)
                continue
            except Exception as error:
                problem = error
        failed(item)
    if problem is not None:
        raise problem


def _is_server_outage(error: Exception) -> bool:
    """Whether no company's tables can be used, and not only those of one."""
    return isinstance(error, Unavailable) and (error.sqlstate or "")[:2] not in _OF_ONE_COMPANY


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()
