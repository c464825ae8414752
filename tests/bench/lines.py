"""A line of the report: what was measured, what it is compared with, and whether that is enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Unit = Literal["share", "times", "MB", "s", "count"]
_FORMATS: Final[Mapping[Unit, str]] = {
    "share": "{:.1%}",
    "times": "{:.2f} x",
    "MB": "{:.0f} MB",
    "s": "{:.2f} s",
    "count": "{:.0f}",
}


@dataclass(frozen=True, slots=True)
class Line:
    """`value` is compared with `target` (None: only shown); `at_most`: it must not exceed it.

    `ours` and `theirs` are the two figures behind it. `problem`: why it could not be measured.
    """

    name: str
    group: str
    unit: Unit = "share"
    value: float = 0.0
    target: float | None = None
    at_most: bool = False
    ours: str = ""
    theirs: str = ""
    problem: str = ""

    @property
    def met(self) -> bool:
        """Whether the target is reached; a line without one has nothing to miss."""
        if self.problem:
            return False
        if self.target is None:
            return True
        return self.value <= self.target if self.at_most else self.value >= self.target

    @property
    def shown(self) -> str:
        """The value with its unit."""
        return "" if self.problem else self._written(self.value)

    @property
    def aim(self) -> str:
        """The target with its unit."""
        return "" if self.target is None else f"{'<=' if self.at_most else '>='} {self._written(self.target)}"

    @property
    def verdict(self) -> str:
        """What to look at: `short` where the target is missed."""
        return f"not measured: {self.problem}" if self.problem else "" if self.met else "short"

    def _written(self, value: float) -> str:
        return _FORMATS[self.unit].format(value)

    def record(self) -> dict[str, Any]:
        """For the file of results."""
        return {
            "group": self.group,
            "name": self.name,
            "measured": self.ours,
            "against": self.theirs,
            "value": round(self.value, 4),
            "unit": self.unit,
            "shown": self.shown,
            "target": self.target,
            "aim": self.aim,
            "at_most": self.at_most,
            "met": self.met,
            "problem": self.problem,
        }


def ratio(ours: float, theirs: float) -> float:
    """How many times `theirs` is in `ours`; 0 where a small run is below the resolution of the clock."""
    return ours / theirs if theirs else 0.0
