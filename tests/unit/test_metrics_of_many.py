"""Metrics of many companies: how large the page is, and which series are there before something is counted in them."""

from __future__ import annotations

from typing import Final

import pytest

from events.subjects import ALL_COMPANIES, EVENT_TYPES, MAX_COMPANY_BYTES
from streams.monitoring.metrics import FEW, Metrics
from tests.unit.test_metrics import ACTION, PREFIX, families, label_values, pairs, rendered, series, value

UPSERT: Final = "v1.messages.upsert"
MANY: Final = tuple(f"Company{number:04d}" for number in range(200))
CONSUMERS: Final = ("realtime", "historical", "dlq")
# Of a company's page.
QUIET_BYTES: Final = 10_000
# A busy company has three event types with failures, onboarding and dead letters.
BUSY_TYPES: Final = (UPSERT, "v1.messages.update", "v1.chats.upsert")
BUSY_OPERATIONS: Final = (
    ("UpsertMessage", "Message"),
    ("UpdateMessageStatus", "Message"),
    ("UpsertChat", "Chat"),
    ("FindContact", "Contact"),
    ("UpsertContact", "Contact"),
    ("FindOnboardingLog", "OnboardingLog"),
    ("SaveOnboardingLog", "OnboardingLog"),
)
BUSY_BYTES: Final = 50_000
# One more event type, and one more operation of the database.
TYPE_BYTES: Final = 8_500
OPERATION_BYTES: Final = 3_500
_HISTOGRAMS: Final = (
    f"{PREFIX}_processing_duration_seconds",
    f"{PREFIX}_routing_duration_seconds",
    "message_event_service_db_operation_duration_seconds",
    "dlq_processing_duration_seconds",
    "onboarding_processing_duration_seconds",
    "daisi_source_batch_messages",
)


def fleet(*companies: str) -> Metrics:
    metrics = Metrics([], version="1")
    for company in companies:
        metrics.add_company(company)
    return metrics


def read_gauges(metrics: Metrics, company: str) -> None:
    """What is read from NATS and PostgreSQL, with numbers of a usual length."""
    for consumer in CONSUMERS:
        metrics.lag(company, consumer, 12345, 1000)
    metrics.dlq_state(company, 12, 86_400.123)
    metrics.exhausted(company, 3, 1_795_500_200.123456)
    metrics.partitions(company, 2)


def work(metrics: Metrics, company: str) -> None:
    """What a busy company does."""
    for event_type in BUSY_TYPES:
        metrics.received(company, event_type, 12_345)
        for number in range(5):
            metrics.settled(company, event_type, "ack_success", "none", 0.0123 + number / 7, 0.0071 * number)
        metrics.settled(company, event_type, "dlq_published_ack_success", "validation", 0.3, 0.1)
        metrics.settled(company, event_type, "nack_retryable", "timeout", 0.3, 0.1)
    observe = metrics.database_observer(company)
    for operation, entity in BUSY_OPERATIONS:
        observe(operation, entity, 0.00123456, True)
    metrics.onboarding_submitted(company, 300)
    metrics.onboarding_ended(company, "success_created", 0.0234567)
    metrics.dlq_submitted(company)
    metrics.dlq_finished(company, 0.1234567)


@pytest.mark.parametrize("kind", ["list", "fleet"])
def test_a_quiet_company_takes_at_most_10_kb(kind: str) -> None:
    before = len(rendered(Metrics([], version="1")))
    metrics = Metrics(MANY if kind == "list" else [], version="1")
    for company in MANY:
        metrics.add_company(company)
        read_gauges(metrics, company)
    assert (len(rendered(metrics)) - before) / len(MANY) <= QUIET_BYTES


def test_a_quiet_company_takes_at_most_10_kb_whatever_its_name() -> None:
    """The longest name that is allowed, all of characters that are escaped."""
    names = [f"{number:02d}{chr(34) * (MAX_COMPANY_BYTES - 2)}" for number in range(FEW + 1)]
    before = len(rendered(Metrics([], version="1")))
    metrics = Metrics(names, version="1")
    for name in names:
        read_gauges(metrics, name)
    assert (len(rendered(metrics)) - before) / len(names) <= 1.5 * QUIET_BYTES


def test_a_busy_company_takes_no_more_than_its_share_of_10_mb() -> None:
    metrics = fleet(*MANY)
    for company in MANY:
        read_gauges(metrics, company)
        work(metrics, company)
    assert len(rendered(metrics)) / len(MANY) <= BUSY_BYTES


