"""Sizing formulas of docs/performance.md. Rates are events a second, costs processor microseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

# Batches in flight of a source: the one its agent writes, and the next, pulled and decoded.
BATCHES_IN_FLIGHT: Final = 2
# Real-time, historical, dead letters.
CONSUMERS_OF_A_COMPANY: Final = 3
DAY: Final = 86_400
_SLACK: Final = 1e-9


def up(value: float) -> int:
    """Rounded up, except for a floating-point error in the last digit."""
    return math.ceil(value - _SLACK)


def cores(rate: float, cost: float, *, batches: float = 0.0, batch: float = 0.0) -> float:
    """Cores that are busy all the time with `rate` events and `batches` batches a second."""
    return (rate * cost + batches * batch) / 1e6


def batches(rates: Sequence[float], cycle: float) -> float:
    """Batches a second of companies with these rates, if a source pulls at most once in `cycle` seconds.

    Few events: each is a batch of its own. Many: those of a cycle are one batch.
    """
    return sum(rate / (1 + rate * cycle) for rate in rates)


def replicas(load: float, *, headroom: float, survive: float, least: int = 2) -> int:
    """Workers for `load` cores: each uses `headroom` of its core at most, and `survive` of it when one is away."""
    return max(least, up(load / headroom), up(load / survive) + 1)


def connections(workers: int, pool: int, groups: int) -> int:
    """Maximum of connections, during a rollout: one more worker in each group."""
    return (workers + groups) * pool


def workers_for(max_connections: int, reserve: int, pool: int) -> int:
    """The number of workers that one PostgreSQL has connections for."""
    return (max_connections - reserve) // pool


def ack_pending(workers: int, batch: int, *, delayed: int = 0) -> int:
    """The smallest `max_ack_pending` that never blocks a replica; `delayed` events wait for a retry or onboarding."""
    return workers * batch * BATCHES_IN_FLIGHT + delayed


def disk(rate: float, size: float, days: float) -> float:
    """Terabytes (10^12 bytes) that `days` of events take; `rate` is the mean of the day."""
    return rate * size * DAY * days / 1e12


def consumers(companies: int) -> int:
    """JetStream consumers of `companies` companies."""
    return companies * CONSUMERS_OF_A_COMPANY


def memory(companies: int) -> float:
    """Megabytes of a worker under load: 85, and 3 a company (measured with 40)."""
    return 85 + 3 * companies


def cycle(companies: int, batch: float, load: float) -> float:
    """Seconds that a worker's core needs for one batch of each company: `batch` microseconds each, beside `load` cores.

    Raises `ValueError` from 1 core on, where the backlog grows without bound.
    """
    if load >= 1:
        raise ValueError("a worker has one core")
    return companies * batch / 1e6 / (1 - load)
