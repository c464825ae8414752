"""What the load test's stack goes through, and what must be true of it at each point."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import asyncpg
import yaml

from events.subjects import Tenant
from tables.queries import quoted
from testkit.worker import ROOT
from tests.containers import faster_rules
from tests.containers.accounting import account
from tests.containers.engine import Engine, EngineError
from tests.containers.stack import DOCKER, Labels, Stack, Unmet, Watch, copied, eventually
from tests.monitoring.dashboards import panels, substituted

LOADTEST: Final = DOCKER / "docker-compose.loadtest.yaml"
DEVELOPMENT: Final = DOCKER / "docker-compose.yaml"
COMPANIES: Final = {"tenant_app_A": "CompanyAAA01", "tenant_app_B": "CompanyBBB02"}
REPLICAS: Final = 3
NATS: Final = "nats://127.0.0.1:4222"
DSN: Final = "postgres://postgres:postgres@127.0.0.1:54322/message_service_loadtest"
RATE: Final = 100
SECONDS: Final = 60
# Panels that have nothing to show here, and why.
EMPTY: Final[dict[str, str]] = {}
_UP: Final = ("tenant_app_A", "tenant_app_B", "prometheus", "alertmanager")
# The services whose images no stand-in is made of; up to the ack wait, and two scrapes.
_ABSENT: Final = "nats_exporter"
_SETTLED: Final = 75.0
_NOTICED: Final = 60.0
# Five attempts, whose delays double.
_GIVEN_UP: Final = 90.0

Say = Callable[[str], None]


class Story:
    """One run of the load test's stack. `work`: a folder for the files that are mounted."""

    def __init__(self, engine: Engine, work: Path, say: Say) -> None:
        self._work = work
        self._say = say
        self._rules = work / "rules"
        self._prometheus = work / "prometheus.yml"
        copied(sorted((DOCKER / "prometheus" / "rules").glob("*.yml")), self._rules)
        self._prometheus.write_bytes((ROOT / "prometheus.yml").read_bytes())
        self.stack = Stack(engine, LOADTEST, self._override())
        self.watch = Watch()

    def run(self) -> None:
        """All of it. Raises `Unmet`, or `EngineError` when a command of the engine fails."""
        try:
            for chapter in (
                self._starts, self._goes_on_under_load, self._scales, self._is_accounted_for,
                self._outages_are_told, self._is_shown, self._departed_replicas_are_forgotten,
            ):  # fmt: skip
                began = time.monotonic()
                chapter()
                self._say(
                    f"{chapter.__name__.strip('_').replace('_', ' ')}: {time.monotonic() - began:.0f} s"
                )
        except Exception:
            self._say(self.stack.compose("ps", "--all") + self.stack.compose("logs", "--tail", "15"))
            raise
        finally:
            self.stack.down()
        if left := self.stack.left_behind():
            raise Unmet(f"after `down` there are {left}")

    def _override(self) -> Path:
        """Mount copies of the configuration of Prometheus, which change later; replay letters within seconds."""
        mounts = [
            f"{self._prometheus}:/etc/prometheus/prometheus.yml:ro",
            f"{self._rules}:/etc/prometheus/docker/prometheus/rules:ro",
        ]
        path = self._work / "override.yaml"
        services: dict[str, Any] = {"prometheus": {"volumes": mounts}}
        services |= {service: {"environment": {"NATS_DLQBASEDELAYMINUTES": "0.02"}} for service in COMPANIES}
        path.write_text(yaml.safe_dump({"services": services}))
        return path

    def _starts(self) -> None:
        """Every replica is healthy and ready, writes nowhere, and is a target that is up."""
        self.stack.compose("up", "--build", "--detach", "--wait", "--wait-timeout", "150", *_UP)
        self.stack.compose("build", "loadgen")
        for service in COMPANIES:
            replicas = self.stack.containers(service)
            if len(replicas) != REPLICAS:
                raise Unmet(f"{service} has {len(replicas)} replicas")
            for container in replicas:
                self._is_sound(container)
        self._has_targets(REPLICAS, REPLICAS)

    def _is_sound(self, container: str) -> None:
        found = self.stack.inspected(container)
        if found["State"]["Health"]["Status"] != "healthy":
            raise Unmet(f"{found['Name']} is {found['State']['Health']}")
        # The image's own health check, which the compose files' takes the place of.
        own = self.stack.inspected(found["Image"])["Config"]["Healthcheck"]["Test"]
        self.stack.engine.docker("exec", container, "sh", "-c", own[-1])
        self.stack.engine.docker("exec", container, "curl", "-sS", "--fail", "http://127.0.0.1:8080/ready")
        try:
            self.stack.engine.docker("exec", "--user", "0", container, "touch", "/app/written")
        except EngineError:
            return
        raise Unmet(f"{found['Name']} can write to its root")

    def _has_targets(self, a: int, b: int) -> None:
        expected = {
            "tenant_app_A": f"{a}/{a}",
            "tenant_app_B": f"{b}/{b}",
            "alertmanager": "1/1",
            "prometheus": "1/1",
        }

        def found() -> Labels:
            return {job: up for job, up in self.watch.targets().items() if job not in {_ABSENT, "loadgen"}}

        eventually("targets", _NOTICED, found, expected)

    def _goes_on_under_load(self) -> None:
        """A replica is killed, NATS and PostgreSQL are restarted: nobody is called."""
        load = self._load(f"{SECONDS}s", ",".join(COMPANIES.values()))
        eventually("events are stored", _NOTICED, lambda: self._stored() > 0, True)
        # Not by the engine, which restarts no container that it was told to kill.
        crashed = self.stack.containers("tenant_app_A")[0]
        os.kill(self.stack.inspected(crashed)["State"]["Pid"], signal.SIGKILL)
        eventually("rows of half the load", 3 * SECONDS, lambda: self._stored() > RATE * SECONDS / 4, True)
        self.stack.compose("restart", "nats")
        self.stack.compose("restart", "postgres")
        said, _ = load.communicate(timeout=4 * SECONDS)
        # Some events may be unconfirmed: NATS was away.
        if "confirmed" not in said:
            raise Unmet(f"the load generator says\n{said[-2000:]}")
        self._has_targets(REPLICAS, REPLICAS)

    def _load(self, duration: str, companies: str, *also: str) -> subprocess.Popen[str]:
        options = ["--rate", str(RATE), "--duration", duration, "--companies", companies, *also]
        return self.stack.started("run", "--rm", "--no-deps", "--use-aliases", "loadgen", *options)

    def _stored(self) -> float:
        return sum(
            value for _, value in self.watch.query("sum(message_event_service_events_processed_total)")
        )

    def _scales(self) -> None:
        """More replicas and fewer are found by Prometheus, and nothing fires."""
        for count in (5, 1):
            self.stack.compose(
                "up", "--detach", "--no-recreate", "--wait", "--scale", f"tenant_app_A={count}", *_UP
            )
            self._has_targets(count, REPLICAS)

    def _is_accounted_for(self) -> None:
        """Every event of the streams has one final place, and until now nobody was called."""
        for company in COMPANIES.values():
            eventually(f"{company} has nothing to do", _SETTLED, partial(self._lag, company), 0)
            report, events = asyncio.run(account(NATS, DSN, company))
            self._say(f"{company}: {events} events in the streams\n{report.text()}")
            if not report.ok or not events:
                raise Unmet(f"{company}: not everything is accounted for")
        fired = [labels for labels in self.watch.firing(over=600) if not self._may_fire(labels)]
        if fired:
            raise Unmet(f"alerts that should not fire: {fired}")

    @staticmethod
    def _may_fire(labels: Labels) -> bool:
        """The exporter of NATS has no stand-in.

        While NATS was away it may not have got an event whose update came later, and was given up: the account knows.
        """
        return labels.get("job") == _ABSENT or labels["alertname"] in {"ExhaustedEvents", "DlqTasksDropped"}

    def _lag(self, company: str) -> float:
        metrics = ("daisi_consumer_pending_messages", "daisi_consumer_unacknowledged_messages")
        expression = " + ".join(
            f'sum(max by (consumer_type) ({name}{{company_id="{company}"}}))' for name in metrics
        )
        return sum(value for _, value in self.watch.query(expression))

    def _is_shown(self) -> None:
        """Every panel of every dashboard has something to show."""
        empty = [str(panel) for panel in panels() if not any(map(self._answer, panel.expressions))]
        if unexpected := sorted(set(empty) ^ set(EMPTY)):
            raise Unmet(f"panels that are empty and should not be, or the other way round: {unexpected}")

    def _answer(self, expression: str) -> list[dict[str, Any]]:
        return self.watch.over(substituted(expression), 600)

    def _outages_are_told(self) -> None:
        """Each outage fires its alert, once, with its company, and resolves. Times of the rules are a tenth."""
        faster_rules.replace(self._rules, self._prometheus)
        self.stack.compose("kill", "--signal", "HUP", "prometheus")
        every = [{"severity": "critical", "company_id": company} for company in COMPANIES.values()]
        for server, alert in (("postgres", "PostgresUnavailable"), ("nats", "NatsUnavailable")):
            self.stack.compose("stop", server)
            self._fires(alert, every)
            self.stack.compose("start", server)
            self._fires(alert, [])
        load = self._load("5s", COMPANIES["tenant_app_A"], "--invalid", "0.2")
        eventually("ExhaustedEvents", _GIVEN_UP, lambda: bool(self.watch.firing("ExhaustedEvents")), True)
        load.communicate(timeout=_NOTICED)
        named = {(one.get("severity"), one.get("company_id")) for one in self.watch.firing("ExhaustedEvents")}
        if named != {("warning", COMPANIES["tenant_app_A"])}:
            raise Unmet(f"ExhaustedEvents has the labels {named}")

    def _fires(self, alert: str, expected: list[Labels]) -> None:
        wanted = sorted(({"alertname": alert, **labels} for labels in expected), key=json.dumps)
        eventually(alert, _NOTICED, lambda: sorted(self.watch.firing(alert), key=json.dumps), wanted)
        eventually(f"{alert} at Alertmanager", _NOTICED, lambda: self._notified(alert), len(expected))

    def _notified(self, alert: str) -> int:
        url = f"http://127.0.0.1:9093/api/v2/alerts?active=true&filter=alertname%3D{alert}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return len(json.load(answer))

    def _departed_replicas_are_forgotten(self) -> None:
        """A company without workers is one page; a new replica does not disagree with those that have left."""
        service, company = "tenant_app_B", COMPANIES["tenant_app_B"]
        self.stack.compose("stop", service)
        self._fires("CompanyWithoutWorker", [{"severity": "critical", "company_id": company}])
        if twice := self.watch.firing("JobWithoutTargets"):
            raise Unmet(f"a second page for one cause: {twice}")
        asyncio.run(_exhaust(company))
        self.stack.compose(
            "up", "--detach", "--wait", "--scale", "tenant_app_A=1", "--scale", f"{service}=1", *_UP
        )
        self._fires("CompanyWithoutWorker", [])
        eventually("1 exhausted event", _NOTICED, lambda: self._exhausted(company), [1.0])
        for _ in self._for(900 / faster_rules.FACTOR):
            if fired := self.watch.firing("ReplicasDisagree"):
                raise Unmet(f"replicas that have left disagree with one that runs: {fired}")

    @staticmethod
    def _for(seconds: float) -> Iterator[None]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            yield
            time.sleep(1)

    def _exhausted(self, company: str) -> list[float]:
        found = self.watch.query(f'max by (company_id) (daisi_exhausted_events{{company_id="{company}"}})')
        return [value for _, value in found]


async def _exhaust(company: str) -> None:
    """Give a company a copy of an exhausted event that another company has."""
    ours, theirs = (quoted(Tenant(name).schema) for name in (company, COMPANIES["tenant_app_A"]))
    connection = await asyncpg.connect(DSN)
    try:
        await connection.execute(
            f"INSERT INTO {ours}.exhausted_events SELECT * FROM {theirs}.exhausted_events LIMIT 1"
        )
    finally:
        await connection.close()


def development(engine: Engine, say: Say) -> None:
    """The compose file for a laptop: its worker becomes ready, and `down` leaves nothing."""
    stack = Stack(engine, DEVELOPMENT)
    try:
        stack.compose("up", "--build", "--detach", "--wait", "--wait-timeout", "150")
        with urllib.request.urlopen("http://127.0.0.1:8080/ready", timeout=5) as answer:
            say(f"the worker of one company answers {answer.status} on /ready")
    finally:
        stack.down()
    if left := stack.left_behind():
        raise Unmet(f"after `down` there are {left}")
