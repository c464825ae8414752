"""Dashboards and rules tell the truth: a real Prometheus scraped real workers under known traffic.

Each expression of a panel or rule is parsed, what it names is on a live page, and its value is that of the
traffic. Rates are asked for at the moment of a scrape, and every counter began at 0 under Prometheus' eyes: so
`rate` times its window is the very count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml

from events.subjects import EVENT_TYPES, consumer_type
from tests.monitoring import guide
from tests.monitoring.dashboards import (
    DEAD_LETTERS,
    LOAD_TEST,
    OVERVIEW,
    SERVERS,
    Panel,
    dashboards,
    panels,
    substituted,
)
from tests.monitoring.environment import LOADED, RULES, WINDOW, A, B, Environment, set_up
from tests.monitoring.expressions import named
from tests.monitoring.guide import EXAMPLES, Example
from tests.monitoring.increases import MINUTE, Bounds, increases, total
from tests.monitoring.prometheus import Sample
from tests.monitoring.reader import Reader
from tests.series import series

_EVENT: Final = "message_event_service_event"
_DATABASE: Final = "message_event_service_db_operation_duration_seconds"
_UPDATES: Final = ("v1.messages.update", "v1.chats.update", "v1.contacts.update")
# Panels that may be empty after the traffic, and why.
EMPTY: Final[dict[str, str]] = {}
# Metrics that rules and panels name and that are on no page of ours, and whose they are.
FOREIGN: Final = {"up": "Prometheus itself"}
# Selectors that find nothing here, and why.
UNFOUND: Final = {'daisi_source_errors_total{company_id="*"}': "no fleet runs here"}


def _rules() -> dict[str, str]:
    """Every rule's expression by its name."""
    found: dict[str, str] = {}
    for file in sorted(RULES.glob("*.yml")):
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            found |= {rule.get("alert") or rule["record"]: rule["expr"] for rule in group["rules"]}
    return found


def _recorded() -> set[str]:
    return {name for name in _rules() if ":" in name}


_EVERY_PANEL: Final = pytest.mark.parametrize("panel", panels(), ids=str)
_EVERY_RULE: Final = pytest.mark.parametrize("rule", _rules())
_EVERY_EXAMPLE: Final = pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: one.panel)
_BOTH: Final = pytest.mark.parametrize("company", [A, B])


