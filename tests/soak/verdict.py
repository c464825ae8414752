"""Whether memory grows: with the number of events, or through an outage. Pure; all sizes in megabytes (10^6 bytes)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import linear_regression
from typing import Final, NamedTuple

# Until then a worker fills what it keeps a limited number of: phones it knows, labels of metrics, statements.
WARM_SHARE: Final = 1 / 3


class Step(NamedTuple):
    """Resident memory when so many events are stored: now, and at most since the start."""

    events: int
    resident: float
    peak: float
    contacts: int


class Outage(NamedTuple):
    """Resident memory before an outage of PostgreSQL, at most during it, at most while catching up, and after."""

    before: float
    during: float
    catching_up: float
    after: float


class Allowance(NamedTuple):
    """How much more is allowed: over the judged steps, and in an outage."""

    growth: float
    outage: float


def judged(steps: Sequence[Step]) -> list[Step]:
    """The steps after the first third of the events, with the one that ends it."""
    return [step for step in steps if step.events >= steps[-1].events * WARM_SHARE]


def growth(steps: Sequence[Step]) -> float:
    """By how much memory rises from the first of these steps to the last, along the least-squares line.

    A single reading is a matter of chance: the allocator keeps some megabytes now and gives them back later. The line
    goes by all readings, so that a lucky last one hides nothing and an unlucky one accuses nobody.
    """
    slope, _ = linear_regression([step.events for step in steps], [step.resident for step in steps])
    return slope * (steps[-1].events - steps[0].events)


def problems(steps: Sequence[Step], outage: Outage, allowed: Allowance) -> list[str]:
    """Why it is not held; empty when it is. At least two steps have to be judged."""
    found = []
    later = judged(steps)
    if (risen := growth(later)) > allowed.growth:
        span = later[-1].events - later[0].events
        found.append(
            f"memory grows with the events: {risen:.1f} MB in the last {span:,}, "
            f"{risen / span * 1e6:.0f} bytes an event; allowed are {allowed.growth:g} MB"
        )
    for when, value in zip(("during", "while catching up after", "after"), outage[1:], strict=True):
        if (more := value - outage.before) > allowed.outage:
            found.append(
                f"memory {when} the outage: {more:.1f} MB more than before; allowed are {allowed.outage:g} MB"
            )
    return found
