"""/metrics of a worker that has seen nothing yet, name by name and label by label ."""

from __future__ import annotations

import re
import urllib.request
from collections import defaultdict
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import builders
from tests.acceptance.company_probe import CompanyProbe
from tests.acceptance.conftest import Launch
from tests.unit.documented_metrics import (
    DOCUMENTED,
    HISTORICAL,
    ONBOARDING_STATUSES,
    OPERATIONS,
    REALTIME,
    Documented,
)

_ACTIONS = "message_event_service_event_processing_actions_total"
_WITH_AGENT = "message_event_service_event_with_agent_received_total"
_UPDATES = {"v1.messages.update", "v1.chats.update", "v1.contacts.update"}
# What can end in an envelope, or beside it: anything but success.
_FAILURES = {"database", "validation", "timeout", "unmarshal", "panic", "unknown"}
# Each action with its possible error types; an update may find no row besides.
_OUTCOMES = {
    "ack_success": {"none"},
    "nack_retryable": {"database", "timeout"},
    "dlq_published_ack_success": {*_FAILURES, "nats"},
    "nack_fatal": _FAILURES,
    "nak_dlq_publish_fail": {"nats"},
    # Every event has an envelope, so this one stays at 0; the unit tests cover it.
    "nak_dlq_marshal_fail": {"unknown"},
}
_MISSING_ROW = ("nack_retryable", "dlq_published_ack_success", "nack_fatal")
# The worker asks for dead letters from its start on.
_RUNNING = {"dlq_fetch_requests_total"}

Labels = tuple[tuple[str, str], ...]


def _event_labels(company: str) -> Iterator[dict[str, str]]:
    for event_type in REALTIME | HISTORICAL:
        kind = "historical" if event_type in HISTORICAL else "realtime"
        yield {"event_type": event_type, "company_id": company, "consumer_type": kind}


def _action_labels(company: str) -> Iterator[dict[str, str]]:
    for labels in _event_labels(company):
        for action, error_types in _OUTCOMES.items():
            found = set(error_types)
            if labels["event_type"] in _UPDATES and action in _MISSING_ROW:
                found.add("not_found")
            for error_type in found:
                yield {**labels, "action": action, "error_type": error_type}


def _expected(metric: Documented, company: str) -> set[Labels]:
    """The label values of a metric's children before any event."""
    found: Iterator[dict[str, str]]
    if metric.name == _WITH_AGENT:
        return set()  # its labels come from events
    if metric.name == _ACTIONS:
        found = _action_labels(company)
    elif "event_type" in metric.labels:
        found = _event_labels(company)
    elif "operation" in metric.labels:
        found = (
            {"operation": operation, "entity": entity, "company_id": company, "status": status}
            for operation, entity in OPERATIONS
            for status in ("success", "error")
        )
    elif "status" in metric.labels:
        found = ({"company_id": company, "status": status} for status in ONBOARDING_STATUSES)
    else:
        found = iter([{"company_id": company} if metric.labels else {}])
    return {tuple(sorted(labels.items())) for labels in found}


def _samples(text: str) -> dict[str, dict[Labels, float]]:
    found: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return found


def _types(text: str) -> dict[str, str]:
    lines = (line.split(" ") for line in text.splitlines() if line.startswith("# TYPE"))
    return {line[2]: line[3] for line in lines}


@pytest.mark.rule("MET-3")
def test_every_documented_series_is_there_at_zero_before_any_event(launch: Launch, company: str) -> None:
    text = launch(company).scrape().text
    samples, types = _samples(text), _types(text)
    for metric in DOCUMENTED:
        assert types[metric.name] == metric.kind
        expected = _expected(metric, company)
        if metric.kind == "histogram":
            bounds = [f"{float(bound):g}" for bound in metric.buckets]
            _check_histogram(metric, samples, expected, [*bounds, "+Inf"])
        else:
            assert set(samples[metric.name]) == expected, metric.name
            if metric.name not in _RUNNING:
                assert set(samples[metric.name].values()) <= {0.0}, metric.name
    assert samples["dlq_fetch_requests_total"][()] >= 0


def _check_histogram(
    metric: Documented, samples: dict[str, dict[Labels, float]], expected: set[Labels], bounds: list[str]
) -> None:
    for suffix in ("_count", "_sum"):
        assert set(samples[metric.name + suffix]) == expected, metric.name
    found: dict[Labels, list[str]] = defaultdict(list)
    for labels in samples[f"{metric.name}_bucket"]:
        rest = dict(labels)
        bound = rest.pop("le")
        found[tuple(sorted(rest.items()))].append(bound if bound == "+Inf" else f"{float(bound):g}")
    assert set(found) == expected, metric.name
    assert all(having == bounds for having in found.values()), metric.name
    # The worker's own start asks the database: nothing else was measured yet.
    if "operation" not in metric.labels:
        assert set(samples[f"{metric.name}_count"].values()) == {0.0}, metric.name


@pytest.mark.rule("MET-2")
def test_nothing_undocumented_bears_a_documented_prefix(launch: Launch, company: str) -> None:
    text = launch(company).scrape().text
    documented = {metric.name for metric in DOCUMENTED}
    prefixes = ("message_event_service_", "dlq_", "onboarding_")
    strangers = {name for name in _types(text) if name.startswith(prefixes)} - documented
    assert not strangers
    assert not re.search(r"_created[ {]", text)


def test_what_dashboards_say_of_the_process_is_there(launch: Launch, company: str) -> None:
    samples = _samples(launch(company).scrape().text)
    assert samples["process_cpu_seconds_total"][()] > 0
    assert samples["process_resident_memory_bytes"][()] > 0


@pytest.mark.rule("MET-6")
async def test_metric_4_names_agent_and_jid_and_its_jids_are_capped(
    launch: Launch, probe: CompanyProbe
) -> None:
    worker = launch(probe.company, METRICS_JID_LIMIT="3")
    for number in range(8):
        await probe.publish(
            "v1.chats.upsert", builders.chat(chat_id=f"c{number}", jid=f"62811{number}@s.whatsapp.net")
        )
    await probe.publish("v1.contacts.upsert", builders.contact())
    await probe.settled()
    found = {
        (labels["event_type"], labels["agent_id"], labels["jid"]): value
        for key, value in _samples(worker.scrape().text)[_WITH_AGENT].items()
        if (labels := dict(key))["company_id"] == probe.company
    }
    chats = {jid: value for (event_type, _, jid), value in found.items() if event_type == "v1.chats.upsert"}
    assert chats == {**{f"62811{number}@s.whatsapp.net": 1.0 for number in range(3)}, "other": 5.0}
    assert found["v1.contacts.upsert", builders.AGENT, ""] == 1.0
    assert {agent for _, agent, _ in found} == {builders.AGENT}


@pytest.mark.rule("MET-1")
def test_the_page_is_text_0_0_4(launch: Launch, company: str) -> None:
    worker = launch(company)
    with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}/metrics") as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
