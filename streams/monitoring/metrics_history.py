"""The last minutes of a worker's metrics: snapshots of its collectors in a bounded ring, for the status page."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from prometheus_client import Metric

from events.subjects import EVENT_TYPES, consumer_type
from streams.monitoring.collectors import PROCESSING_BUCKETS, Collectors
from streams.monitoring.label_values import CONSUMERS, outcomes

# Seconds between two snapshots, and how long they are kept.
SNAPSHOT_EVERY: Final = 5.0
HISTORY_SECONDS: Final = 900.0
# Over which the current rate is computed.
RATE_WINDOW: Final = 60.0
DEAD_LETTERED: Final = "dlq_published_ack_success"

Collect = Callable[[], Iterable[Metric]]


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


class _CompanySeries:
    """The series of one company. Reading them takes under a millisecond."""

    def __init__(self, collectors: Collectors, company: str) -> None:
        labels = [(event_type, company, consumer_type(event_type)) for event_type in EVENT_TYPES]
        self._counts: tuple[list[Collect], ...] = (
            [collectors.events_received.labels(*each).collect for each in labels],
            [collectors.events_processed.labels(*each).collect for each in labels],
            [collectors.events_failed.labels(*each).collect for each in labels],
            [
                collectors.actions.labels(*each, action, error_type).collect
                for each in labels
                for action, error_type in outcomes(each[0])
                if action == DEAD_LETTERED
            ],
        )
        self._processing = [collectors.processing.labels(*each).collect for each in labels]
        self._batches = {
            (company, consumer): collectors.batches.labels(company, consumer).collect
            for consumer in CONSUMERS
        }

    def counts(self) -> list[float]:
        return [sum(value for each in group for _, value in _values(each)) for group in self._counts]

    def processing(self) -> list[float]:
        return _sums(_buckets(collect) for collect in self._processing)

    def sources(self) -> Iterator[tuple[tuple[str, str], Received]]:
        for source, collect in self._batches.items():
            values = dict(_values(collect))
            yield source, Received(_ending(values, "_count"), _ending(values, "_sum"))


class MetricsHistory:
    """Snapshots of the last 15 minutes, and the rates that follow from them.

    Events are not slowed down: their counters are read from outside, one company at a time, and the event loop gets
    its turn in between.
    """

    def __init__(
        self,
        collectors: Collectors,
        companies: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._companies = [_CompanySeries(collectors, company) for company in companies]
        self._snapshots: deque[Snapshot] = deque(maxlen=int(HISTORY_SECONDS / SNAPSHOT_EVERY) + 1)
        # By company and consumer.
        self._sources: deque[tuple[float, dict[tuple[str, str], Received]]] = deque(
            maxlen=int(RATE_WINDOW / SNAPSHOT_EVERY) + 1
        )

    @property
    def latest(self) -> Snapshot | None:
        """The newest snapshot; None before the first."""
        return self._snapshots[-1] if self._snapshots else None

    async def record(self) -> bool:
        """Record one snapshot; a periodic task, to be run every `SNAPSHOT_EVERY` seconds."""
        at = self._clock()
        counts = [0.0] * len(COUNTS)
        processing = [0.0] * (len(PROCESSING_BUCKETS) + 1)
        sources: dict[tuple[str, str], Received] = {}
        for company in self._companies:
            counts = _sums((counts, company.counts()))
            processing = _sums((processing, company.processing()))
            sources.update(company.sources())
            await asyncio.sleep(0)
        self._snapshots.append(Snapshot(at, counts, processing))
        self._sources.append((at, sources))
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
        if len(self._sources) < 2:
            return None
        (since, old), (until, new) = self._sources[0], self._sources[-1]
        before, after = old[company, consumer], new[company, consumer]
        span = until - since
        return Received((after.batches - before.batches) / span, (after.messages - before.messages) / span)

    def intervals(self) -> Iterator[tuple[Snapshot, Snapshot]]:
        """Each two neighbouring snapshots, oldest first."""
        return pairwise(self._snapshots)


def rates(older: Snapshot, newer: Snapshot) -> dict[str, float]:
    """Each counter's increase a second between two snapshots."""
    span = newer.at - older.at
    pairs = zip(older.counts, newer.counts, strict=True)
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


def _values(collect: Collect) -> Iterator[tuple[str, float]]:
    return ((sample.name, sample.value) for metric in collect() for sample in metric.samples)


def _buckets(collect: Collect) -> list[float]:
    return [value for name, value in _values(collect) if name.endswith("_bucket")]


def _ending(values: dict[str, float], suffix: str) -> float:
    return next(value for name, value in values.items() if name.endswith(suffix))


def _sums(rows: Iterable[Sequence[float]]) -> list[float]:
    return [sum(column) for column in zip(*rows, strict=True)]
