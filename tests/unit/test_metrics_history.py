"""The last minutes of the metrics: snapshots hold what was counted."""

from __future__ import annotations

import math

import pytest

from streams.monitoring.collectors import PROCESSING_BUCKETS
from streams.monitoring.metrics import Metrics
from streams.monitoring.metrics_history import (
    HISTORY_SECONDS,
    SNAPSHOT_EVERY,
    MetricsHistory,
    Received,
    Snapshot,
    percentile,
    rates,
)

COMPANIES = ("KopiNusa01", "WarungSari")


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Recorder:
    """Metrics, and snapshots of them every five seconds of a clock of their own."""

    def __init__(self) -> None:
        self.metrics = Metrics(COMPANIES, version="1.2.3")
        self.clock = Clock()
        self.history = MetricsHistory(self.metrics, clock=self.clock)

    async def after(self, seconds: float = SNAPSHOT_EVERY) -> None:
        self.clock.now += seconds
        assert await self.history.record() is False

    def settled(self, company: str, count: int, action: str = "ack_success", error: str = "none") -> None:
        for _ in range(count):
            self.metrics.settled(company, "v1.messages.upsert", action, error, 0.005, 0.001)


def snapshot(**processing: int) -> Snapshot:
    """A snapshot with so many deliveries up to each named bucket: `_3=10` is ten in the fourth one."""
    counts = [0.0] * (len(PROCESSING_BUCKETS) + 1)
    for name, count in processing.items():
        for bucket in range(int(name[1:]), len(counts)):
            counts[bucket] += count
    return Snapshot(0.0, (), counts)


async def test_counts_are_added_over_companies_and_event_types() -> None:
    recorder = Recorder()
    recorder.metrics.received("KopiNusa01", "v1.messages.upsert", 5)
    recorder.metrics.received("WarungSari", "v1.history.chats", 2)
    recorder.settled("KopiNusa01", 3)
    recorder.settled("WarungSari", 1, "nack_retryable", "timeout")
    recorder.settled("WarungSari", 2, "dlq_published_ack_success", "validation")
    recorder.settled("KopiNusa01", 1, "dlq_published_ack_success", "unmarshal")
    await recorder.after()
    latest = recorder.history.latest
    assert latest is not None
    assert latest.counts == [7, 3, 4, 3]
    assert latest.processing[0] == latest.processing[-1] == 7


async def test_the_present_rate_is_that_of_the_last_minute() -> None:
    recorder = Recorder()
    recorder.metrics.received("KopiNusa01", "v1.messages.upsert", 1000)
    assert recorder.history.window() is None
    await recorder.after()
    assert recorder.history.window() is None
    for _ in range(20):
        recorder.metrics.received("KopiNusa01", "v1.messages.upsert", 10)
        await recorder.after()
    window = recorder.history.window()
    assert window is not None
    assert window[1].at - window[0].at == 60
    assert rates(*window) == {"received": 2, "processed": 0, "failed": 0, "dead_lettered": 0}


async def test_a_rate_is_by_the_time_that_passed_not_by_the_time_that_was_planned() -> None:
    recorder = Recorder()
    await recorder.after()
    recorder.metrics.received("KopiNusa01", "v1.messages.upsert", 30)
    await recorder.after(15)
    [interval] = recorder.history.intervals()
    assert rates(*interval)["received"] == 2


async def test_what_each_source_received_is_kept_apart() -> None:
    recorder = Recorder()
    await recorder.after()
    assert recorder.history.source_rates("KopiNusa01", "realtime") is None
    recorder.metrics.batch_received("KopiNusa01", "realtime", 70)
    recorder.metrics.batch_received("KopiNusa01", "realtime", 30)
    recorder.metrics.batch_received("WarungSari", "dlq", 5)
    await recorder.after(10)
    assert recorder.history.source_rates("KopiNusa01", "realtime") == Received(0.2, 10)
    assert recorder.history.source_rates("WarungSari", "dlq") == Received(0.1, 0.5)
    assert recorder.history.source_rates("WarungSari", "realtime") == Received(0, 0)


async def test_no_more_is_kept_than_fifteen_minutes() -> None:
    recorder = Recorder()
    for _ in range(300):
        await recorder.after()
    intervals = list(recorder.history.intervals())
    assert len(intervals) == HISTORY_SECONDS / SNAPSHOT_EVERY
    assert intervals[-1][1].at - intervals[0][0].at == HISTORY_SECONDS


@pytest.mark.parametrize(
    ("share", "counts", "seconds"),
    [
        (0.5, {"_0": 10}, 0.005),
        (0.5, {"_1": 10}, 0.015),
        (0.95, {"_0": 90, "_3": 10}, 0.06),
        (0.5, {"_0": 90, "_3": 10}, 0.01 * 50 / 90),
        (1.0, {"_2": 1}, 0.04),
        # Slower than the slowest bucket: at least that.
        (0.95, {"_12": 1}, 20.48),
    ],
)
def test_a_percentile_lies_in_its_bucket(share: float, counts: dict[str, int], seconds: float) -> None:
    found = percentile(share, snapshot(), snapshot(**counts))
    assert found is not None
    assert math.isclose(found, seconds)


def test_a_percentile_is_of_the_deliveries_between_the_two_snapshots() -> None:
    assert percentile(0.5, snapshot(_9=1000), snapshot(_9=1000, _0=10)) == 0.005


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile(0.5, snapshot(_0=10), snapshot(_0=10)) is None
