"""The metrics page, compared name by name, label by label and bucket by bucket with the documents."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from streams.monitoring import exposition
from streams.monitoring.agent_series import AGENT_LIMIT
from streams.monitoring.exposition import CONTENT_TYPE
from streams.monitoring.metrics import Metrics
from tests.unit.documented_metrics import (
    ACTIONS,
    DOCUMENTED,
    ERROR_TYPES,
    HISTORICAL,
    ONBOARDING_STATUSES,
    OPERATIONS,
    REALTIME,
    Documented,
)

COMPANY = "KopiNusa"
UPSERT = "v1.messages.upsert"
EVENT = {"event_type": UPSERT, "company_id": COMPANY, "consumer_type": "realtime"}
PREFIX = "message_event_service_event"
WITH_AGENT = f"{PREFIX}_with_agent_received_total"
ACTION = f"{PREFIX}_processing_actions_total"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics([COMPANY], version="1.2.3")


def rendered(metrics: Metrics) -> bytes:
    """The page, without an event loop."""
    metrics._read_watched()
    return "".join(metrics.collectors.text()).encode()


def families(metrics: Metrics) -> dict[str, Metric]:
    page = rendered(metrics).decode()
    # The parser takes `_total` off the counters' names.
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(page)
    }


def series(metrics: Metrics, name: str) -> dict[frozenset[tuple[str, str]], float]:
    """Every series whose sample has this very name."""
    return {
        frozenset(sample.labels.items()): sample.value
        for family in families(metrics).values()
        for sample in family.samples
        if sample.name == name
    }


def value(metrics: Metrics, name: str, labels: dict[str, str] | None = None) -> float | None:
    return series(metrics, name).get(frozenset((labels or {}).items()))


def label_values(metrics: Metrics, name: str, label: str) -> set[str]:
    return {dict(labels)[label] for labels in series(metrics, name)}


@pytest.mark.rule("MET-2")
@pytest.mark.parametrize("documented", DOCUMENTED, ids=lambda documented: documented.name)
def test_metric_is_as_documented(metrics: Metrics, documented: Documented) -> None:
    metrics.agent_seen(COMPANY, UPSERT, "agent", "jid")
    family = families(metrics)[documented.name]
    assert family.type == documented.kind
    assert family.documentation
    suffixes = ("_bucket", "_sum", "_count") if documented.kind == "histogram" else ("",)
    assert {sample.name for sample in family.samples} == {documented.name + suffix for suffix in suffixes}
    for sample in family.samples:
        expected = set(documented.labels) | ({"le"} if sample.name.endswith("_bucket") else set())
        assert set(sample.labels) == expected
    bounds = {float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels}
    assert bounds == ({*documented.buckets, float("inf")} if documented.buckets else set())


@pytest.mark.rule("MET-2")
def test_nothing_else_has_a_documented_prefix(metrics: Metrics) -> None:
    ours = ("message_event_service_", "dlq_", "onboarding_")
    found = {name for name in families(metrics) if name.startswith(ours)}
    assert found == {documented.name for documented in DOCUMENTED}


@pytest.mark.rule("MET-1")
def test_page_has_no_created_series_and_ends_with_a_newline(metrics: Metrics) -> None:
    names = {sample.name for family in families(metrics).values() for sample in family.samples}
    assert not [name for name in names if name.endswith("_created")]
    assert rendered(metrics).endswith(b"\n")
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_process_is_measured(metrics: Metrics) -> None:
    assert value(metrics, "process_cpu_seconds_total") is not None
    assert value(metrics, "process_resident_memory_bytes")
    assert value(metrics, "daisi_build_info", {"version": "1.2.3"}) == 1


@pytest.mark.rule("MET-3")
@pytest.mark.parametrize("documented", DOCUMENTED, ids=lambda documented: documented.name)
def test_documented_series_are_zero_before_any_event(metrics: Metrics, documented: Documented) -> None:
    samples = families(metrics)[documented.name].samples
    if documented.name == WITH_AGENT:
        assert not samples
    else:
        assert samples
        assert {sample.value for sample in samples} == {0.0}


@pytest.mark.parametrize("name", [f"{PREFIX}s_{what}_total" for what in ("received", "processed", "failed")])
def test_each_event_type_has_its_one_consumer_type(metrics: Metrics, name: str) -> None:
    found = {(dict(labels)["event_type"], dict(labels)["consumer_type"]) for labels in series(metrics, name)}
    assert found == {(kind, "realtime") for kind in REALTIME} | {(kind, "historical") for kind in HISTORICAL}


def pairs(metrics: Metrics, event_type: str) -> Iterator[tuple[str, str]]:
    for labels in map(dict, series(metrics, ACTION)):
        if labels["event_type"] == event_type:
            yield labels["action"], labels["error_type"]


@pytest.mark.rule("MET-3")
def test_every_documented_action_and_error_type_is_there(metrics: Metrics) -> None:
    assert label_values(metrics, ACTION, "action") == ACTIONS
    assert label_values(metrics, ACTION, "error_type") == ERROR_TYPES


@pytest.mark.rule("MET-3")
@pytest.mark.parametrize("event_type", sorted(REALTIME | HISTORICAL))
def test_only_outcomes_that_can_occur_are_there(metrics: Metrics, event_type: str) -> None:
    found = set(pairs(metrics, event_type))
    updates = {"v1.messages.update", "v1.chats.update", "v1.contacts.update"}
    missing = {"not_found"} if event_type in updates else set()
    causes = {"database", "validation", "timeout", "unmarshal", "panic", "unknown"} | missing
    assert found == (
        {("ack_success", "none"), ("nak_dlq_publish_fail", "nats"), ("nak_dlq_marshal_fail", "unknown")}
        | {("nack_retryable", cause) for cause in {"database", "timeout"} | missing}
        | {("dlq_published_ack_success", cause) for cause in causes | {"nats"}}
        | {("nack_fatal", cause) for cause in causes}
    )


@pytest.mark.rule("MET-7", "MET-9")
def test_every_database_operation_and_onboarding_status_is_there(metrics: Metrics) -> None:
    name = "message_event_service_db_operation_duration_seconds_count"
    found = {
        tuple(dict(labels)[key] for key in ("operation", "entity", "status"))
        for labels in series(metrics, name)
    }
    assert found == {(*pair, status) for pair in OPERATIONS for status in ("success", "error")}
    assert label_values(metrics, "onboarding_tasks_processed_total", "status") == ONBOARDING_STATUSES


@pytest.mark.rule("MET-4", "MET-5")
def test_a_success_counts_as_processed_and_is_timed(metrics: Metrics) -> None:
    metrics.received(COMPANY, UPSERT, 2)
    metrics.settled(COMPANY, UPSERT, "ack_success", "none", 0.03, 0.015)
    assert value(metrics, f"{PREFIX}s_received_total", EVENT) == 2
    assert value(metrics, f"{PREFIX}s_processed_total", EVENT) == 1
    assert value(metrics, f"{PREFIX}s_failed_total", EVENT) == 0
    assert value(metrics, ACTION, EVENT | {"action": "ack_success", "error_type": "none"}) == 1
    for kind, bound, below in (("processing", "0.04", "0.02"), ("routing", "0.02", "0.01")):
        histogram = f"{PREFIX}_{kind}_duration_seconds_bucket"
        assert value(metrics, histogram, EVENT | {"le": bound}) == 1
        assert value(metrics, histogram, EVENT | {"le": below}) == 0


@pytest.mark.rule("MET-4")
@pytest.mark.parametrize("action", sorted(ACTIONS - {"ack_success"}))
def test_every_other_action_counts_as_failed(metrics: Metrics, action: str) -> None:
    metrics.settled(COMPANY, UPSERT, action, "database", 0.03, 0.015)
    assert value(metrics, f"{PREFIX}s_processed_total", EVENT) == 0
    assert value(metrics, f"{PREFIX}s_failed_total", EVENT) == 1
    assert value(metrics, ACTION, EVENT | {"action": action, "error_type": "database"}) == 1


@pytest.mark.rule("MET-4")
def test_a_stuck_event_is_not_failed_before_it_is_settled(metrics: Metrics) -> None:
    metrics.stuck(COMPANY, UPSERT, "nak_dlq_publish_fail")
    labels = EVENT | {"action": "nak_dlq_publish_fail", "error_type": "nats"}
    assert value(metrics, ACTION, labels) == 1
    assert value(metrics, f"{PREFIX}s_failed_total", EVENT) == 0


def test_an_event_of_unknown_type_is_counted_too(metrics: Metrics) -> None:
    metrics.received(COMPANY, "unknown")
    metrics.settled(COMPANY, "unknown", "nack_fatal", "unknown", 0.1, 0.1)
    assert value(metrics, f"{PREFIX}s_failed_total", EVENT | {"event_type": "unknown"}) == 1


def test_no_company_is_unknown() -> None:
    metrics = Metrics([""], version="1")
    metrics.received("", UPSERT)
    assert value(metrics, f"{PREFIX}s_received_total", EVENT | {"company_id": "unknown"}) == 1


@pytest.mark.rule("MET-6")
def test_jids_beyond_the_limit_share_one_series() -> None:
    """10,000 jids make a page that Prometheus still takes."""
    metrics = Metrics([COMPANY], version="1")
    for number in range(10_000):
        metrics.agent_seen(COMPANY, UPSERT, "agent", f"{number}@s.whatsapp.net")
    found = series(metrics, WITH_AGENT)
    assert len(found) == 1001
    assert sum(found.values()) == 10_000
    assert len(rendered(metrics)) < 500_000


def test_jid_limit_is_over_all_event_types_and_known_jids_stay_known() -> None:
    metrics = Metrics([COMPANY], jid_limit=2, version="1")
    for event_type in (UPSERT, "v1.chats.upsert"):
        for jid in ("", "a", "b", "c", "a"):
            metrics.agent_seen(COMPANY, event_type, "agent", jid)
    assert label_values(metrics, WITH_AGENT, "jid") == {"", "a", "b", "other"}
    labels = {"event_type": "v1.chats.upsert", "company_id": COMPANY, "agent_id": "agent", "jid": "a"}
    assert value(metrics, WITH_AGENT, labels) == 2


def test_jid_limit_zero_hides_every_jid() -> None:
    metrics = Metrics([COMPANY], jid_limit=0, version="1")
    for jid in ("a", "b", ""):
        metrics.agent_seen(COMPANY, UPSERT, "agent", jid)
    assert label_values(metrics, WITH_AGENT, "jid") == {"other"}
    assert label_values(metrics, WITH_AGENT, "agent_id") == {"agent"}


def test_agents_are_bounded_as_well_and_so_are_pairs() -> None:
    metrics = Metrics([COMPANY], jid_limit=1000, version="1")
    for number in range(3 * AGENT_LIMIT):
        metrics.agent_seen(COMPANY, UPSERT, f"agent {number}", "")
    assert len(label_values(metrics, WITH_AGENT, "agent_id")) == AGENT_LIMIT + 1
    for number in range(20_000):
        metrics.agent_seen(COMPANY, UPSERT, f"agent {number % 997}", f"{number % 991}")
    # Beside them the few series with `other`.
    assert len(series(metrics, WITH_AGENT)) <= 10 * AGENT_LIMIT + 10


@pytest.mark.rule("MET-6")
def test_a_hostile_label_is_cut_and_escaped(metrics: Metrics) -> None:
    metrics.agent_seen(COMPANY, UPSERT, 'a"\n\\' * 1000, "\ud800")
    (labels,) = map(dict, series(metrics, WITH_AGENT))
    assert labels["agent_id"] == ('a"\n\\' * 1000)[:128]
    assert labels["jid"] == "?"


@pytest.mark.rule("MET-8")
def test_dead_letter_verbs_count_what_they_say(metrics: Metrics) -> None:
    metrics.pull_requested(COMPANY, "dlq")
    metrics.pull_failed(COMPANY, "dlq")
    assert value(metrics, "dlq_fetch_requests_total") == 1
    assert value(metrics, "dlq_fetch_errors_total") == 1
    for verb, name in (
        (metrics.dlq_submitted, "dlq_tasks_submitted_total"),
        (metrics.dlq_retried, "dlq_task_retries_total"),
        (metrics.dlq_acked, "dlq_acks_success_total"),
        (metrics.dlq_ack_failed, "dlq_acks_failure_total"),
        (metrics.dlq_dropped, "dlq_tasks_dropped_total"),
    ):
        verb(COMPANY)
        assert value(metrics, name, {"company_id": COMPANY}) == 1
    metrics.dlq_finished(COMPANY, 0.2)
    labels = {"company_id": COMPANY, "le": "0.25"}
    assert value(metrics, "dlq_processing_duration_seconds_bucket", labels) == 1


@pytest.mark.rule("MET-9")
def test_onboarding_and_database_verbs_count_what_they_say(metrics: Metrics) -> None:
    metrics.onboarding_submitted(COMPANY, 3)
    metrics.onboarding_ended(COMPANY, "error_db", 0.2)
    assert value(metrics, "onboarding_tasks_submitted_total", {"company_id": COMPANY}) == 3
    labels = {"company_id": COMPANY, "status": "error_db"}
    assert value(metrics, "onboarding_tasks_processed_total", labels) == 1
    assert value(metrics, "onboarding_processing_duration_seconds_sum", {"company_id": COMPANY}) == 0.2
    observe = metrics.database_observer(COMPANY)
    observe("UpsertChat", "Chat", 0.003, True)
    observe("Unheard", "Of", 0.003, False)
    name = "message_event_service_db_operation_duration_seconds_count"
    chat = {"operation": "UpsertChat", "entity": "Chat", "company_id": COMPANY}
    assert value(metrics, name, chat | {"status": "success"}) == 1
    assert value(metrics, name, chat | {"status": "error"}) == 0
    unheard = {"operation": "Unheard", "entity": "Of", "company_id": COMPANY, "status": "error"}
    assert value(metrics, name, unheard) == 1


@pytest.mark.rule("MET-10")
def test_gauges_are_read_at_each_scrape_and_added_up(metrics: Metrics) -> None:
    """A queue that was drained and left idle shows 0, not its last length."""
    waiting = [1, 2, 3]
    metrics.watch_dlq(lambda: len(waiting), lambda: 1)
    metrics.watch_dlq(lambda: 10, lambda: 1)
    metrics.watch_onboarding(lambda: len(waiting))
    assert value(metrics, "dlq_queue_length") == 13
    assert value(metrics, "dlq_workers_active") == 2
    assert value(metrics, "onboarding_queue_length") == 3
    waiting.clear()
    assert value(metrics, "onboarding_queue_length") == 0


@pytest.mark.rule("MET-3")
def test_lag_that_cannot_be_told_is_not_a_number(metrics: Metrics) -> None:
    """A consumer that is gone must not look like one without work, or with the last work it had."""
    labels = {"company_id": COMPANY, "consumer_type": "dlq"}
    assert value(metrics, "daisi_consumer_pending_messages", labels) is None
    metrics.lag(COMPANY, "dlq", 7, 2)
    metrics.dlq_state(COMPANY, 9, 1.5)
    metrics.exhausted(COMPANY, 4, 1_795_500_200.0)
    metrics.partitions(COMPANY, 2)
    assert value(metrics, "daisi_consumer_pending_messages", labels) == 7
    assert value(metrics, "daisi_consumer_unacknowledged_messages", labels) == 2
    assert value(metrics, "daisi_dlq_messages", {"company_id": COMPANY}) == 9
    assert value(metrics, "daisi_dlq_oldest_age_seconds", {"company_id": COMPANY}) == 1.5
    assert value(metrics, "daisi_exhausted_events", {"company_id": COMPANY}) == 4
    newest = "daisi_exhausted_newest_timestamp_seconds"
    assert value(metrics, newest, {"company_id": COMPANY}) == 1_795_500_200.0
    assert value(metrics, "daisi_partition_months_ahead", {"company_id": COMPANY}) == 2
    for _ in range(2):
        metrics.lag(COMPANY, "dlq", None, None)
        metrics.dlq_state(COMPANY, None, None)
        metrics.exhausted(COMPANY, None, None)
        metrics.partitions(COMPANY, None)
    for name in ("pending_messages", "unacknowledged_messages"):
        assert value(metrics, f"daisi_consumer_{name}", labels) is None
    for name in ("daisi_exhausted_events", newest, "daisi_partition_months_ahead"):
        assert value(metrics, name, {"company_id": COMPANY}) is None


async def readiness_on_page(metrics: Metrics) -> dict[str, float]:
    await metrics.page()
    return {dict(labels)["part"]: ready for labels, ready in series(metrics, "daisi_ready").items()}


async def test_readiness_is_asked_for_each_page(metrics: Metrics) -> None:
    reasons: dict[str, str] = {}

    async def answer() -> dict[str, str]:
        if "broken" in reasons:
            raise RuntimeError
        return reasons

    good = dict.fromkeys(("worker", "nats", "postgres", "agents", "sources"), 1.0)
    assert await readiness_on_page(metrics) == dict.fromkeys(good, 0.0)
    metrics.watch_readiness(answer)
    assert await readiness_on_page(metrics) == good
    reasons |= {"postgres": "no answer", f"realtime {COMPANY}": "3 deliveries under way"}
    assert await readiness_on_page(metrics) == good | {"postgres": 0, "sources": 0}
    reasons["broken"] = ""
    assert await readiness_on_page(metrics) == good | {"worker": 0}


def test_source_verbs_count_what_they_say(metrics: Metrics) -> None:
    metrics.batch_received(COMPANY, "historical", 42)
    metrics.pull_failed(COMPANY, "historical")
    metrics.reconnected()
    labels = {"company_id": COMPANY, "consumer_type": "historical"}
    assert value(metrics, "daisi_source_batch_messages_bucket", labels | {"le": "50.0"}) == 1
    assert value(metrics, "daisi_source_errors_total", labels) == 1
    assert value(metrics, "daisi_nats_reconnects_total") == 1


@pytest.mark.rule("MET-10")
async def test_page_is_made_while_the_event_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "SLICE", 0.0)
    metrics = Metrics([f"Company{number}" for number in range(5)], version="1")
    metrics.watch_onboarding(lambda: 5)
    page = asyncio.create_task(metrics.page())
    turns = 0
    while not page.done():
        await asyncio.sleep(0)
        # What changes meanwhile breaks nothing.
        metrics.agent_seen("Company1", UPSERT, "agent", f"jid {turns}")
        turns += 1
    # One for each series at least.
    assert turns > 1000
    assert b"onboarding_queue_length 5\n" in b"".join(page.result())


def test_two_processes_worth_of_metrics_do_not_meet() -> None:
    """Each object has series of its own, so tests and a second app can live in one process."""
    first, second = (Metrics([COMPANY], version="1") for _ in range(2))
    first.received(COMPANY, UPSERT)
    assert value(second, f"{PREFIX}s_received_total", EVENT) == 0
