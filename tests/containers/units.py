"""Numbers as Grafana writes them, in the units of our dashboards, and the marks of an axis."""

from __future__ import annotations

import math
from typing import Final

_STEPS: Final[dict[str, tuple[tuple[float, str], ...]]] = {
    "s": ((86400, " d"), (3600, " h"), (60, " min"), (1, " s"), (1e-3, " ms"), (1e-6, " µs")),
    "ms": ((1000, " s"), (1, " ms"), (1e-3, " µs")),
    "bytes": ((1024**3, " GiB"), (1024**2, " MiB"), (1024, " KiB"), (1, " B")),
    "short": ((1e6, " Mil"), (1e3, " K"), (1, "")),
    "ops": ((1e3, "K ops/s"), (1, " ops/s")),
    "percent": ((1, "%"),),
}
_MARKS: Final = 4


def shown(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit; without a number of decimals, three digits."""
    steps = _STEPS[unit]
    factor, name = next(
        (step for step in steps if abs(value) >= step[0]), steps[-1] if value else (1, _plain(unit))
    )
    scaled = value / factor
    if decimals is not None:
        return f"{scaled:.{decimals}f}{name}"
    digits = 0 if not scaled else max(0, 2 - math.floor(math.log10(abs(scaled))))
    text = f"{scaled:.{min(digits, 3)}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{name}"


def ticks(least: float, most: float) -> list[float]:
    """Round marks, equally far from each other, the first not above `least`, the last not below `most`."""
    span = (most - least) or abs(most) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / _MARKS))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude * _MARKS >= span)
    first, last = math.floor(least / step), math.ceil(most / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _plain(unit: str) -> str:
    return next(name for factor, name in _STEPS[unit] if factor == 1)
