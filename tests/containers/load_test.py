"""The stack of the load test: what the chapters of its story share."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

import asyncpg

from events.subjects import Tenant
from tables.queries import quoted
from testkit.worker import ROOT
from tests.containers import faster_rules
from tests.containers.base_images import STAND_INS
from tests.containers.engine import Engine
from tests.containers.stack import DOCKER, Labels, Node, Stack, Watch, eventually

Say = Callable[[str], None]

COMPANIES: Final = {"tenant_app_A": "CompanyAAA01", "tenant_app_B": "CompanyBBB02"}
REPLICAS: Final = 3
NATS: Final = "nats://127.0.0.1:4222"
DSN: Final = "postgres://postgres:postgres@127.0.0.1:54322/message_service_loadtest"
# Events a second.
RATE: Final = 100
# What is started; Grafana and the exporter of NATS have no stand-in.
SERVICES: Final = ("tenant_app_A", "tenant_app_B", "prometheus", "alertmanager", "spare")
ABSENT: Final = "nats_exporter"
# A few scrapes, and as many evaluations.
NOTICED: Final = 60.0
_FILE: Final = DOCKER / "docker-compose.loadtest.yaml"
_RULES: Final = DOCKER / "prometheus" / "rules"
_IMAGES: Final = {
    "tenant_app_A": "daisi-wa-events-check:loadtest-a",
    "tenant_app_B": "daisi-wa-events-check:loadtest-b",
    "loadgen": "daisi-wa-events-check:loadgen",
}
# Waits for nobody, so its address is lower than any worker's. Without it the lowest is free: the next worker gets it.
_SPARE: Final = {
    "image": STAND_INS["alertmanager"],
    "entrypoint": ["sleep", "3600"],
    "stop_signal": "SIGKILL",
}
# Dead letters are tried again within seconds, and what a killed worker had in its hands is delivered again.
_SETTINGS: Final = {
    "NATS_DLQBASEDELAYMINUTES": "0.005",
    "NATS_REALTIME_ACKWAIT": "10s",
    "NATS_HISTORICAL_ACKWAIT": "10s",
}


class LoadTest:
    """`work`: a folder for the files that are mounted."""

    def __init__(self, engine: Engine, work: Path, say: Say) -> None:
        self.say = say
        self._began = time.monotonic()
        self.watch = Watch()
        self._rules = work / "rules"
        self._rules.mkdir()
        for path in _RULES.glob("*.yml"):
            (self._rules / path.name).write_bytes(path.read_bytes())
        prometheus = work / "prometheus.yml"
        text = (ROOT / "prometheus.yml").read_text(encoding="utf-8")
        prometheus.write_text(faster_rules.configuration(text), encoding="utf-8")
        mounts = [
            f"{prometheus}:/etc/prometheus/prometheus.yml:ro",
            f"{self._rules}:/etc/prometheus/docker/prometheus/rules:ro",
        ]
        # A busy machine may start six workers slowly; the first answer ends the start period.
        often = {"interval": "2s", "start_period": "60s"}
        changes: Node = {server: {"healthcheck": often} for server in ("nats", "postgres")}
        changes["prometheus"] = {"volumes": mounts}
        changes["spare"] = _SPARE
        changes |= {service: {"environment": _SETTINGS, "healthcheck": often} for service in COMPANIES}
        self.stack = Stack(engine, _FILE, "daisi-wa-events-check-loadtest", _IMAGES, work, changes)

    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def hurry(self) -> None:
        """From now on the times of the rules are shorter."""
        faster_rules.replace(self._rules)
        self.stack.compose("kill", "--signal", "HUP", "prometheus")
        # The rules come last.
        eventually("faster rules", NOTICED, lambda: self.watch.has_rule(faster_rules.CONTROL), True)
        eventually("Alertmanager", NOTICED, self.watch.knows_alertmanager, True)

    def load(self, duration: str, companies: str, *also: str) -> subprocess.Popen[str]:
        """Publish for so long."""
        options = ["--rate", str(RATE), "--duration", duration, "--companies", companies, *also]
        return self.stack.started("run", "--rm", "--no-deps", "--use-aliases", "loadgen", *options)

    def has_targets(self, a: int, b: int) -> None:
        """Prometheus finds so many replicas of both companies, and all of them answer. Raises `Unmet`."""
        expected = {
            "tenant_app_A": f"{a}/{a}",
            "tenant_app_B": f"{b}/{b}",
            "alertmanager": "1/1",
            "prometheus": "1/1",
        }

        def found() -> Labels:
            return {job: up for job, up in self.watch.targets().items() if job not in {ABSENT, "loadgen"}}

        eventually("targets", NOTICED, found, expected)

    def scaled(self, a: int, b: int) -> None:
        """Have so many replicas of both companies, without waiting for them."""
        wanted = ("--scale", f"tenant_app_A={a}", "--scale", f"tenant_app_B={b}")
        self.stack.compose("up", "--detach", "--no-build", "--no-recreate", *wanted, *SERVICES)

    def fires(self, alert: str, expected: list[Labels]) -> None:
        """Exactly these alerts of a name come to fire, and Alertmanager knows as many. Raises `Unmet`."""
        wanted = sorted(({"alertname": alert, **labels} for labels in expected), key=json.dumps)
        eventually(alert, NOTICED, lambda: sorted(self.watch.firing(alert), key=json.dumps), wanted)
        eventually(f"{alert} at Alertmanager", NOTICED, lambda: _notified(alert), len(expected))


def exhaust(company: str, like: str) -> None:
    """Give a company a copy of an exhausted event that another company has, of which it has many more."""
    asyncio.run(_exhaust(company, like))


async def _exhaust(company: str, like: str) -> None:
    ours, theirs = (quoted(Tenant(name).schema) for name in (company, like))
    connection = await asyncpg.connect(DSN)
    try:
        await connection.execute(
            f"INSERT INTO {ours}.exhausted_events SELECT * FROM {theirs}.exhausted_events ORDER BY id DESC LIMIT 1"
        )
    finally:
        await connection.close()


def _notified(alert: str) -> int:
    url = f"http://127.0.0.1:9093/api/v2/alerts?active=true&filter=alertname%3D{alert}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return len(json.load(answer))