@pytest.fixture(scope="module")
def env(nats_url: str, postgres_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The traffic is over; everything can be asked."""
    with set_up(nats_url, postgres_dsn, tmp_path_factory.mktemp("truth")) as env:
        yield env


@pytest.fixture
def reader(env: Environment, company: str) -> Reader:
    """For the company of the test."""
    return Reader(env, company)


def _key(sample: Sample) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in sample.labels.items() if item[0] != "__name__"))


class Live:
    """What there is to be named."""

    def __init__(self, env: Environment) -> None:
        self._prometheus = env.prometheus
        self._labels: dict[str, set[str]] = {}
        everything = set(self._prometheus.get("label/__name__/values"))
        pages = {name for page in env.pages.values() for name, _ in series(page)}
        loadgen = {name for name in everything if name.startswith("loadgen_")}
        self._metrics = pages | loadgen | (everything & _recorded()) | set(FOREIGN)

    def check(self, expression: str) -> None:
        """Fails if an expression names a metric or a label that is on no live page, or values that none has."""
        asked = named(expression)
        assert asked.metrics <= self._metrics
        assert asked.labels <= asked.made.union(*map(self._labels_of, asked.metrics))
        nothing = {selector for selector in asked.selectors if not self._prometheus.series(selector)}
        assert nothing <= set(UNFOUND)

    def _labels_of(self, metric: str) -> set[str]:
        if metric not in self._labels:
            self._labels[metric] = set().union(*self._prometheus.series(metric))
        return self._labels[metric]


@pytest.fixture(scope="module")
def live(env: Environment) -> Live:
    """All that is on the pages."""
    return Live(env)


@_EVERY_PANEL
def test_a_panel_names_only_what_is_on_a_live_page(live: Live, panel: Panel) -> None:
    for expression in panel.expressions:
        live.check(substituted(expression))


@_EVERY_RULE
def test_a_rule_names_only_what_is_on_a_live_page(live: Live, rule: str) -> None:
    live.check(_rules()[rule])


def test_prometheus_evaluates_every_rule_without_an_error(env: Environment) -> None:
    groups = env.prometheus.get("rules")["groups"]
    evaluated: dict[str, Any] = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(evaluated) == set(_rules())
    assert {name: rule["lastError"] for name, rule in evaluated.items() if rule.get("lastError")} == {}
    assert {rule["health"] for rule in evaluated.values()} == {"ok"}


@_EVERY_PANEL
def test_a_panel_shows_something(env: Environment, panel: Panel) -> None:
    for expression in panel.expressions:
        samples = env.prometheus.query(substituted(expression), env.latest(panel.dashboard))
        found = [sample for sample in samples if math.isfinite(sample.value)]
        assert found or str(panel) in EMPTY, expression


@_EVERY_PANEL
def test_a_panel_shows_no_nonsense_while_the_system_is_idle(env: Environment, panel: Panel) -> None:
    for expression in panel.expressions:
        for sample in env.prometheus.query(substituted(expression), env.idle):
            assert math.isfinite(sample.value), expression


@_EVERY_PANEL
def test_a_panel_shows_the_chosen_company_only(env: Environment, panel: Panel) -> None:
    for expression in panel.expressions:
        for sample in env.prometheus.query(substituted(expression, company=B), env.latest(panel.dashboard)):
            assert "$company_id" not in expression or sample.labels.get("company_id", B) == B


def test_the_choices_are_there(env: Environment) -> None:
    for dashboard in dashboards().values():
        choices: dict[str, set[str]] = {}
        for name, variable in dashboard.variables.items():
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
                assert found is not None
                metric, label = found.groups()
                choices[name] = set(env.prometheus.get(f"label/{label}/values", **{"match[]": metric}))
        assert choices["company_id"] == {A, B, LOADED}
        assert choices["consumer_type"] == {"realtime", "historical"}
        assert choices.get("job", {"tenant_app_A"}) <= {"tenant_app_A", "tenant_app_B"}


@_EVERY_EXAMPLE
@_BOTH
def test_a_panel_shows_what_the_guides_example_query_answers(reader: Reader, example: Example) -> None:
    expected = {_key(sample): pytest.approx(sample.value) for sample in reader.answers(example)}
    assert expected
    assert {_key(sample): sample.value for sample in reader.lines(OVERVIEW, example.panel)} == expected


@_BOTH
def test_the_example_event_rate_is_that_of_the_deliveries(reader: Reader) -> None:
    """NATS has counted them, too; what is not an update comes exactly once."""
    rates = reader.answers_by("event_type", guide.EVENT_RATE)
    shown = {event_type: rate * WINDOW for event_type, rate in rates.items()}
    assert set(shown) == set(EVENT_TYPES)
    assert sum(shown.values()) == pytest.approx(reader.facts.deliveries)
    for event_type in set(EVENT_TYPES) - set(_UPDATES):
        once = reader.facts.stored[event_type] + reader.facts.dead_lettered[event_type]
        assert shown[event_type] == pytest.approx(once), event_type


@_BOTH
def test_the_example_failure_rate_is_that_of_the_traffic(reader: Reader) -> None:
    shown = reader.answers_by("event_type", guide.FAILURE_RATE)
    rates = reader.answers_by("event_type", guide.EVENT_RATE)
    for event_type, percent in shown.items():
        stored, bad = reader.facts.stored[event_type], reader.facts.dead_lettered[event_type]
        if event_type in _UPDATES:  # they are put off as well
            assert percent == pytest.approx((1 - stored / (rates[event_type] * WINDOW)) * 100)
        else:
            assert percent == pytest.approx(100 * bad / (stored + bad)), event_type
    assert any(shown.values())


@_BOTH
def test_the_example_percentile_is_that_of_the_observations(reader: Reader) -> None:
    shown = reader.answers_by("event_type", guide.DURATION)
    for event_type, value in shown.items():
        expected = reader.quantile(0.95, f"{_EVENT}_processing_duration_seconds", event_type=event_type)
        assert value == pytest.approx(expected), event_type
    assert set(shown) == {
        name for name in EVENT_TYPES if reader.facts.stored[name] + reader.facts.dead_lettered[name]
    }


@_BOTH
def test_the_example_drop_rate_is_that_of_the_rows_in_exhausted_events(reader: Reader) -> None:
    (rate,) = reader.answers_by("company_id", guide.DROP_RATE).values()
    assert rate * WINDOW == pytest.approx(reader.facts.exhausted)
    assert reader.facts.exhausted > 0


@_BOTH
def test_the_example_database_error_rate_is_that_of_the_operations(reader: Reader) -> None:
    shown = reader.answers_by("operation", guide.DATABASE_ERRORS)
    for operation, percent in shown.items():
        labels = {"company_id": reader.company, "operation": operation}
        errors = reader.page.value(f"{_DATABASE}_count", **labels, status="error")
        assert percent == pytest.approx(100 * errors / reader.page.value(f"{_DATABASE}_count", **labels))
    # One message is refused by A's database, each time anew; B's refuses nothing.
    assert (shown["UpsertMessage"] > 0) == (reader.company == A)
    assert sum(percent > 0 for percent in shown.values()) == (reader.company == A)


@_BOTH
def test_the_example_queue_lengths_are_0_when_all_is_done(reader: Reader) -> None:
    for example in (guide.DLQ_QUEUE, guide.ONBOARDING_QUEUE):
        assert [sample.value for sample in reader.answers(example)] == [0]


@_BOTH
def test_the_overview_tells_how_much_is_stored(reader: Reader) -> None:
    stored, deliveries = sum(reader.facts.stored.values()), reader.facts.deliveries
    assert reader.value(OVERVIEW, "ACK Success Rate (%)") == pytest.approx(100 * stored / deliveries)
    assert reader.value(OVERVIEW, "Failure/DLQ Rate (%)") == pytest.approx(100 * (1 - stored / deliveries))
    assert reader.value(OVERVIEW, "Events Waiting") == 0
    assert reader.value(OVERVIEW, "Exhausted Events") == reader.facts.exhausted
    assert reader.value(OVERVIEW, "Workers Ready (%)") == 100


@_BOTH
def test_rates_over_a_minute_are_those_of_the_counters(reader: Reader) -> None:
    """Against the raw samples of that minute; what was before its first sample is unknown to everybody."""
    received = f'{_EVENT}s_received_total{{company_id="{reader.company}"}}'
    expected = reader.increases(received, "event_type")
    rates = reader.by("event_type", OVERVIEW, "Event Throughput (/sec)")
    assert set(rates) == set(expected)
    for name, rate in rates.items():
        assert expected[name].hold(rate * MINUTE), (name, rate * MINUTE, expected[name])
    assert sum(rates.values()) > 0


@_BOTH
def test_outcomes_are_those_of_the_traffic(reader: Reader) -> None:
    dead_lettered = sum(reader.facts.dead_lettered.values())
    for title in ("Given Up by Cause (/sec)", "Given Up by Type (/sec)"):
        total = sum(sample.value for sample in reader.lines(DEAD_LETTERS, title)) * WINDOW
        assert total == pytest.approx(dead_lettered), title
    by_type = reader.by("event_type", DEAD_LETTERS, "Given Up by Type (/sec)")
    assert {name: round(rate * WINDOW) for name, rate in by_type.items()} == {
        name: reader.facts.dead_lettered[name] for name in EVENT_TYPES
    }
    causes = reader.by("error_type", OVERVIEW, "Causes of Failures (/sec)")
    failed = reader.facts.deliveries - sum(reader.facts.stored.values())
    assert sum(causes.values()) * WINDOW == pytest.approx(failed)
    assert round(causes["database"] * WINDOW) == (1 if reader.company == A else 0)
    assert causes["panic"] == 0
    put_off = reader.value(SERVERS, "Deliveries Put Off (%)")
    assert put_off == pytest.approx(100 * (failed - dead_lettered) / reader.facts.deliveries)


@_BOTH
def test_dead_letters_are_counted_as_nats_and_postgresql_count_them(reader: Reader) -> None:
    facts = reader.facts
    assert reader.value(DEAD_LETTERS, "Exhausted Events") == facts.exhausted
    assert reader.value(DEAD_LETTERS, "Given Up in the Last Hour") == pytest.approx(facts.exhausted)
    assert reader.value(DEAD_LETTERS, "Dead Letters Waiting") == facts.waiting
    assert (reader.value(DEAD_LETTERS, "Oldest Dead Letter") > 0) == facts.patient
    assert 0 < reader.value(DEAD_LETTERS, "Newest Exhausted Event") < 600
    outcomes = [reader.value(DEAD_LETTERS, "Replays by Outcome (/sec)", place) * WINDOW for place in range(3)]
    ended = facts.letters - facts.waiting
    assert outcomes == [pytest.approx(facts.cured), pytest.approx(facts.put_off), pytest.approx(ended)]
    submitted = reader.value(DEAD_LETTERS, "Envelopes Handed to Workers (/sec)") * WINDOW
    assert submitted == pytest.approx(sum(outcomes))
    assert reader.value(DEAD_LETTERS, "Dropped (/sec)") * WINDOW == pytest.approx(facts.exhausted)


@_BOTH
def test_onboarding_is_that_of_the_messages(reader: Reader) -> None:
    by_status = reader.by("status", DEAD_LETTERS, "Onboarding Tasks by Result (/sec)")
    ended = {status: round(rate * WINDOW) for status, rate in by_status.items()}
    assert ended["success_created"] + ended["success_exists"] == reader.facts.onboarded
    assert ended["success_created"] > 0
    submitted = reader.value(DEAD_LETTERS, "Onboarding Tasks Submitted (/sec)") * WINDOW
    assert submitted == pytest.approx(sum(ended.values()))
    failures = 100 * (ended["error_db"] + ended["error_other"]) / sum(ended.values())
    assert reader.value(DEAD_LETTERS, "Onboarding Failures (%)") == pytest.approx(failures)


@_BOTH
def test_write_latency_is_that_of_successful_writes_in_milliseconds(reader: Reader) -> None:
    for place, share in enumerate((0.5, 0.95)):
        shown = reader.by("operation", OVERVIEW, "DB Write Latency (p50/p95)", place)
        assert {"UpsertMessage", "UpsertChat", "SaveExhaustedEvent", "BulkUpsertMessages"} <= set(shown)
        for operation, value in shown.items():
            assert not operation.startswith("Find")
            expected = reader.quantile(share, _DATABASE, operation=operation, status="success")
            assert value == pytest.approx(1000 * expected), operation


@_BOTH
def test_the_servers_are_seen_as_they_are(reader: Reader) -> None:
    assert set(reader.by("part", SERVERS, "Ready by Part").values()) == {1}
    assert set(reader.by("consumer_type", SERVERS, "Pending Events by Consumer").values()) == {0}
    unsettled = reader.by("consumer_type", SERVERS, "Unacknowledged Events by Consumer")
    assert unsettled == {"realtime": 0, "historical": 0, "dlq": reader.facts.waiting}
    assert reader.value(SERVERS, "Partitions Ahead (months)") >= 1
    assert set(reader.by("consumer_type", SERVERS, "Replicas Disagree (events)").values()) == {0}
    mean = reader.by("consumer_type", SERVERS, "Mean Batch Size")
    for consumer, value in mean.items():
        labels = {"company_id": reader.company, "consumer_type": consumer}
        messages = reader.page.value("daisi_source_batch_messages_sum", **labels)
        assert value == pytest.approx(
            messages / reader.page.value("daisi_source_batch_messages_count", **labels)
        )


def test_choosing_a_consumer_leaves_the_other_one_out(env: Environment) -> None:
    expression = dashboards()[OVERVIEW].panel(guide.EVENT_RATE.panel).expressions[0]
    for consumer in ("realtime", "historical"):
        samples = env.prometheus.query(substituted(expression, company=A, consumer=consumer), env.moment(A))
        types = {sample.labels["event_type"] for sample in samples}
        assert types == {name for name in EVENT_TYPES if consumer_type(name) == consumer}


def test_the_load_test_shows_what_jetstream_has_confirmed(env: Environment) -> None:
    """It was scraped while the load went on: its panels are compared with the counters of the very same scrapes."""
    dashboard, at = dashboards()[LOAD_TEST], env.moments["loadgen"]

    def ask(title: str) -> list[Sample]:
        return env.prometheus.query(substituted(dashboard.panel(title).expressions[0]), at)

    def counted(name: str) -> float:
        return env.prometheus.value(f"sum(loadgen_{name}_total)", at)

    def rise(name: str) -> Bounds:
        return total(increases(env.prometheus, f"loadgen_{name}_total", at, "subject").values())

    (published,) = ask("Published in All")
    assert 0 < published.value == counted("messages_published") <= env.confirmed_load
    assert counted("messages_attempted") - counted("publish_errors") >= published.value
    (share,) = ask("Success Rate")
    expected = rise("messages_published").share_of(rise("messages_attempted"))
    assert expected.hold(share.value), (share.value, expected)
    (attempted,), (confirmed,), (errors,) = (
        ask(f"{name}/sec") for name in ("Messages Attempted", "Messages Published", "Publish Errors")
    )
    assert {sample.labels["company_id"] for sample in (attempted, confirmed, errors)} == {LOADED}
    assert rise("messages_attempted").hold(attempted.value * MINUTE)
    assert rise("messages_published").hold(confirmed.value * MINUTE)
    assert confirmed.value > 0
    assert errors.value == counted("publish_errors") == 0
    by_subject = ask("Messages Published/sec by Subject")
    assert sum(sample.value for sample in by_subject) == pytest.approx(confirmed.value)
    assert {sample.labels["subject"] for sample in by_subject} <= set(EVENT_TYPES)


def test_alerts_are_about_what_has_happened_here(env: Environment) -> None:
    for name in ("ExhaustedEvents", "DlqTasksDropped"):
        firing = f'ALERTS{{alertname="{name}", alertstate="firing"}}'
        env.prometheus.comes_to(2, f"count({firing})")
        assert {one.labels["company_id"] for one in env.prometheus.query(firing)} == {A, B}
