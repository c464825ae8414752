"""The periodic tasks of a worker: partitions, adopted keys and indexes, post-scan syncs, gauges."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

from events.errors import BrokerError
from events.subjects import Tenant
from streams.jetstream.consumer_state import ConsumerStates, oldest_age, read_lag
from streams.jetstream.specs import ConsumerSpec, TopologyConfig, consumers
from streams.jetstream.stream_reader import Api
from streams.lifecycle.scheduler import PeriodicTask
from streams.lifecycle.schema_upkeep import LOOK_EVERY, CompanyTask
from tables.connection.pool import Database
from tables.errors import QueryTimeout, SerializationFailure, StorageError, Unavailable
from tables.schema import indexes
from tables.schema.key_backfill import fill_message_keys
from tables.schema.partitions import ensure_partitions, months_ahead
from tables.schema.publication import publish_changes
from tables.tenant import TenantTables

# Seconds between two runs.
PARTITIONS_EVERY: Final = 3600.0
KEYS_EVERY: Final = 3600.0
INDEXES_EVERY: Final = 3600.0
POST_SCAN_EVERY: Final = 5.0
GAUGES_EVERY: Final = 5.0
# SQLSTATE classes of rights, names and sequences.
_OF_ONE_COMPANY: Final = ("22", "42", "3F")


class GaugeMeter(Protocol):
    """The gauges; None removes a value."""

    def lag(self, company: str, consumer: str, pending: int | None, unacknowledged: int | None) -> None:
        """Messages of a consumer that are not settled."""
        ...

    def dlq_state(self, company: str, messages: int | None, oldest_age: float | None) -> None:
        """Dead letters waiting, and the age of the oldest in seconds."""
        ...

    def exhausted(self, company: str, unresolved: int | None, newest: float | None) -> None:
        """Exhausted events nobody has resolved, and the Unix time of the newest one (0 for none)."""
        ...

    def partitions(self, company: str, months_ahead: int | None) -> None:
        """Months after this one that have a partition."""
        ...


class _Reading(NamedTuple):
    """Something to do for one company, and what to do if it fails."""

    run: Callable[[], Awaitable[object]]
    failed: Callable[[], None] = lambda: None


class PeriodicTasks:
    """Makes the periodic tasks for all tenants of a worker.

    `tenants` may grow: a company joins when its schema is there. `served` says whether a consumer is there.
    """

    def __init__(
        self,
        *,
        database: Database,
        tenants: Sequence[Tenant],
        tables: Callable[[Tenant], TenantTables],
        api: Api,
        config: TopologyConfig,
        meter: GaugeMeter,
        consumer_states: ConsumerStates,
        post_scan: Callable[[Tenant], Awaitable[int]],
        served: Callable[[ConsumerSpec], bool] = lambda _: True,
        publish: bool = False,
    ) -> None:
        """`publish`: the tenants' tables are to be in the publication."""
        self._database = database
        self._tenants = tenants
        self._tables = tables
        self._api = api
        self._config = config
        self._meter = meter
        self._consumer_states = consumer_states
        self._post_scan = post_scan
        self._served = served
        self._publishes = publish
        self._published: set[Tenant] = set()

    def all(self) -> list[PeriodicTask]:
        """Every task with its interval."""
        return [
            *self._upkeep(),
            PeriodicTask("post-scan sync", POST_SCAN_EVERY, self.sync_contacts),
            PeriodicTask("lag gauges", GAUGES_EVERY, self.measure_lag),
            PeriodicTask("gauges of the tables", GAUGES_EVERY, self.measure_tables),
        ]

    def _upkeep(self) -> list[PeriodicTask]:
        """Upkeep of the tables, each in a loop of its own: an index may take an hour."""
        tasks = [
            ("partitions ahead of time", PARTITIONS_EVERY, self.make_partitions),
            ("keys of adopted messages", KEYS_EVERY, self.fill_keys),
            ("indexes of adopted tables", INDEXES_EVERY, self.build_indexes),
        ]
        return [
            PeriodicTask(name, LOOK_EVERY, CompanyTask(name, self._tenants, every, run).run_due)
            for name, every, run in tasks
        ]

    async def make_partitions(self, tenant: Tenant) -> bool:
        """The months ahead, and what the start could not publish."""
        await ensure_partitions(self._database, tenant.schema, _today())
        if self._publishes and tenant not in self._published:
            await self._publish(tenant)
            self._published.add(tenant)
        return False

    async def _publish(self, tenant: Tenant) -> None:
        """Once: a lock is waited for; a missing right was logged at the start."""
        try:
            await publish_changes(self._database, tenant.schema)
        except (QueryTimeout, SerializationFailure, Unavailable) as error:
            if error.sqlstate is None or not error.sqlstate.startswith("42"):
                raise
        except StorageError:
            return

    async def fill_keys(self, tenant: Tenant) -> bool:
        """One page of the keys that adopted rows lack; True while there are more."""
        complete = await fill_message_keys(self._database, tenant.schema)
        self._tables(tenant).messages.keys_complete = complete
        return not complete

    async def build_indexes(self, tenant: Tenant) -> bool:
        """The indexes of adopted tables with rows, while others write."""
        await indexes.build(self._database, tenant.schema)
        return False

    async def sync_contacts(self) -> bool:
        """Sync the contacts of accounts whose import has ended."""
        await _run_all(
            [_Reading(partial(self._post_scan, tenant)) for tenant in self._tenants],
            is_outage=_is_server_outage,
        )
        return False

    async def measure_lag(self) -> bool:
        """Read every consumer's position."""
        readings = [
            _Reading(partial(self._read_lag, tenant, spec), partial(self._clear_lag, tenant, spec))
            for tenant in self._tenants
            for spec in consumers(self._config, tenant)
            if self._served(spec)
        ]
        await _run_all(readings, is_outage=lambda error: isinstance(error, BrokerError))
        return False

    async def measure_tables(self) -> bool:
        """Count the unresolved exhausted events, and check whether the next months have their partitions."""
        readings = [
            _Reading(partial(self._read_tables, tenant), partial(self._clear_tables, tenant))
            for tenant in self._tenants
        ]
        await _run_all(readings, is_outage=_is_server_outage)
        return False

    async def _read_lag(self, tenant: Tenant, spec: ConsumerSpec) -> None:
        lag = await read_lag(self._api, spec.stream, spec.durable, self._consumer_states)
        self._meter.lag(tenant.company, spec.consumer_type, lag.pending, lag.ack_pending)
        if spec.consumer_type == "dlq":
            age = await oldest_age(self._api, spec.stream, spec.durable, spec.subjects[0])
            self._meter.dlq_state(tenant.company, lag.pending + lag.ack_pending, age)

    def _clear_lag(self, tenant: Tenant, spec: ConsumerSpec) -> None:
        self._meter.lag(tenant.company, spec.consumer_type, None, None)
        if spec.consumer_type == "dlq":
            self._meter.dlq_state(tenant.company, None, None)

    async def _read_tables(self, tenant: Tenant) -> None:
        tables = self._tables(tenant)
        newest = await tables.newest_exhausted()
        unresolved = await tables.unresolved()
        self._meter.exhausted(tenant.company, unresolved, newest.timestamp() if newest else 0.0)
        ahead = await months_ahead(self._database, tenant.schema, _today())
        self._meter.partitions(tenant.company, ahead)

    # No number is better than an old one that looks fresh.
    def _clear_tables(self, tenant: Tenant) -> None:
        self._meter.exhausted(tenant.company, None, None)
        self._meter.partitions(tenant.company, None)


async def _run_all(tasks: Sequence[_Reading], *, is_outage: Callable[[Exception], bool]) -> None:
    """Run each; one that fails keeps no other from running, except in an outage of the server.

    Raises the last failure.
    """
    problem: Exception | None = None
    for task in tasks:
        if problem is None or not is_outage(problem):
            try:
                await task.run()
                continue
            except Exception as error:
                problem = error
        task.failed()
    if problem is not None:
        raise problem


def _is_server_outage(error: Exception) -> bool:
    """Whether no company's tables can be used, and not only those of one."""
    return isinstance(error, Unavailable) and (error.sqlstate or "")[:2] not in _OF_ONE_COMPANY


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()
