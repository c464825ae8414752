"""A line of the report: what was measured, what it is compared with, and whether that is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple

Unit = Literal["share", "times", "MB", "s", "count"]
_FORMATS: Final[Mapping[Unit, str]] = {
    "share": "{:.1%}",
    "times": "{:.2f} x",
    "MB": "{:.0f} MB",
    "s": "{:.2f} s",
    "count": "{:.0f}",
}


class Figure(NamedTuple):
    """How a measured number is written, and which of several runs counts."""

    text: str
    best: Callable[[Iterable[float]], float] = min


FIGURES: Final = {
    "per_s": Figure("{:,.0f}/s", max),
    **dict.fromkeys(("p50", "p99", "own_p99", "other_p99"), Figure("{:.2f} ms")),
    "left": Figure("{:.0f}"),
    "cpu_us": Figure("{:.0f} us"),
    **dict.fromkeys(("memory_mb", "memory_peak_mb"), Figure("{:.0f} MB", max)),
    "connections": Figure("{:.0f}", max),
    "start_s": Figure("{:.2f} s"),
    "page_mb": Figure("{:.2f} MB"),
    "page_s": Figure("{:.3f} s"),
}


@dataclass(frozen=True, slots=True)
class Line:
    """A figure of ours, `measured`, the other one, `against`, and the `value` that comes of them.

    A share has to reach its target, any other value is to stay below it; without a target it is only shown. `problem`:
    why it could not be measured.
    """

    group: str
    name: str
    unit: Unit
    target: float | None
    value: float = 0.0
    measured: str = ""
    against: str = ""
    problem: str = ""

    @property
    def met(self) -> bool:
        """Whether it was measured and the target is reached."""
        if self.problem or self.target is None:
            return not self.problem
        return self.value >= self.target if self.unit == "share" else self.value <= self.target

    @property
    def shown(self) -> str:
        """The value with its unit."""
        return "" if self.problem else _FORMATS[self.unit].format(self.value)

    @property
    def aim(self) -> str:
        """The target with its unit."""
        if self.target is None:
            return ""
        return f"{'>=' if self.unit == 'share' else '<='} {_FORMATS[self.unit].format(self.target)}"

    @property
    def verdict(self) -> str:
        """What to look at: `short` where the target is missed."""
        return f"not measured: {self.problem}" if self.problem else "" if self.met else "short"

    def record(self) -> dict[str, Any]:
        """For the file of results."""
        shown = {"value": round(self.value, 4), "shown": self.shown, "aim": self.aim, "met": self.met}
        return asdict(self) | shown
