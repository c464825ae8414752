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
class Target:
    """What a value is compared with: `value` (None: it is only shown), at least or `at_most`."""

    unit: Unit
    value: float | None
    at_most: bool = True

    def met(self, value: float) -> bool:
        """Whether it is reached."""
        if self.value is None:
            return True
        return value <= self.value if self.at_most else value >= self.value

    @property
    def shown(self) -> str:
        """With its unit."""
        if self.value is None:
            return ""
        return f"{'<=' if self.at_most else '>='} {_FORMATS[self.unit].format(self.value)}"


@dataclass(frozen=True, slots=True)
class Line:
    """`measured` and `against` are the two figures behind `value`. `problem`: why it could not be measured."""

    name: str
    group: str
    target: Target
    value: float = 0.0
    measured: str = ""
    against: str = ""
    problem: str = ""

    @property
    def met(self) -> bool:
        """Whether it was measured and the target is reached."""
        return not self.problem and self.target.met(self.value)

    @property
    def shown(self) -> str:
        """The value with its unit."""
        return "" if self.problem else _FORMATS[self.target.unit].format(self.value)

    @property
    def verdict(self) -> str:
        """What to look at: `short` where the target is missed."""
        return f"not measured: {self.problem}" if self.problem else "" if self.met else "short"

    def record(self) -> dict[str, Any]:
        """For the file of results."""
        return {
            "group": self.group,
            "name": self.name,
            "measured": self.measured,
            "against": self.against,
            "value": round(self.value, 4),
            "unit": self.target.unit,
            "shown": self.shown,
            "target": self.target.value,
            "aim": self.target.shown,
            "at_most": self.target.at_most,
            "met": self.met,
            "problem": self.problem,
        }
