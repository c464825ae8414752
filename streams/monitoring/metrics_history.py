"""The last minutes of a worker's metrics: snapshots of its counters in a bounded ring, for the status page."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from streams.monitoring.collectors import PROCESSING_BUCKETS
from streams.monitoring.metrics import CompanyCounts, Metrics

# Seconds between two snapshots, and how long they are kept.
SNAPSHOT_EVERY: Final = 5.0
HISTORY_SECONDS: Final = 900.0
# Over which the current rate is computed.
RATE_WINDOW: Final = 60.0
# Companies that are read between two turns of the event loop: 100 microseconds.
_AT_A_TIME: Final = 100


class Snapshot(NamedTuple):
    """Counters over all companies at one moment; `at` in `time.monotonic()` seconds.

    `counts` are those of `COUNTS`, `processing` is the histogram of processing times, cumulative over its buckets.
    """

    at: float
    counts: Sequence[float]
    processing: Sequence[float]


COUNTS: Final = ("received", "processed", "failed", "dead_lettered")


class Received(NamedTuple):
    """Batches and messages that a source has received: in all, or a second."""

    batches: float
    messages: float


class _Parts(NamedTuple):
    """Counters by company, in the order of `COUNTS`, and by source, at one moment."""

    at: float
    companies: Mapping[str, Sequence[int]]
    sources: Mapping[tuple[str, ...], Received]


class MetricsHistory:
    """Snapshots of the last 15 minutes, and the rates that follow from them.

    Events are not slowed down: their counters are read from outside, some companies at a time, and the event loop gets
    its turn in between.
    """

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._metrics = metrics
        self._snapshots: deque[Snapshot] = deque(maxlen=int(HISTORY_SECONDS / SNAPSHOT_EVERY) + 1)
        self._parts: deque[_Parts] = deque(maxlen=int(RATE_WINDOW / SNAPSHOT_EVERY) + 1)

    @property
    def latest(self) -> Snapshot | None:
        """The newest snapshot; None before the first."""
        return self._snapshots[-1] if self._snapshots else None

    async def record(self) -> bool:
        """Record one snapshot; a periodic task, to be run every `SNAPSHOT_EVERY` seconds."""
        at = self._clock()
        processing = self._metrics.processing.cumulative()
        before = self._parts[-1].companies if self._parts else {}
        companies: dict[str, Sequence[int]] = {}
        for number, (company, counts) in enumerate(list(self._metrics.counts.items()), 1):
            now, then = _in_order(counts), before.get(company)
            # Of the many quiet companies one copy is kept, and not one for each moment.
            companies[company] = then if then == now else now
            if number % _AT_A_TIME == 0:
                await asyncio.sleep(0)
        totals = [sum(column) for column in zip(*companies.values(), strict=True)] or [0] * len(COUNTS)
        self._snapshots.append(Snapshot(at, totals, processing))
        batches = self._metrics.collectors.batches.children.items()
        sources = {source: Received(each.count, each.sum) for source, each in batches}
        self._parts.append(_Parts(at, companies, sources))
        return False

    def window(self) -> tuple[Snapshot, Snapshot] | None:
        """The newest snapshot after the one about `RATE_WINDOW` seconds older, or after the oldest there is."""
        if len(self._snapshots) < 2:
            return None
        newest = self._snapshots[-1]
        start = self._snapshots[-2]
        for snapshot in reversed(self._snapshots):
            if newest.at - snapshot.at > RATE_WINDOW + SNAPSHOT_EVERY / 2:
                break
            start = snapshot if snapshot is not newest else start
        return start, newest

    def source_rates(self, company: str, consumer: str) -> Received | None:
        """Batches and messages a second of a source in the last minute; None before the second snapshot."""
        if len(self._parts) < 2:
            return None
        old, new = self._parts[0], self._parts[-1]
        nothing = Received(0, 0)
        before, after = (each.sources.get((company, consumer), nothing) for each in (old, new))
        span = new.at - old.at
        return Received((after.batches - before.batches) / span, (after.messages - before.messages) / span)

    def company_rates(self, company: str) -> dict[str, float] | None:
        """Each of `COUNTS` a second for a company in the last minute; None before the second snapshot."""
        if len(self._parts) < 2:
            return None
        old, new = self._parts[0], self._parts[-1]
        nothing = (0,) * len(COUNTS)
        before, after = (each.companies.get(company, nothing) for each in (old, new))
        return _rates(before, after, new.at - old.at)

    def intervals(self) -> Iterator[tuple[Snapshot, Snapshot]]:
        """Each two neighbouring snapshots, oldest first."""
        return pairwise(self._snapshots)


def rates(older: Snapshot, newer: Snapshot) -> dict[str, float]:
    """Each counter's increase a second between two snapshots."""
    return _rates(older.counts, newer.counts, newer.at - older.at)


def _rates(older: Sequence[float], newer: Sequence[float], span: float) -> dict[str, float]:
    pairs = zip(older, newer, strict=True)
    return {name: (after - before) / span for name, (before, after) in zip(COUNTS, pairs, strict=True)}


def percentile(share: float, older: Snapshot, newer: Snapshot) -> float | None:
    """The quantile `share` of the processing times between two snapshots, in seconds.

    Like Prometheus's `histogram_quantile`: interpolated inside a bucket; beyond the last bound, that bound. None when
    there were no deliveries.
    """
    counts = [after - before for before, after in zip(older.processing, newer.processing, strict=True)]
    rank = share * counts[-1]
    if rank <= 0:
        return None
    low, below = 0.0, 0.0
    for bound, count in zip(PROCESSING_BUCKETS, counts, strict=False):
        if count >= rank:
            return low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return low


def _in_order(counts: CompanyCounts) -> tuple[int, ...]:
    return counts.received, counts.processed, counts.failed, counts.dead_lettered
