"""Configuration of Prometheus and Alertmanager, checked by their own tools and by our own rules."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.containers import faster_rules
from tests.programs import required

ROOT: Final = Path(__file__).parents[2]
PROMETHEUS: Final = ROOT / "prometheus.yml"
RULES: Final = sorted((ROOT / "docker" / "prometheus" / "rules").glob("*.yml"))
RULE_TESTS: Final = sorted((ROOT / "docker" / "prometheus" / "tests").glob("*.yml"))
ALERTMANAGER: Final = ROOT / "docker" / "alertmanager" / "alertmanager.yml"
PAGE: Final = "docs/troubleshooting.md"
# The example queries of the monitoring guide, typed by hand. The two queues are added up over replicas.
EXAMPLES: Final = {
    "sum by (event_type, company_id, consumer_type) (rate(message_event_service_events_received_total[5m]))",
    "sum by (event_type, company_id, consumer_type) (rate(message_event_service_events_failed_total[5m])) / "
    "sum by (event_type, company_id, consumer_type) (rate(message_event_service_events_received_total[5m])) "
    "* 100",
    "histogram_quantile(0.95, sum by (le, event_type, company_id, consumer_type) "
    "(rate(message_event_service_event_processing_duration_seconds_bucket[5m])))",
    "sum by (job) (dlq_queue_length)",
    "sum by (company_id) (rate(dlq_tasks_dropped_total[5m]))",
    "sum by (operation, entity, company_id) "
    '(rate(message_event_service_db_operation_duration_seconds_count{status="error"}[5m])) / '
    "sum by (operation, entity, company_id) "
    "(rate(message_event_service_db_operation_duration_seconds_count[5m])) * 100",
    "sum by (job) (onboarding_queue_length)",
}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules(kind: str) -> list[dict[str, Any]]:
    """All rules of a kind: `alert` or `record`."""
    groups = [group for path in RULES for group in load(path)["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


ALERTS: Final = {rule["alert"]: rule for rule in rules("alert")}
JOBS: Final = {job["job_name"]: job for job in load(PROMETHEUS)["scrape_configs"]}
# For each story of the rule tests: when an alert is asked for, and how many of it there are.
Story = list[tuple[float, int]]


def run(*command: str | Path) -> str:
    """What a checker says; fails with its words when it is not content."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600}
    return float(sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([smh])", text)))


def stories(alert: str) -> Iterator[Story]:
    for path in RULE_TESTS:
        for test in load(path)["tests"]:
            asked = [check for check in test.get("alert_rule_test", ()) if check["alertname"] == alert]
            if asked:
                yield sorted((seconds(check["eval_time"]), len(check["exp_alerts"])) for check in asked)


def resolves(story: Story) -> bool:
    firing = [time for time, count in story if count]
    return bool(firing) and any(time > firing[0] and not count for time, count in story)


def anchor(heading: str) -> str:
    """The anchor that a heading has on a page of the repository."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_prometheus_takes_its_configuration_and_all_rules() -> None:
    said = run(required("promtool"), "check", "config", PROMETHEUS)
    assert f"{len(RULES)} rule files found" in said
    run(required("promtool"), "check", "rules", *RULES)


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_rules_of_the_container_check_differ_in_their_times_only(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    (faster := tmp_path / path.name).write_text(faster_rules.rules(text), encoding="utf-8")
    run(required("promtool"), "check", "rules", faster)
    before, after = (
        [rule for group in each["groups"] for rule in group["rules"]] for each in (load(path), load(faster))
    )
    for ours, theirs in zip(before, after, strict=True):
        assert {**theirs, "expr": "", "for": ""} == {**ours, "expr": "", "for": ""}
        assert re.sub(r"\d+[smhd]?\b", "", theirs["expr"]) == re.sub(r"\d+[smhd]?\b", "", ours["expr"])
        assert seconds(theirs.get("for", "0s")) * faster_rules.WAITS == seconds(ours.get("for", "0s"))


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_rules_do_what_their_stories_say(path: Path) -> None:
    run(required("promtool"), "test", "rules", path)


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_stories_read_the_shipped_rules(path: Path) -> None:
    named = {(path.parent / name).resolve() for name in load(path)["rule_files"]}
    assert named <= set(RULES)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_fires_stays_silent_and_resolves_in_a_story(alert: str) -> None:
    told = list(stories(alert))
    assert any(count for story in told for _, count in story), "never fires"
    assert any(all(not count for _, count in story) for story in told), "no story where it stays silent"
    assert any(resolves(story) for story in told), "never resolves"


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_says_how_bad_it_is_what_users_see_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    summary = rule["annotations"]["summary"]
    assert re.search(r"\$labels\.(company_id|job) ", summary), "whose users?"
    # A person reads it on a telephone.
    assert len(re.sub(r"\{\{.*?\}\}", "KopiNusa01", summary)) <= 80
    assert not re.search(r"\w_total|_seconds|JetStream|PostgreSQL", summary)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_its_section_on_the_page_it_points_to(alert: str) -> None:
    words = re.findall(r"[A-Z][a-z]+", alert)
    assert "".join(words) == alert
    section = "-".join(words).lower()
    assert ALERTS[alert]["annotations"]["runbook_url"] == f"{PAGE}#{section}"
    headings = re.findall(r"^#+ (.+)$", (ROOT / PAGE).read_text(), re.MULTILINE)
    # A second heading of the same name would have another anchor.
    assert [anchor(heading) for heading in headings].count(section) == 1


@pytest.mark.parametrize("alert", ALERTS)
def test_no_alert_is_about_what_a_replica_that_has_left_said_last(alert: str) -> None:
    """A recorded name (with colons) is of all replicas that there are; `last_over_time` remembers on purpose."""
    of_each_replica = re.findall(r"(?:min|max|avg)_over_time\((\w+)\[\w+\]\)(.*)", ALERTS[alert]["expr"])
    for metric, rest in of_each_replica:
        assert rest.startswith(f" and {metric})"), metric


def test_names_are_given_once() -> None:
    names = Counter(
        rule.get("alert") or rule["record"] for kind in ("alert", "record") for rule in rules(kind)
    )
    assert set(names.values()) == {1}


def test_every_example_query_of_the_guide_is_recorded() -> None:
    recorded = {" ".join(rule["expr"].split()) for rule in rules("record")}
    assert recorded >= EXAMPLES


@pytest.mark.parametrize("rule", rules("record"), ids=lambda rule: rule["record"])
def test_recorded_names_say_level_metric_and_operation(rule: dict[str, Any]) -> None:
    level, metric, operation = rule["record"].split(":")
    [kept, *same] = re.findall(r" by \(([^)]+)\)", rule["expr"])
    assert set(same) <= {kept}
    # `le` is used up by the quantile.
    labels = [label for label in kept.split(", ") if label != "le"]
    assert level == "_".join(re.sub(r"_id$|(?<=consumer)_type$", "", label) for label in labels)
    assert re.fullmatch(r"[a-z_]+", metric)
    assert re.fullmatch(r"rate5m|percent_rate5m|p95_rate5m|sum|max", operation)


@pytest.mark.parametrize("company", ["A", "B"])
def test_workers_are_scraped_as_the_guide_shows(company: str) -> None:
    assert load(PROMETHEUS)["global"]["scrape_interval"] == "15s"
    job = JOBS[f"tenant_app_{company}"]
    assert job["metrics_path"] == "/metrics"
    [found] = job["dns_sd_configs"]
    # A replica is found, or missed, at the next scrape.
    assert found == {
        "names": [f"tenant_app_{company}"], "type": "A", "port": 8080, "refresh_interval": "15s"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "instance"),
    [
        ("tenant_app_A;172.18.0.7:8080", "tenant_app_A/172.18.0.7"),
        ("workers.shop.svc.;10.1.2.3:8080", "workers.shop.svc/10.1.2.3"),
        ("tenant_app_A;[fd00::7]:8080", "tenant_app_A/[fd00::7]"),
    ],
)
def test_instances_found_by_dns_have_readable_names(found: str, instance: str) -> None:
    by_dns = [job for job in JOBS.values() if "dns_sd_configs" in job]
    assert len(by_dns) == 3
    for job in by_dns:
        [rule] = job["relabel_configs"]
        assert rule["source_labels"] == ["__meta_dns_name", "__address__"]
        assert rule["target_label"] == "instance"
        match = re.fullmatch(rule["regex"], found)
        assert match is not None
        assert match.expand(re.sub(r"\$(\d)", r"\\\1", rule["replacement"])) == instance


def test_nats_is_scraped_through_its_exporter_only() -> None:
    """Its own port 8222 is JSON, a target that is always down."""
    targets = [
        target
        for job in JOBS.values()
        for group in job.get("static_configs", ())
        for target in group["targets"]
    ]
    assert "nats_exporter:7777" in targets
    assert not [target for target in targets if target.endswith(":8222")]


def test_alerts_go_to_the_alertmanager_that_is_watched() -> None:
    [manager] = load(PROMETHEUS)["alerting"]["alertmanagers"]
    assert manager["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    assert JOBS["alertmanager"]["static_configs"] == manager["static_configs"]


def test_jobs_that_must_have_targets_are_the_workers_jobs() -> None:
    named = re.findall(r'job="(\w+)"', ALERTS["JobWithoutTargets"]["expr"])
    assert named == [name for name in JOBS if name.startswith("tenant_app_")]


def test_rules_beside_those_of_the_jobs_work_with_any_discovery() -> None:
    for rule in [*rules("alert"), *rules("record")]:
        if rule.get("alert") != "JobWithoutTargets":
            assert not re.search(r"job\s*[=!]", rule["expr"])


def test_alertmanager_takes_its_configuration() -> None:
    run(required("amtool"), "check-config", ALERTMANAGER)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_reaches_its_receiver(alert: str) -> None:
    severity = ALERTS[alert]["labels"]["severity"]
    receiver = "at-once" if severity == "critical" else "working-hours"
    if alert in {"ExhaustedEvents", "DlqTasksDropped"}:
        receiver = "given-up-events"
    labels = (f"alertname={alert}", f"severity={severity}", "company_id=KopiNusa01")
    said = run(required("amtool"), "config", "routes", "test", f"--config.file={ALERTMANAGER}", *labels)
    assert said.split() == [receiver]


def matchers() -> Iterator[tuple[str, str]]:
    """Label and value, of every matcher of the routes and the inhibitions."""
    config = load(ALERTMANAGER)
    texts = [text for route in config["route"]["routes"] for text in route["matchers"]]
    for rule in config["inhibit_rules"]:
        texts += [*rule["source_matchers"], *rule["target_matchers"]]
    for text in texts:
        match = re.fullmatch(r'(\w+)=~?"(.+)"', text)
        assert match is not None, text
        yield from ((match[1], name) for name in match[2].split("|"))


def test_alertmanager_names_only_alerts_and_severities_that_exist() -> None:
    named = set(matchers())
    severities = {rule["labels"]["severity"] for rule in ALERTS.values()}
    assert {value for label, value in named if label == "alertname"} <= set(ALERTS)
    assert {value for label, value in named if label == "severity"} <= severities


@pytest.mark.parametrize("inhibition", load(ALERTMANAGER)["inhibit_rules"])
def test_only_alerts_of_the_same_company_are_held_back(inhibition: dict[str, Any]) -> None:
    assert "company_id" in inhibition["equal"]
    for text in (*inhibition["source_matchers"], *inhibition["target_matchers"]):
        for alert in text.partition('"')[2].rstrip('"').split("|"):
            # An alert without the label would be held back by any other without it.
            assert "$labels.company_id" in ALERTS[alert]["annotations"]["summary"]
