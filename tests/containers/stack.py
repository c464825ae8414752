"""A stack of containers from one of the compose files, as its users start it."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml

from testkit.worker import ROOT
from tests.containers.engine import Engine

DOCKER: Final = ROOT / "docker"
_POLL: Final = 0.5
_PROMETHEUS: Final = "http://127.0.0.1:9090/api/v1"

Labels = dict[str, str]
Node = dict[str, Any]


class Unmet(AssertionError):
    """What the stack was to do and did not; the message says what was there instead."""


class Instead(list[str]):
    """A list of a change that takes the place of the file's; an ordinary one is added to it."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(Instead, lambda dumper, items: dumper.represent_sequence("!override", items))


class Stack:
    """The services of a compose file, as a project of another name. `changes`: what is different in some of them.

    `images`: the names under which it builds ours, by service. What somebody started from the same file is not touched.
    """

    def __init__(
        self, engine: Engine, file: Path, name: str, images: Labels, work: Path, changes: Node | None = None
    ) -> None:
        self.engine = engine
        self.name = name
        self._images = images
        services = {service: dict(change) for service, change in (changes or {}).items()}
        for service, image in images.items():
            services.setdefault(service, {})["image"] = image
        also = work / f"{name}.yaml"
        also.write_text(yaml.dump({"services": services}, Dumper=_Dumper), encoding="utf-8")
        self._options = ["--project-name", name, "--file", str(file), "--file", str(also)]

    def compose(self, *arguments: str, within: float = 300.0) -> str:
        """What a command of Compose prints. Raises `tests.containers.engine.EngineError`."""
        return self.engine.docker("compose", *self._options, *arguments, within=within)

    def started(self, *arguments: str) -> subprocess.Popen[str]:
        """A command of Compose that goes on by itself."""
        return self.engine.started("compose", *self._options, *arguments)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's running containers."""
        return self.compose("ps", "--quiet", "--status", "running", service).split()

    def inspected(self, container: str) -> Node:
        """All that the engine knows of a container."""
        (found,) = json.loads(self.engine.docker("inspect", container))
        assert isinstance(found, dict)
        return found

    def addresses(self, service: str) -> set[str]:
        """Those of a service's running containers."""
        networks = [
            self.inspected(each)["NetworkSettings"]["Networks"].values() for each in self.containers(service)
        ]
        return {network["IPAddress"] for several in networks for network in several}

    def down(self) -> None:
        """Remove everything of the stack, data and images of ours too. Raises `Unmet` if something is still there."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "35")
        if built := self.engine.images() & set(self._images.values()):
            self.engine.docker("image", "rm", *sorted(built))
        label = f"label=com.docker.compose.project={self.name}"
        lists = (["ps", "--all"], ["network", "ls"], ["volume", "ls"])
        left = [
            name for what in lists for name in self.engine.docker(*what, "--quiet", "--filter", label).split()
        ]
        if left:
            raise Unmet(f"after `down` there are {left}")


class Watch:
    """The Prometheus of the load test, asked over its published port."""

    def query(self, expression: str) -> list[tuple[Labels, float]]:
        """Every series of an answer with its value now."""
        return [(one["metric"], float(one["value"][1])) for one in self._get("query", query=expression)]

    def over(self, expression: str, seconds: float, step: float) -> list[dict[str, Any]]:
        """An expression over the last so many seconds, a value for each step, as a panel asks for it."""
        end = time.time()
        moments = {"start": f"{end - seconds:.3f}", "end": f"{end:.3f}", "step": f"{step:g}"}
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

    def has_rule(self, alert: str) -> bool:
        """Whether an alert of this name is evaluated."""
        groups: list[Node] = self._data("rules")["groups"]
        return any(rule["name"] == alert for group in groups for rule in group["rules"])

    def knows_alertmanager(self) -> bool:
        """Whether alerts are sent on: not at once after a reload, and what was dropped then comes a minute later."""
        return bool(self._data("alertmanagers")["activeAlertmanagers"])

    def _get(self, resource: str, **parameters: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._data(resource, **parameters)["result"]
        return found

    def _data(self, resource: str, **parameters: str) -> Node:
        url = f"{_PROMETHEUS}/{resource}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            data: Node = json.load(answer)["data"]
            return data


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
