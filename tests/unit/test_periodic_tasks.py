"""Gauges are read one by one, and removed when they cannot be read."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from events.errors import BrokerError
from events.subjects import Tenant
from streams.jetstream.consumer_state import ConsumerStates
from streams.jetstream.specs import consumers
from streams.jetstream.stream_reader import ApiError
from streams.lifecycle.periodic_tasks import PeriodicTasks
from streams.lifecycle.schema_upkeep import CompanyTask
from streams.lifecycle.turns import BURST, Turns
from streams.monitoring.metrics import Metrics
from tables.errors import DatabaseError, StorageError, Unavailable
from tests.reconcile import default_settings
from tests.unit.test_metrics import label_values, value

COMPANIES = ("KopiNusa", "TehNusa")
NEWEST = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)


class FakeApi:
    """Answers for every consumer but those whose stream is in `missing`; `away` refuses all."""

    def __init__(self) -> None:
        self.missing: Sequence[str] = ()
        self.away = False
        self.asked = 0

    async def api(self, subject: str, body: object = None) -> dict[str, Any]:
        self.asked += 1
        if self.away:
            raise BrokerError("NATS does not answer")
        if subject.split(".")[2] in self.missing:
            raise ApiError(10014, "consumer not found")
        return {"num_pending": 0, "num_ack_pending": 0, "ack_floor": {"stream_seq": 0}, "config": {}}


class FakeTables:
    """A tenant's tables; `away` refuses all."""

    away = False
    asked = 0

    async def unresolved(self) -> int:
        return 3

    async def newest_exhausted(self) -> datetime.datetime:
        self.asked += 1
        if self.away:
            raise Unavailable("no server answers")
        return NEWEST


class CompanyProbe(SimpleNamespace):
    """The periodic tasks of two companies, on fakes."""

    periodic_tasks: PeriodicTasks
    metrics: Metrics
    api: FakeApi
    tables: FakeTables


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> CompanyProbe:
    async def ahead(*_: object) -> int:
        return 2

    monkeypatch.setattr("streams.lifecycle.periodic_tasks.months_ahead", ahead)
    metrics, api, tables = Metrics(COMPANIES, version="1"), FakeApi(), FakeTables()
    settings, tenants = default_settings(), [Tenant(company) for company in COMPANIES]
    tasks = PeriodicTasks(
        database=cast(Any, None),
        tenants=tenants,
        tables=lambda tenant: cast(Any, tables),
        api=api,
        specs=[spec for tenant in tenants for spec in consumers(settings, tenant)],
        incarnations=(),
        served=lambda _: True,
        metrics=metrics,
        consumer_states=ConsumerStates(),
        post_scan=cast(Any, None),
        publish=False,
    )
    return CompanyProbe(periodic_tasks=tasks, metrics=metrics, api=api, tables=tables)


def consumers_shown(metrics: Metrics) -> set[str]:
    return label_values(metrics, "daisi_consumer_pending_messages", "consumer_type")


async def test_a_missing_consumer_hides_no_other_consumers_figures(probe: CompanyProbe) -> None:
    await probe.periodic_tasks.measure_lag()
    assert consumers_shown(probe.metrics) == {"realtime", "historical", "dlq"}
    probe.api.missing = [default_settings().realtime_stream]
    with pytest.raises(ApiError):
        await probe.periodic_tasks.measure_lag()
    assert consumers_shown(probe.metrics) == {"historical", "dlq"}


async def test_a_silent_nats_is_asked_once_a_round_and_leaves_no_old_figures(probe: CompanyProbe) -> None:
    await probe.periodic_tasks.measure_lag()
    probe.api.away, probe.api.asked = True, 0
    with pytest.raises(BrokerError):
        await probe.periodic_tasks.measure_lag()
    assert probe.api.asked == 1
    assert consumers_shown(probe.metrics) == set()
    assert label_values(probe.metrics, "daisi_dlq_messages", "company_id") == set()


