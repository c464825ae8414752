"""Grafana dashboards as files: their panels, and the expressions that Prometheus receives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from testkit.worker import ROOT

FOLDER: Final = ROOT / "grafana" / "dashboards"
DATASOURCE: Final = "daisi-prometheus"
OVERVIEW: Final = "Message Events Overview"
DEAD_LETTERS: Final = "Dead letters and onboarding"
SERVERS: Final = "PostgreSQL and JetStream from the worker's side"
LOAD_TEST: Final = "Load Test Overview"
_VARIABLE: Final = re.compile(r"\$\{(\w+)\}|\$(\w+)")


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel that is no row."""

    dashboard: str
    body: dict[str, Any]

    @property
    def title(self) -> str:
        """What stands above it."""
        return str(self.body["title"])

    @property
    def expressions(self) -> list[str]:
        """Its expressions, variables as they are written."""
        return [str(target["expr"]) for target in self.body["targets"]]

    @property
    def unit(self) -> str:
        """Grafana's name of its unit."""
        return str(self.body["fieldConfig"]["defaults"].get("unit", ""))

    def __str__(self) -> str:
        return f"{self.dashboard} / {self.title}"


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One file."""

    file: Path
    body: dict[str, Any]

    @property
    def title(self) -> str:
        """Its name in Grafana."""
        return str(self.body["title"])

    @property
    def variables(self) -> dict[str, dict[str, Any]]:
        """Its variables by name."""
        return {one["name"]: one for one in self.body["templating"]["list"]}

    @property
    def rows(self) -> list[str]:
        """The titles of its rows, from the top."""
        return [one["title"] for one in self.body["panels"] if one["type"] == "row"]

    @property
    def panels(self) -> list[Panel]:
        """Its panels, from the top."""
        return [Panel(self.title, one) for one in self.body["panels"] if one["type"] != "row"]

    def panel(self, title: str) -> Panel:
        """The panel of this title; fails if there is not exactly one."""
        (found,) = [panel for panel in self.panels if panel.title == title]
        return found


def dashboards() -> dict[str, Dashboard]:
    """All dashboards by title."""
    read = [
        Dashboard(file, json.loads(file.read_text(encoding="utf-8")))
        for file in sorted(FOLDER.glob("*.json"))
    ]
    return {one.title: one for one in read}


def panels() -> list[Panel]:
    """All panels of all dashboards."""
    return [panel for dashboard in dashboards().values() for panel in dashboard.panels]


def variables_in(text: str) -> Iterator[str]:
    """The names of the variables in a text."""
    for braced, bare in _VARIABLE.findall(text):
        yield braced or bare


def substituted(
    expression: str, company: str = ".*", consumer: str = ".*", job: str = "tenant_app_A|tenant_app_B"
) -> str:
    """The expression as Grafana sends it; without more, "All" is chosen everywhere."""
    values = {"company_id": company, "consumer_type": consumer, "job": job}
    return _VARIABLE.sub(lambda found: values[found[1] or found[2]], expression)
