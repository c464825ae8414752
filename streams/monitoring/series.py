"""The series behind the metrics: numbers and histograms by label values, and their text for /metrics.

A child of prometheus_client takes 2 KB of memory and a lock for each change, a histogram 9 KB; a worker of a thousand
companies has a hundred thousand of them. These take a tenth. They are changed and read in one thread, that of the event
loop. Their text says what prometheus_client's says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final, Generic, TypeVar

from prometheus_client.utils import floatToGoString

# It has no annotations there.
_written: Callable[[float], str] = floatToGoString
# Whole numbers up to here are written digit by digit.
_EXACT: Final = 2**53
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Number:
    """The value of one series of a counter or a gauge."""

    __slots__ = ("text", "value")

    def __init__(self, text: str) -> None:
        self.text = text  # its labels, as they stand between the braces
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add to it."""
        self.value += amount

    def set(self, value: float) -> None:
        """Replace it; gauges only."""
        self.value = float(value)


class Distribution:
    """Observations of one series of a histogram, by bucket; the last one has no bound."""

    __slots__ = ("bounds", "counts", "sum", "text")

    def __init__(self, text: str, bounds: tuple[float, ...]) -> None:
        self.text = text
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, amount: float) -> None:
        """Count one observation."""
        self.sum += amount
        self.counts[bisect_left(self.bounds, amount)] += 1

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def cumulative(self) -> list[int]:
        """How many were up to each bound, and in all."""
        return list(accumulate(self.counts))


Child = TypeVar("Child", Number, Distribution)


class Family(ABC, Generic[Child]):
    """All series of one metric, by the values of its labels."""

    def __init__(
        self, name: str, kind: str, help_text: str, labels: Sequence[str], make: Callable[[str], Child]
    ) -> None:
        self.name = name
        self.children: dict[tuple[str, ...], Child] = {}
        self._make: Callable[[str], Child] = make
        # Sorted, as prometheus_client writes them.
        self._places = sorted(range(len(labels)), key=labels.__getitem__)
        self._names = tuple(labels)
        escaped = help_text.replace("\\", r"\\").replace("\n", r"\n")
        self.head = f"# HELP {name} {escaped}\n# TYPE {name} {kind}\n"

    def labels(self, *values: str) -> Child:
        """The series with these values of its labels; made at 0 when it is asked for the first time."""
        child = self.children.get(values)
        if child is None:
            if len(values) != len(self._names):
                raise ValueError(f"{self.name} has the labels {', '.join(self._names) or 'none'}")
            child = self.children[values] = self._make(self._text(values))
        return child

    def remove(self, *values: str) -> None:
        """Drop a series, if it is there."""
        self.children.pop(values, None)

    def _text(self, values: tuple[str, ...]) -> str:
        return ",".join(f'{self._names[at]}="{values[at].translate(_ESCAPES)}"' for at in self._places)

    @abstractmethod
    def lines(self, child: Child) -> str:
        """The lines of one series, of one moment."""

    def text(self) -> Iterator[str]:
        """The whole text: the head, then each series. Series may come and go meanwhile."""
        yield self.head
        yield from map(self.lines, list(self.children.values()))


class Numbers(Family[Number]):
    """A counter or a gauge."""

    def __init__(self, name: str, kind: str, help_text: str, labels: Sequence[str]) -> None:
        super().__init__(name, kind, help_text, labels, Number)

    def lines(self, child: Number) -> str:
        """The one line of a series."""
        labels = f"{{{child.text}}}" if child.text else ""
        return f"{self.name}{labels} {_text(child.value)}\n"


class Distributions(Family[Distribution]):
    """A histogram; `bounds` are the upper ones of its buckets, without the last, which has none."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        fixed = tuple(map(float, bounds))
        super().__init__(name, "histogram", help_text, labels, lambda text: Distribution(text, fixed))
        self._buckets = [f'le="{_written(bound)}"}}' for bound in (*fixed, float("inf"))]

    def lines(self, child: Distribution) -> str:
        """One line for each bucket, cumulative, then count and sum."""
        begin, counts = f"{self.name}_bucket{{{child.text},", child.cumulative()
        found = [f"{begin}{le} {count}\n" for le, count in zip(self._buckets, counts, strict=True)]
        found.append(f"{self.name}_count{{{child.text}}} {counts[-1]}\n")
        found.append(f"{self.name}_sum{{{child.text}}} {_text(child.sum)}\n")
        return "".join(found)


def _text(value: float) -> str:
    """The shortest text of a number: most are whole, and "0" is two bytes less than "0.0" in each line."""
    return str(int(value)) if value.is_integer() and abs(value) < _EXACT else _written(value)
