"""The formulas of docs/performance.md. Rates are events a second, costs processor microseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

# What a source holds: one batch in the hands of its agent, and the next, pulled and prepared.
HELD_BATCHES: Final = 2
# Real-time, historical, dead letters.
CONSUMERS_OF_A_COMPANY: Final = 3
DAY: Final = 86_400
_SLACK: Final = 1e-9


def up(value: float) -> int:
    """Rounded up, but not for an error in the last digit."""
    return math.ceil(value - _SLACK)


def cores(rate: float, cost: float, *, batches: float = 0.0, batch: float = 0.0) -> float:
    """Cores that are busy all the time with `rate` events and `batches` batches a second."""
    return (rate * cost + batches * batch) / 1e6


def batches(rates: Sequence[float], cycle: float) -> float:
    """Batches a second of companies with these rates, if a source asks anew every `cycle` seconds at the earliest.

    Few events: each comes alone. Many: what comes in a cycle is one batch.
    """
    return sum(rate / (1 + rate * cycle) for rate in rates)


def replicas(load: float, *, headroom: float, survive: float, least: int = 2) -> int:
    """Workers for `load` cores: each uses `headroom` of its core at most, and `survive` of it when one is away."""
    return max(least, up(load / headroom), up(load / survive) + 1)


def connections(workers: int, pool: int, groups: int) -> int:
    """Connections at most, during a rollout too: one worker more in each group."""
    return (workers + groups) * pool


def workers_for(max_connections: int, reserve: int, pool: int) -> int:
    """How many workers one PostgreSQL has connections for."""
    return (max_connections - reserve) // pool


def ack_pending(workers: int, batch: int, *, delayed: int = 0) -> int:
    """The least `max_ack_pending` of a consumer that holds nobody up; `delayed` wait for a retry or onboarding."""
    return workers * batch * HELD_BATCHES + delayed


def disk(rate: float, size: float, days: float) -> float:
    """Terabytes (10^12 bytes) of so many days; `rate` is the day's mean."""
    return rate * size * DAY * days / 1e12


def consumers(companies: int) -> int:
    """Consumers of so many companies."""
    return companies * CONSUMERS_OF_A_COMPANY


def memory(companies: int) -> float:
    """Megabytes of a worker at work: 85, and 3 a company (measured with 40)."""
    return 85 + 3 * companies


def cycle(companies: int, batch: float, load: float) -> float:
    """Seconds that a worker's core needs for one batch of each company, at `load` cores of work besides the fixed
    `batch` microseconds each. Raises `ValueError` from 1 core on, where batches only grow."""
    if load >= 1:
        raise ValueError("a worker has one core")
    return companies * batch / 1e6 / (1 - load)
