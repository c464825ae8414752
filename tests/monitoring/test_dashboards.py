"""The dashboards and their provisioning as files: what Grafana would trip over, and what a reader needs.

Whether they tell the truth is in test_truth.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any, Final
from xml.etree import ElementTree

import promql_parser
import pytest
import yaml
from promql_parser import AggregateExpr, BinaryExpr, Expr, NumberLiteral, ParenExpr

from testkit.worker import ROOT
from tests.monitoring.dashboards import (
    DATASOURCE,
    DEAD_LETTERS,
    FOLDER,
    LOAD_TEST,
    OVERVIEW,
    SERVERS,
    Dashboard,
    Panel,
    dashboards,
    panels,
    substituted,
    variables_in,
)
from tests.monitoring.expressions import named
from tests.monitoring.guide import EXAMPLES
from tests.unit.documented_metrics import DOCUMENTED

PROVISIONING: Final = ROOT / "grafana" / "provisioning"
_UIDS: Final = {
    OVERVIEW: "wh-events-overview",
    DEAD_LETTERS: "wh-dead-letters-onboarding",
    SERVERS: "wh-postgresql-jetstream",
    LOAD_TEST: "wh-load-test",
}
# Typed by hand: title, kind, unit. `Goroutines` of the existing service is the last one here.
_PANELS: Final = {
    "ACK Success Rate (%)": ("stat", "percent"),
    "Failure/DLQ Rate (%)": ("stat", "percent"),
    "Event Throughput (/sec)": ("timeseries", "ops"),
    "Event Processing Duration (p50/p95/p99)": ("timeseries", "s"),
    "DB Write Latency (p50/p95)": ("timeseries", "ms"),
    "DB Operation Rate (/sec)": ("timeseries", "ops"),
    "Avg CPU Usage (%) per Job": ("timeseries", "percent"),
    "Avg Resident Memory per Job": ("timeseries", "bytes"),
    "DLQ Fetch Errors/sec": ("timeseries", "ops"),
    "Onboarding Queue Length": ("stat", "short"),
    "DLQ Retries & Drops (/sec)": ("timeseries", "ops"),
    "Avg Open Files and Connections per Job": ("timeseries", "short"),
}
_LOAD_TEST: Final = ("Messages Attempted/sec", "Messages Published/sec", "Publish Errors/sec", "Success Rate")
_SHARED: Final = ("daisi_consumer_", "daisi_dlq_", "daisi_exhausted_", "daisi_partition_")
_EVERY: Final = pytest.mark.parametrize("dashboard", dashboards().values(), ids=lambda one: one.file.stem)
_EVERY_PANEL: Final = pytest.mark.parametrize("panel", panels(), ids=str)


def test_the_datasource_is_provisioned_with_the_uid_that_the_dashboards_use() -> None:
    read = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))
    (datasource,) = read["datasources"]
    assert datasource["uid"] == DATASOURCE
    assert (datasource["name"], datasource["type"], datasource["access"]) == (
        "Prometheus",
        "prometheus",
        "proxy",
    )
    assert datasource["url"] == "http://prometheus:9090"
    assert (datasource["isDefault"], datasource["editable"]) == (True, False)


def test_grafanas_smallest_step_is_the_scrape_interval() -> None:
    datasource = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))
    scraped = yaml.safe_load((ROOT / "prometheus.yml").read_text(encoding="utf-8"))
    interval = datasource["datasources"][0]["jsonData"]["timeInterval"]
    assert interval == scraped["global"]["scrape_interval"]


def test_the_provider_loads_the_folder_of_the_dashboards() -> None:
    read = yaml.safe_load((PROVISIONING / "dashboards" / "provider.yml").read_text(encoding="utf-8"))
    (provider,) = read["providers"]
    assert (provider["type"], provider["orgId"], provider["folder"]) == ("file", 1, "")
    assert (provider["disableDeletion"], provider["allowUiUpdates"]) == (False, True)
    assert provider["updateIntervalSeconds"] == 30
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_there_are_four_dashboards_with_fixed_uids() -> None:
    assert {title: one.body["uid"] for title, one in dashboards().items()} == _UIDS


@_EVERY
def test_a_dashboard_is_one_that_a_current_grafana_loads_as_it_is(dashboard: Dashboard) -> None:
    text = dashboard.file.read_text(encoding="utf-8")
    assert "${DS_" not in text
    assert "__inputs" not in dashboard.body
    assert "id" not in dashboard.body
    assert dashboard.body["schemaVersion"] == 41
    # As a person would leave it, so that a change is a small difference.
    assert text == json.dumps(dashboard.body, indent=2, ensure_ascii=False) + "\n"


@_EVERY
def test_everything_asks_the_provisioned_datasource(dashboard: Dashboard) -> None:
    asked = [one["datasource"] for one in dashboard.variables.values() if one["type"] == "query"]
    for panel in dashboard.panels:
        asked += [panel.body["datasource"], *(target["datasource"] for target in panel.body["targets"])]
    assert {(one["type"], one["uid"]) for one in asked} == {("prometheus", DATASOURCE)}


@_EVERY
def test_company_and_consumer_type_can_be_chosen(dashboard: Dashboard) -> None:
    for name in ("company_id", "consumer_type"):
        variable = dashboard.variables[name]
        source = f"label_values(message_event_service_events_received_total, {name})"
        assert (variable["definition"], variable["query"]["query"]) == (source, source)
        assert (variable["includeAll"], variable["multi"]) == (True, False)
        assert variable["current"]["value"] == "$__all"


@_EVERY
def test_every_variable_is_used_and_every_used_one_is_there(dashboard: Dashboard) -> None:
    used = set(variables_in(json.dumps([dashboard.body["panels"], dashboard.body["links"]])))
    assert used == set(dashboard.variables)


@_EVERY
def test_ids_and_titles_are_unique_and_no_panel_covers_another(dashboard: Dashboard) -> None:
    every = dashboard.body["panels"]
    assert len({one["id"] for one in every}) == len(every)
    titles = [panel.title for panel in dashboard.panels]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for one in every:
        place = one["gridPos"]
        assert place["x"] + place["w"] <= 24, one["title"]
        cells = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
            )
        )
        assert not cells & taken, one["title"]
        taken |= cells
    assert every == sorted(every, key=lambda one: (one["gridPos"]["y"], one["gridPos"]["x"]))


@_EVERY
def test_rows_ask_questions_and_none_is_closed(dashboard: Dashboard) -> None:
    rows = [one for one in dashboard.body["panels"] if one["type"] == "row"]
    assert dashboard.body["panels"][0]["type"] == "row"
    assert all(row["title"].endswith("?") and not row["collapsed"] for row in rows)
    if dashboard.title != LOAD_TEST:
        assert dashboard.rows[0] == "Are users hurt?"


@_EVERY_PANEL
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: Panel) -> None:
    assert panel.title
    assert panel.unit
    assert panel.body["description"].endswith(".")
    references = [target["refId"] for target in panel.body["targets"]]
    assert len(set(references)) == len(references) >= 1


@_EVERY_PANEL
def test_a_panel_hides_nothing_behind_a_zero(panel: Panel) -> None:
    for expression in panel.expressions:
        assert "vector(" not in expression
        assert "absent(" not in expression


@_EVERY_PANEL
def test_a_panel_divides_by_nothing_that_is_zero_when_the_system_is_idle(panel: Panel) -> None:
    def check(part: Expr) -> None:
        if isinstance(part, BinaryExpr) and "/" in str(part.op):
            below = part.rhs
            guarded = isinstance(below, ParenExpr) and ">" in str(below.prettify())
            # `count` has no value of 0: it has none then.
            counted = isinstance(below, AggregateExpr) and "count" in str(below.op)
            assert guarded or counted or isinstance(below, NumberLiteral), part.prettify()

    for expression in panel.expressions:
        promql_parser.walk(promql_parser.parse(substituted(expression)), check)


@_EVERY_PANEL
def test_what_every_replica_reads_from_the_servers_is_never_added_up(panel: Panel) -> None:
    """Three replicas would show three times the lag."""
    for expression in panel.expressions:
        shared: set[str] = set()
        every = {metric for metric in named(substituted(expression)).metrics if metric.startswith(_SHARED)}

        def look(part: Expr, found: set[str] = shared) -> None:
            if isinstance(part, AggregateExpr) and str(part.op) in ("max", "min"):
                found |= named(part.expr.prettify()).metrics

        promql_parser.walk(promql_parser.parse(substituted(expression)), look)
        assert every <= shared


@_EVERY_PANEL
def test_a_legend_names_only_labels_that_its_expression_keeps(panel: Panel) -> None:
    for target in panel.body["targets"]:
        kept = named(substituted(target["expr"])).labels | {"job", "instance"}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept


def test_the_first_row_changes_its_colour_when_users_are_hurt() -> None:
    for title in (OVERVIEW, SERVERS):
        first = [panel for panel in dashboards()[title].panels if panel.body["gridPos"]["y"] == 1]
        for panel in first:
            assert len(panel.body["fieldConfig"]["defaults"]["thresholds"]["steps"]) > 1, panel.title


def _steps(panel: Panel) -> dict[str, float | None]:
    steps: list[dict[str, Any]] = panel.body["fieldConfig"]["defaults"]["thresholds"]["steps"]
    return {step["color"]: step["value"] for step in steps}


def test_the_overview_has_every_documented_panel() -> None:
    overview = dashboards()[OVERVIEW]
    assert (overview.body["refresh"], overview.body["time"]["from"]) == ("5s", "now-1h")
    for title, (kind, unit) in _PANELS.items():
        panel = overview.panel(title)
        assert (panel.body["type"], panel.unit) == (kind, unit), title
    assert _steps(overview.panel("Failure/DLQ Rate (%)")) == {"green": None, "orange": 1, "red": 5}
    assert _steps(overview.panel("Onboarding Queue Length")) == {"green": None, "yellow": 100, "red": 1000}


def test_the_overview_has_a_panel_for_each_example_query_of_the_guide() -> None:
    overview = dashboards()[OVERVIEW]
    for example in EXAMPLES:
        (expression,) = overview.panel(example.panel).expressions
        asked, shown = named(example.query), named(substituted(expression))
        assert shown.metrics == asked.metrics
        assert shown.labels - {"job", "company_id", "consumer_type"} == asked.labels - {
            "company_id",
            "consumer_type",
        }


def test_the_load_test_has_every_documented_panel() -> None:
    dashboard = dashboards()[LOAD_TEST]
    for title in _LOAD_TEST:
        assert "[1m]" in dashboard.panel(title).expressions[0]


def test_every_metric_of_the_guide_is_on_a_panel() -> None:
    shown: set[str] = set()
    for panel in panels():
        for expression in panel.expressions:
            shown |= named(substituted(expression)).metrics
    for metric in DOCUMENTED:
        series = {f"{metric.name}{suffix}" for suffix in ("", "_bucket", "_count", "_sum")}
        assert series & shown, metric.name


def anchors(text: str) -> set[str]:
    """What a page of Markdown can be entered at: its headings as GitHub names them, and its own ids."""
    found = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        found.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return found


@_EVERY
def test_links_lead_to_a_symptom_of_the_troubleshooting_page(dashboard: Dashboard) -> None:
    runbook = dashboard.variables["runbook"]
    assert (runbook["type"], runbook["query"]) == ("constant", runbook["current"]["value"])
    assert runbook["query"].endswith("/docs/troubleshooting.md")
    known = anchors((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    for panel in dashboard.panels:
        (link,) = panel.body["links"]
        target, _, anchor = link["url"].partition("#")
        assert target == "${runbook}"
        assert anchor in known, f"{panel}: {anchor}"
    assert "${runbook}" in [link["url"] for link in dashboard.body["links"]]


def test_grafana_serves_the_troubleshooting_page_that_the_links_lead_to() -> None:
    """Its folder `public` is open under /public."""
    compose = yaml.safe_load((ROOT / "docker" / "docker-compose.loadtest.yaml").read_text(encoding="utf-8"))
    assert "../docs:/usr/share/grafana/public/docs:ro" in compose["services"]["grafana"]["volumes"]
    (runbook,) = {one.variables["runbook"]["query"] for one in dashboards().values()}
    assert runbook == "/public/docs/troubleshooting.md"


def test_the_folder_holds_nothing_but_dashboards() -> None:
    assert {path.suffix for path in FOLDER.iterdir()} == {".json"}


@_EVERY
def test_a_picture_for_the_docs_shows_every_panel(dashboard: Dashboard) -> None:
    """`make containers ARGS="--render docs/images"` draws it from a run."""
    picture = ROOT / "docs" / "images" / f"dashboard-{dashboard.file.stem}.svg"
    drawn = [element.text for element in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    titles = [text for text in drawn if text and not text.endswith("…")]
    cut = [text[:-1] for text in drawn if text and text.endswith("…")]
    for title in [*dashboard.rows, *(panel.title for panel in dashboard.panels)]:
        assert title in titles or any(title.startswith(text) for text in cut), title
    assert "No data" not in titles
