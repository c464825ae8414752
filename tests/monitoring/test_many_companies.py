"""A page of a thousand companies: valid, taken by a real Prometheus, and every rule and panel copes with it."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import pytest

from events.subjects import ALL_COMPANIES
from streams.monitoring.exposition import CONTENT_TYPE
from streams.monitoring.metrics import Metrics
from tests.monitoring.dashboards import LOAD_TEST, Panel, dashboards, panels, substituted
from tests.monitoring.environment import RULES
from tests.monitoring.prometheus import Prometheus
from tests.programs import required
from tests.unit.test_metrics_of_many import CONSUMERS, read_gauges, work

COMPANIES: Final = tuple(f"Company{number:04d}" for number in range(1000))
# Of them; a fleet is mostly quiet.
BUSY: Final = COMPANIES[::5]
# That a rule or panel may hold at once.
MOST_SAMPLES: Final = 500_000
# Lines of a panel.
MOST_LINES: Final = 50
# Characters of a query; browsers and proxies cut addresses at some thousands.
LONGEST_QUERY: Final = 2000
# Stays empty as long as there was none.
NOTHING_YET: Final = ("Newest Exhausted Event",)
_EVERY_PANEL: Final = pytest.mark.parametrize("panel", panels(), ids=str)


class Fleet:
    """Metrics of a fleet in good health; everything moves on with each page."""

    def __init__(self) -> None:
        self.metrics = Metrics([], version="1.2.3")
        self.metrics.watch_readiness(self.ready)
        for company in COMPANIES:
            self.metrics.add_company(company)
            self.metrics.exhausted(company, 0, 0.0)
            self.metrics.partitions(company, 2)
        for consumer in CONSUMERS:
            self.metrics.lag(ALL_COMPANIES, consumer, 0, 0)
        self.metrics.dlq_state(ALL_COMPANIES, 0, 0.0)

    async def ready(self) -> dict[str, str]:
        return {}

    def page(self) -> bytes:
        for company in BUSY:
            work(self.metrics, company)
        for consumer in CONSUMERS:
            self.metrics.batch_received(ALL_COMPANIES, consumer, 200)
        return b"".join(asyncio.run(self.metrics.page()))


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """The page, compressed as ours is."""
        body = gzip.compress(self.server.fleet.page(), 1)
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fleet = fleet


@dataclass(frozen=True, slots=True)
class Watched:
    """A Prometheus that has evaluated every rule over a minute of the fleet."""

    prometheus: Prometheus

    def groups(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.prometheus.get("rules")["groups"]
        return found


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    required("prometheus")
    with _Server(Fleet()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        with Prometheus(
            {"tenant_app_A": [address]}, sorted(RULES.glob("*.yml")), interval="5s"
        ) as prometheus:
            # Enough samples for rates and for what was evaluated before.
            prometheus.comes_to(1, "count(count_over_time(daisi_build_info[10m]) >= 5)", within=180)
            yield Watched(prometheus)
        server.shutdown()


def test_the_page_is_valid_and_promtool_finds_nothing_to_say() -> None:
    metrics = Metrics(["KopiNusa"], version="1.2.3")
    work(metrics, "KopiNusa")
    read_gauges(metrics, "KopiNusa")
    metrics.agent_seen("KopiNusa", "v1.messages.upsert", 'a"\\\n', "628@s.whatsapp.net")
    page = b"".join(asyncio.run(metrics.page()))
    done = subprocess.run(
        [required("promtool"), "check", "metrics"], input=page, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_prometheus_has_every_company(watched: Watched) -> None:
    received = "message_event_service_events_received_total"
    found = watched.prometheus.value(f"count(count by (company_id) ({received}))")
    assert found == len(COMPANIES)
    assert watched.prometheus.value("min(min_over_time(up[1m]))") == 1


def test_every_rule_is_evaluated_without_an_error(watched: Watched) -> None:
    rules = [rule for group in watched.groups() for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}


def test_no_rule_and_no_panel_reads_much_of_what_prometheus_allows(watched: Watched) -> None:
    """It ends a query that holds 50 million samples at once."""
    asked = [rule["query"] for group in watched.groups() for rule in group["rules"]]
    asked += [substituted(expression) for panel in panels() for expression in panel.expressions]
    held = {
        query: watched.prometheus.get("query", query=query, stats="all")["stats"]["samples"]["peakSamples"]
        for query in asked
    }
    assert max(held.values()) < MOST_SAMPLES, max(held, key=lambda query: held[query])


def test_no_alert_is_about_a_fleet_in_good_health(watched: Watched) -> None:
    """Neither firing nor about to; the other job of prometheus.yml is not there."""
    active = {
        (alert["labels"]["alertname"], alert["labels"].get("company_id", alert["labels"].get("job")))
        for alert in watched.prometheus.get("alerts")["alerts"]
    }
    # All its busy companies have failures, on purpose.
    ours = {(name, whose) for name, whose in active if whose not in BUSY}
    assert ours <= {("JobWithoutTargets", "tenant_app_B")}


@_EVERY_PANEL
def test_a_panel_draws_a_bounded_number_of_lines_for_all_companies(watched: Watched, panel: Panel) -> None:
    for expression in panel.expressions:
        query = substituted(expression)
        assert len(urllib.parse.quote(query)) < LONGEST_QUERY
        assert len(watched.prometheus.query(query)) <= MOST_LINES, expression


@pytest.mark.parametrize(
    "panel",
    [
        panel
        for panel in panels()
        if panel.body["type"] == "stat" and panel.dashboard != LOAD_TEST and panel.title not in NOTHING_YET
    ],
    ids=str,
)
def test_a_number_is_there_while_nothing_has_failed_yet(watched: Watched, panel: Panel) -> None:
    """Of many companies a series of errors comes with the first error: until then it is 0, and not unknown."""
    for expression in panel.expressions:
        assert watched.prometheus.query(substituted(expression)), expression


def test_all_companies_are_chosen_without_naming_them() -> None:
    for dashboard in dashboards().values():
        assert dashboard.variables["company_id"]["allValue"] == ".*"
        assert not [body for body in dashboard.body["panels"] if body.get("repeat")]
        assert "$__all" in json.dumps(dashboard.variables["company_id"]["current"])
