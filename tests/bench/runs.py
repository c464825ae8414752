"""What the runs of all rounds have measured, and what could not be."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Awaitable
from typing import Any, Protocol

from testkit.publisher import PublishError
from tests.bench.environment import BenchError

Run = dict[str, Any]


class Recordable(Protocol):
    """A measurement."""

    def record(self) -> Run:
        """For the file of results."""
        ...


class Runs:
    """Keeps the runs by system and line; tells on standard error how it goes."""

    def __init__(self) -> None:
        self._runs: defaultdict[tuple[str, str], list[Run]] = defaultdict(list)
        self._problems: dict[tuple[str, str], str] = {}

    async def add(self, system: str, line: str, measurement: Awaitable[Recordable]) -> None:
        """Wait for a measurement and keep it, or why it failed."""
        try:
            self.keep(system, line, (await measurement).record())
        except (BenchError, PublishError) as error:
            self.fail(system, line, str(error))

    def keep(self, system: str, line: str, run: Run) -> None:
        """Keep what was measured."""
        self._runs[system, line].append(run)
        _say(system, line, " ".join(f"{name}={value:g}" for name, value in run.items()))

    def fail(self, system: str, line: str, problem: str) -> None:
        """Keep why a line could not be measured: one failure counts, whatever the other runs say."""
        self._problems[system, line] = problem
        _say(system, line, problem)

    def of(self, system: str, line: str) -> list[Run]:
        """What was measured."""
        return self._runs[system, line]

    def problem(self, *keys: tuple[str, str]) -> str:
        """Why what needs these systems and lines cannot be shown; "" if it can."""
        for key in keys:
            if found := self._problems.get(key, "" if self._runs[key] else "no run was finished"):
                return found
        return ""

    def best(self, system: str, line: str, value: str, *, highest: bool = False) -> float:
        """The best value of all runs."""
        values = [float(run[value]) for run in self.of(system, line)]
        return max(values) if highest else min(values)

    def all(self) -> dict[str, dict[str, list[Run]]]:
        """Everything, by line and system."""
        found: dict[str, dict[str, list[Run]]] = {}
        for (system, line), runs in self._runs.items():
            if runs:
                found.setdefault(line, {})[system] = runs
        return found


def _say(system: str, line: str, text: str) -> None:
    print(f"{system:7} {line:22} {text}", file=sys.stderr, flush=True)
