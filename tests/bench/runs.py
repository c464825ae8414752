"""What the runs of all rounds have measured, and what could not be."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Awaitable, Mapping
from typing import Any

from testkit.publisher import PublishError
from tests.bench.environment import BenchError
from tests.bench.lines import FIGURES, Line, Unit

Run = Mapping[str, float]
# The system under test, and what it was measured at.
Key = tuple[str, str]


class Runs:
    """Keeps the runs by system and line, and prints on standard error how it goes."""

    def __init__(self) -> None:
        self._runs: defaultdict[Key, list[Run]] = defaultdict(list)
        self._problems: dict[Key, str] = {}

    async def add(self, system: str, line: str, measurement: Awaitable[Run]) -> None:
        """Wait for a measurement and keep it, or why it failed."""
        try:
            self.keep(system, line, await measurement)
        except (BenchError, PublishError) as error:
            self.fail(system, line, str(error))

    def keep(self, system: str, line: str, run: Run) -> None:
        """Keep what was measured."""
        rounded = {
            name: round(value, 3) if isinstance(value, float) else value for name, value in run.items()
        }
        self._runs[system, line].append(rounded)
        _say(system, line, " ".join(f"{name}={value:g}" for name, value in rounded.items()))

    def fail(self, system: str, line: str, problem: str) -> None:
        """Keep why a line could not be measured: one failure counts, whatever the other runs say."""
        self._problems[system, line] = problem
        _say(system, line, problem)

    def compared(
        self,
        group: str,
        name: str,
        field: str,
        ours: Key,
        theirs: Key | None,
        unit: Unit,
        target: float | None,
    ) -> Line:
        """The line that compares the best values of two measurements: their ratio, or ours if the unit is its own."""
        keys = [key for key in (ours, theirs) if key is not None]
        if problem := next(filter(None, map(self._problem, keys)), ""):
            return Line(group, name, unit, target, problem=problem)
        text, best = FIGURES[field]
        values = [best(run[field] for run in self._runs[key]) for key in keys]
        measured, against = [*(text.format(value) for value in values), ""][:2]
        value = values[0]
        if unit in ("share", "times"):
            # 0 where a small run is below the resolution of the clock.
            value = values[0] / values[1] if values[1] else 0.0
        return Line(group, name, unit, target, value, measured, against)

    def all(self) -> dict[str, dict[str, list[Run]]]:
        """Everything, by line and system."""
        found: dict[str, dict[str, Any]] = {}
        for (system, line), runs in self._runs.items():
            if runs:
                found.setdefault(line, {})[system] = runs
        return found

    def _problem(self, key: Key) -> str:
        return self._problems.get(key, "" if self._runs[key] else "no run was finished")


def _say(system: str, line: str, text: str) -> None:
    print(f"{system:7} {line:22} {text}", file=sys.stderr, flush=True)