async def test_a_silent_database_is_asked_once_a_round_and_leaves_no_old_figures(probe: CompanyProbe) -> None:
    await probe.periodic_tasks.measure_tables()
    for company in COMPANIES:
        labels = {"company_id": company}
        assert value(probe.metrics, "daisi_exhausted_events", labels) == 3
        assert value(probe.metrics, "daisi_partition_months_ahead", labels) == 2
        newest = value(probe.metrics, "daisi_exhausted_newest_timestamp_seconds", labels)
        assert newest == NEWEST.timestamp()
    probe.tables.away, probe.tables.asked = True, 0
    with pytest.raises(Unavailable):
        await probe.periodic_tasks.measure_tables()
    assert probe.tables.asked == 1
    for name in ("events", "newest_timestamp_seconds"):
        assert label_values(probe.metrics, f"daisi_exhausted_{name}", "company_id") == set()
    assert label_values(probe.metrics, "daisi_partition_months_ahead", "company_id") == set()


async def test_tables_of_one_company_that_are_refused_hide_no_other_companys_figures(
    probe: CompanyProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(_: object, schema: str, __: object) -> int:
        if schema == Tenant(COMPANIES[0]).schema:
            raise Unavailable("permission denied", "42501")
        return 2

    monkeypatch.setattr("streams.lifecycle.periodic_tasks.months_ahead", refused)
    with pytest.raises(Unavailable):
        await probe.periodic_tasks.measure_tables()
    assert label_values(probe.metrics, "daisi_partition_months_ahead", "company_id") == {COMPANIES[1]}


@pytest.mark.parametrize(
    ("trouble", "served"),
    [
        (DatabaseError("XX000", "XX000"), True),
        (Unavailable("permission denied", "42501"), True),
        (Unavailable("sequence at its end", "2200H"), True),
        (Unavailable("no server answers"), False),
        (Unavailable("shutting down", "57P01"), False),
    ],
)
async def test_contacts_of_one_company_that_cannot_be_synced_keep_no_others_from_it(
    probe: CompanyProbe, trouble: StorageError, served: bool
) -> None:
    synced = []

    async def sync(tenant: Tenant) -> int:
        if tenant.company == COMPANIES[0]:
            raise trouble
        synced.append(tenant.company)
        return 1

    probe.periodic_tasks.post_scan = sync
    with pytest.raises(type(trouble)):
        await probe.periodic_tasks.sync_contacts()
    assert synced == ([COMPANIES[1]] if served else [])


@pytest.fixture
def many(probe: CompanyProbe) -> CompanyProbe:
    """The same with a thousand companies."""
    probe.periodic_tasks.tenants = [Tenant(f"Toko{number:03d}") for number in range(1000)]
    return probe


async def test_a_thousand_companies_are_asked_no_more_than_fifty_at_a_time(many: CompanyProbe) -> None:
    synced: list[Tenant] = []

    async def sync(tenant: Tenant) -> int:
        synced.append(tenant)
        return 0

    many.periodic_tasks.post_scan = sync
    await many.periodic_tasks.measure_tables()
    await many.periodic_tasks.sync_contacts()
    assert many.tables.asked == len(synced) == BURST
    assert len(label_values(many.metrics, "daisi_exhausted_events", "company_id")) == BURST


async def test_figures_of_companies_whose_turn_it_is_not_stay_but_not_through_an_outage(
    many: CompanyProbe,
) -> None:
    name, tasks = "daisi_exhausted_events", many.periodic_tasks
    await tasks.measure_tables()
    first = label_values(many.metrics, name, "company_id")
    tasks._measured = Turns()
    tasks.tenants = list(reversed(tasks.tenants))
    await tasks.measure_tables()
    assert first < label_values(many.metrics, name, "company_id")
    tasks._measured = Turns()
    many.tables.away = True
    with pytest.raises(Unavailable):
        await tasks.measure_tables()
    assert label_values(many.metrics, name, "company_id") == set()


async def test_upkeep_of_a_thousand_companies_begins_with_some_and_goes_on_with_what_it_began() -> None:
    ran: list[Tenant] = []
    tenants = [Tenant(f"Toko{number:03d}") for number in range(1000)]

    async def run(tenant: Tenant) -> bool:
        ran.append(tenant)
        # One has more to do at once.
        return tenant == tenants[0]

    task = CompanyTask("upkeep", tenants, 3600, run)
    assert await task.run_due()
    assert ran == tenants[:BURST]
    assert await task.run_due()
    assert ran.count(tenants[0]) == 2
