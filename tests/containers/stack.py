"""A stack of containers from one of the compose files, as its users start it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from testkit.worker import ROOT
from tests.containers.engine import Engine

DOCKER: Final = ROOT / "docker"
_POLL: Final = 0.5
_PROMETHEUS: Final = "http://127.0.0.1:9090/api/v1"

Labels = dict[str, str]


class Unmet(AssertionError):
    """What the stack was to do and did not; the message says what was there instead."""


class Stack:
    """The services of a compose file. `also`: further files that change parts of it."""

    def __init__(self, engine: Engine, file: Path, *also: Path) -> None:
        self.engine = engine
        self._files = [part for path in (file, *also) for part in ("--file", str(path))]

    def compose(self, *arguments: str, within: float = 300.0) -> str:
        """What a command of Compose prints. Raises `tests.containers.engine.EngineError`."""
        return self.engine.docker("compose", *self._files, *arguments, within=within)

    def started(self, *arguments: str) -> subprocess.Popen[str]:
        """A command of Compose that goes on by itself."""
        return self.engine.started("compose", *self._files, *arguments)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's running containers."""
        return self.compose("ps", "--quiet", "--status", "running", service).split()

    def inspected(self, container: str) -> dict[str, Any]:
        """All that the engine knows of a container."""
        (found,) = json.loads(self.engine.docker("inspect", container))
        assert isinstance(found, dict)
        return found

    def down(self) -> None:
        """Remove everything of the stack, data too."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "35")

    def project(self) -> str:
        """The name that its containers, networks and volumes bear."""
        config = json.loads(self.compose("config", "--format", "json"))
        return str(config["name"])

    def left_behind(self) -> list[str]:
        """Containers, networks and volumes of the stack that are still there."""
        label = f"label=com.docker.compose.project={self.project()}"
        lists = (["ps", "--all"], ["network", "ls"], ["volume", "ls"])
        return [
            name for what in lists for name in self.engine.docker(*what, "--quiet", "--filter", label).split()
        ]


class Watch:
    """The Prometheus of the load test, asked over its published port."""

    def query(self, expression: str) -> list[tuple[Labels, float]]:
        """Every series of an answer with its value now."""
        return [(one["metric"], float(one["value"][1])) for one in self._get("query", query=expression)]

    def over(self, expression: str, seconds: float) -> list[dict[str, Any]]:
        """An expression over the last so many seconds, as a panel asks for it."""
        end = time.time()
        moments = {"start": f"{end - seconds:.3f}", "end": f"{end:.3f}", "step": "5"}
        return self._get("query_range", query=expression, **moments)

    def firing(self, alert: str = "", over: float | None = None) -> list[Labels]:
        """The labels of the alerts that fire now, or did within so many seconds; without their own name and state."""
        selector = f'ALERTS{{alertstate="firing"{f",alertname={json.dumps(alert)}" if alert else ""}}}'
        expression = selector if over is None else f"last_over_time({selector}[{over:.0f}s])"
        return [
            {name: value for name, value in labels.items() if name not in {"__name__", "alertstate"}}
            for labels, _ in self.query(expression)
        ]

    def targets(self) -> Labels:
        """How many targets of each job are up, as `up/all`."""
        found = {labels["job"]: value for labels, value in self.query("count by (job) (up)")}
        up = {labels["job"]: value for labels, value in self.query("count by (job) (up == 1)")}
        return {job: f"{up.get(job, 0):.0f}/{count:.0f}" for job, count in found.items()}

    def _get(self, resource: str, **parameters: str) -> list[dict[str, Any]]:
        url = f"{_PROMETHEUS}/{resource}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found


def eventually(what: str, within: float, look: Callable[[], Any], wanted: Any) -> None:
    """Wait until `look` finds what is wanted. Raises `Unmet` with what it found last."""
    deadline = time.monotonic() + within
    found: Any = None
    while time.monotonic() < deadline:
        try:
            found = look()
        except OSError as error:
            found = error
        if found == wanted:
            return
        time.sleep(_POLL)
    raise Unmet(f"{what}: after {within:g} s it is {found!r}, not {wanted!r}")


def copied(paths: Sequence[Path], to: Path) -> None:
    """Copy files into a folder that may be there already."""
    to.mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copy(path, to)
