"""Bounds of Prometheus's `rate` of a counter, computed from its raw samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple, Self

from tests.monitoring.prometheus import Prometheus

MINUTE: Final = 60.0
# Prometheus goes on from the first sample to the window's edge, by at most this many mean distances of samples.
_EXTRAPOLATED: Final = 1.1
# Of sums of floating-point numbers.
_ROUNDING: Final = 1e-9


class Bounds(NamedTuple):
    """The least and the most that an increase can be. In a comparison with a number: whether it lies between."""

    least: float
    most: float

    def hold(self, value: float) -> bool:
        """Whether a value lies between them."""
        return self.least * (1 - _ROUNDING) <= value <= self.most * (1 + _ROUNDING)

    def share_of(self, whole: Self) -> Bounds:
        """Of this part in that whole, in percent. Unbounded where the whole may be 0."""
        most = 100 * self.most / whole.least if whole.least else math.inf
        return Bounds(100 * self.least / whole.most if whole.most else 0.0, most)


def total(every: Iterable[Bounds]) -> Bounds:
    """Of the sum."""
    known = list(every)
    return Bounds(sum(one.least for one in known), sum(one.most for one in known))


def increases(prometheus: Prometheus, selector: str, at: float, label: str) -> dict[str, Bounds]:
    """Of each counter in the minute before a scrape (Unix seconds), by one label, which must tell them apart."""
    raw = prometheus.get("query", query=f"{selector}[{MINUTE:.0f}s]", time=f"{at:.3f}")["result"]
    found = {
        series["metric"][label]: _bounds([float(value) for _, value in series["values"]]) for series in raw
    }
    assert len(found) == len(raw), f"{label} does not tell the series of {selector} apart"
    return found


def _bounds(samples: list[float]) -> Bounds:
    """A counter that began anew would need more than its ends."""
    assert samples == sorted(samples)
    assert len(samples) > 1
    rise = samples[-1] - samples[0]
    return Bounds(rise, rise * (1 + _EXTRAPOLATED / (len(samples) - 1)))