def test_what_one_more_event_type_and_one_more_operation_take_is_known() -> None:
    metrics = fleet("Company0001")
    before = len(rendered(metrics))
    metrics.received("Company0001", UPSERT)
    metrics.settled("Company0001", UPSERT, "ack_success", "none", 0.0123, 0.0071)
    between = len(rendered(metrics))
    metrics.database_observer("Company0001")("UpdateMessageStatus", "Message", 0.001, True)
    assert between - before <= TYPE_BYTES
    assert len(rendered(metrics)) - between <= OPERATION_BYTES


def test_up_to_ten_companies_of_a_list_have_every_series_from_the_start() -> None:
    few, many = (families(Metrics(MANY[:count], version="1")) for count in (FEW, FEW + 1))
    for name in (ACTION, *_HISTOGRAMS):
        assert {sample.labels["company_id"] for sample in few[name].samples} == set(MANY[:FEW])
        assert not many[name].samples


@pytest.mark.rule("MET-3")
def test_a_first_failure_of_a_company_is_a_step_from_0() -> None:
    """Whatever its type: what failed is there before anything has, of a company that was only added."""
    metrics = fleet("KopiNusa")
    for name in ("received", "failed"):
        found = series(metrics, f"{PREFIX}s_{name}_total")
        assert set(found.values()) == {0.0}
        assert label_values(metrics, f"{PREFIX}s_{name}_total", "event_type") == set(EVENT_TYPES)
    for name in ("submitted", "dropped"):
        assert value(metrics, f"dlq_tasks_{name}_total", {"company_id": "KopiNusa"}) == 0
    assert set(series(metrics, "onboarding_tasks_processed_total").values()) == {0.0}


@pytest.mark.rule("MET-3")
def test_why_an_event_type_fails_is_a_step_from_0_after_its_first_delivery() -> None:
    metrics = fleet("KopiNusa", "TehNusa")
    metrics.received("KopiNusa", "v1.messages.update")
    found = set(pairs(metrics, "v1.messages.update"))
    assert {("nack_retryable", "not_found"), ("dlq_published_ack_success", "panic")} <= found
    assert {("ack_success", "none"), ("nak_dlq_publish_fail", "nats")} <= found
    assert set(series(metrics, f"{PREFIX}s_processed_total").values()) == {0.0}
    assert set(series(metrics, ACTION).values()) == {0.0}
    assert not set(pairs(metrics, UPSERT))
    assert label_values(metrics, ACTION, "company_id") == {"KopiNusa"}


@pytest.mark.rule("MET-3")
def test_a_histogram_comes_with_its_first_observation() -> None:
    metrics = fleet("KopiNusa")
    work(metrics, "KopiNusa")
    metrics.batch_received(ALL_COMPANIES, "realtime", 5)
    for name in _HISTOGRAMS:
        samples = families(metrics)[name].samples
        assert all(sample.value for sample in samples if sample.name.endswith("_count")), name
        assert {sample.labels["company_id"] for sample in samples} <= {"KopiNusa", ALL_COMPANIES}


def test_a_company_is_added_once_and_known_from_its_first_event_at_the_latest() -> None:
    metrics = fleet("KopiNusa")
    metrics.received("KopiNusa", UPSERT)
    metrics.add_company("KopiNusa")
    metrics.received("TehNusa", UPSERT, 2)
    metrics.settled("RotiNusa", UPSERT, "ack_success", "none", 0.1, 0.1)
    assert metrics.companies == ["KopiNusa", "TehNusa", "RotiNusa"]
    assert metrics.counts["KopiNusa"].received == 1
    assert (metrics.counts["TehNusa"].received, metrics.counts["RotiNusa"].processed) == (2, 1)


@pytest.mark.rule("MET-3")
def test_consumers_of_a_fleet_are_of_every_company() -> None:
    metrics = fleet("KopiNusa")
    for name in ("source_errors", "store_time_steps_back", "store_time_step_back_seconds"):
        found = {frozenset({("company_id", ALL_COMPANIES), ("consumer_type", each)}) for each in CONSUMERS}
        assert set(series(metrics, f"daisi_{name}_total")) == found


def test_a_page_of_a_thousand_companies_is_made_in_small_parts() -> None:
    """Between any two of them the event loop may have its turn."""
    metrics = fleet(*(f"Company{number:04d}" for number in range(1000)))
    work(metrics, "Company0007")
    assert max(map(len, metrics.collectors.text())) < 6000
