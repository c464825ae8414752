"""The last minutes of a worker in numbers: read from its collectors now and then, kept in a bounded ring."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from prometheus_client import Metric

from events.subjects import EVENT_TYPES, consumer_type
from streams.monitoring.collectors import CONSUMERS, PROCESSING_BUCKETS, Collectors, outcomes

# Seconds between two samples, and how far back they go.
EVERY: Final = 5.0
REACH: Final = 900.0
# Over which the present rate is taken.
WINDOW: Final = 60.0
DEAD_LETTERED: Final = "dlq_published_ack_success"

Collect = Callable[[], Iterable[Metric]]


class Sample(NamedTuple):
    """What had been counted at a moment, over all companies; `at` in `time.monotonic()` seconds.

    `processing` is the histogram of processing times, cumulative over its buckets.
    """

    at: float
    received: float
    processed: float
    failed: float
    dead_lettered: float
    processing: tuple[float, ...]


COUNTS: Final = ("received", "processed", "failed", "dead_lettered")


class Pulled(NamedTuple):
    """Batches and messages that a source has handed over."""

    batches: float
    messages: float


class Rates(NamedTuple):
    """Batches and messages a second."""

    batches: float
    messages: float


Key = tuple[str, str]


class _Company:
    """The children of one company. Reading them takes under a millisecond."""

    def __init__(self, on: Collectors, company: str) -> None:
        labels = [(event_type, company, consumer_type(event_type)) for event_type in EVENT_TYPES]
        self._counts: tuple[list[Collect], ...] = (
            [on.events_received.labels(*each).collect for each in labels],
            [on.events_processed.labels(*each).collect for each in labels],
            [on.events_failed.labels(*each).collect for each in labels],
            [
                on.actions.labels(*each, action, error_type).collect
                for each in labels
                for action, error_type in outcomes(each[0])
                if action == DEAD_LETTERED
            ],
        )
        self._processing = [on.processing.labels(*each).collect for each in labels]
        self._batches = {
            (company, consumer): on.batches.labels(company, consumer).collect for consumer in CONSUMERS
        }

    def counts(self) -> list[float]:
        return [sum(value for each in group for _, value in _values(each)) for group in self._counts]

    def processing(self) -> list[float]:
        return _added(_buckets(collect) for collect in self._processing)

    def pulled(self) -> Iterator[tuple[Key, Pulled]]:
        for key, collect in self._batches.items():
            values = dict(_values(collect))
            yield key, Pulled(_ending(values, "_count"), _ending(values, "_sum"))


class Samples:
    """Takes the samples and tells what follows from them.

    The hot path is not touched: what is counted anyway is read from the side, one company at a time, with a
    pause for the events between two of them.
    """

    def __init__(
        self,
        collectors: Collectors,
        companies: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._companies = [_Company(collectors, company) for company in companies]
        self._ring: deque[Sample] = deque(maxlen=int(REACH / EVERY) + 1)
        self._sources: deque[tuple[float, dict[Key, Pulled]]] = deque(maxlen=int(WINDOW / EVERY) + 1)

    @property
    def latest(self) -> Sample | None:
        """The newest sample, if there is one yet."""
        return self._ring[-1] if self._ring else None

    async def take(self) -> bool:
        """Take one sample; to be repeated every `EVERY` seconds."""
        at = self._clock()
        counts = [0.0] * len(COUNTS)
        processing = [0.0] * (len(PROCESSING_BUCKETS) + 1)
        sources: dict[Key, Pulled] = {}
        for company in self._companies:
            counts = _added((counts, company.counts()))
            processing = _added((processing, company.processing()))
            sources.update(company.pulled())
            await asyncio.sleep(0)
        received, processed, failed, dead_lettered = counts
        self._ring.append(Sample(at, received, processed, failed, dead_lettered, tuple(processing)))
        self._sources.append((at, sources))
        return False

    def window(self) -> tuple[Sample, Sample] | None:
        """The newest sample and the one about `WINDOW` seconds older, or the oldest while there is none."""
        if len(self._ring) < 2:
            return None
        newest = self._ring[-1]
        start = self._ring[-2]
        for sample in reversed(self._ring):
            if newest.at - sample.at > WINDOW + EVERY / 2:
                break
            start = sample if sample is not newest else start
        return start, newest

    def pulled(self, company: str, consumer: str) -> Rates | None:
        """What a source has handed over in the last minute; None before there are two samples."""
        if len(self._sources) < 2:
            return None
        (since, old), (until, new) = self._sources[0], self._sources[-1]
        before, after = old[company, consumer], new[company, consumer]
        span = until - since
        return Rates((after.batches - before.batches) / span, (after.messages - before.messages) / span)

    def steps(self) -> Iterator[tuple[Sample, Sample]]:
        """Each two neighbours, oldest first."""
        return pairwise(self._ring)


def rates(older: Sample, newer: Sample) -> dict[str, float]:
    """What was counted between two samples, per second."""
    span = newer.at - older.at
    return {name: (getattr(newer, name) - getattr(older, name)) / span for name in COUNTS}


def percentile(share: float, older: Sample, newer: Sample) -> float | None:
    """The processing time, in seconds, that this share of the deliveries between two samples did not exceed.

    Interpolated inside a bucket; beyond the last bound, that bound. None when there were no deliveries.
    """
    counts = [after - before for before, after in zip(older.processing, newer.processing, strict=True)]
    rank = share * counts[-1]
    if rank <= 0:
        return None
    low, below = 0.0, 0.0
    for bound, count in zip((*PROCESSING_BUCKETS, math.inf), counts, strict=True):
        if count >= rank and bound < math.inf:
            return low + (bound - low) * (rank - below) / (count - below)
        if bound < math.inf:
            low, below = bound, count
    return low


def _values(collect: Collect) -> Iterator[tuple[str, float]]:
    return ((sample.name, sample.value) for metric in collect() for sample in metric.samples)


def _buckets(collect: Collect) -> list[float]:
    return [value for name, value in _values(collect) if name.endswith("_bucket")]


def _ending(values: dict[str, float], suffix: str) -> float:
    return next(value for name, value in values.items() if name.endswith(suffix))


def _added(rows: Iterable[Sequence[float]]) -> list[float]:
    return [sum(column) for column in zip(*rows, strict=True)]
