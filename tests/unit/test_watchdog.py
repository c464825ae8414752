"""A worker that has work and servers, and gets nothing done, ends; one that waits for a server does not."""

from __future__ import annotations

from typing import Any

import pytest

from streams.jetstream.consumer_state import ConsumerStates
from streams.lifecycle.watchdog import STALE, SUSPICIOUS, Watchdog
from streams.monitoring.metrics import Metrics
from tests.sources import StubSource

LIMIT = 300.0


class Rig:
    """A watch over one source, on a clock that is set by hand."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.now = 1000.0
        self.source = StubSource()
        self.consumer_states = ConsumerStates(clock=lambda: self.now)
        self.metrics = Metrics(["KopiNusa", "TehNusa"], version="1")
        self.away: str | None = None
        self.failures: list[str] = []
        self.watchdog = Watchdog(
            sources=[self.source],
            consumer_states=self.consumer_states,
            operations=self.metrics.operations,
            limit=limit,
            outage=self._outage,
            fail=self.failures.append,
            clock=lambda: self.now,
        )

    async def _outage(self) -> str | None:
        return self.away

    def note(self, pending: int, **further: Any) -> None:
        """The server reports the consumer."""
        info = {"ack_floor": {"stream_seq": 1}, "num_pending": pending, "num_ack_pending": 0, "config": {}}
        self.consumer_states.note(self.source.stream, self.source.durable, {**info, **further})

    async def wait(self, seconds: float, pending: int | None = None, **further: Any) -> None:
        """Let time pass, with a look every five seconds, as the scheduler does."""
        end = self.now + seconds
        while self.now < end:
            self.now += 5
            if pending is not None:
                self.note(pending, **further)
            await self.watchdog.look()


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_deliveries_that_nobody_settles_end_the_worker(rig: Rig) -> None:
    rig.source.in_flight = 3
    await rig.wait(SUSPICIOUS + 10)
    assert "3 deliveries under way, no progress" in rig.watchdog.problems()[rig.source.name]
    assert not rig.failures
    await rig.wait(LIMIT)
    assert "3 deliveries under way" in rig.failures[0]


async def test_events_that_wait_while_none_arrives_end_the_worker(rig: Rig) -> None:
    await rig.wait(LIMIT + 10, pending=7)
    assert "7 events waiting" in rig.failures[0]


async def test_a_source_without_work_may_rest_for_ever(rig: Rig) -> None:
    await rig.wait(3 * LIMIT, pending=0)
    assert not rig.failures
    assert not rig.watchdog.problems()


async def test_a_source_that_moves_is_at_work(rig: Rig) -> None:
    rig.source.in_flight = 3
    for _ in range(10):
        rig.source.progress_count += 1
        await rig.wait(LIMIT / 2)
    assert not rig.failures


async def test_a_batch_whose_rows_are_still_being_written_is_at_work(rig: Rig) -> None:
    rig.source.in_flight = 1
    observe = rig.metrics.database_observer("KopiNusa")
    for _ in range(10):
        observe("UpsertMessage", "Message", 0.1, True)
        await rig.wait(LIMIT / 2)
    assert not rig.failures


async def test_operations_that_fail_and_those_of_another_company_are_no_progress(rig: Rig) -> None:
    rig.source.in_flight = 1
    for _ in range(4):
        rig.metrics.database_observer("KopiNusa")("UpsertMessage", "Message", 0.1, False)
        rig.metrics.database_observer("TehNusa")("UpsertMessage", "Message", 0.1, True)
        await rig.wait(LIMIT / 2)
    assert rig.failures


@pytest.mark.rule("RUN-10")
async def test_a_known_outage_is_waited_out_and_the_time_begins_anew_after_it(rig: Rig) -> None:
    rig.source.in_flight = 3
    await rig.wait(LIMIT - 50)
    rig.away = "postgres: no server answers"
    await rig.wait(10 * LIMIT)
    rig.away = None
    await rig.wait(LIMIT - 50)
    assert not rig.failures
    await rig.wait(100)
    assert rig.failures


@pytest.mark.parametrize(
    "further", [{"paused": True}, {"config": {"max_ack_pending": 10}, "num_ack_pending": 10}]
)
async def test_a_consumer_that_gives_nothing_on_purpose_is_no_stall(
    rig: Rig, further: dict[str, Any]
) -> None:
    await rig.wait(3 * LIMIT, pending=7, **further)
    assert not rig.failures


async def test_an_old_figure_says_nothing_of_the_present(rig: Rig) -> None:
    rig.note(7)
    await rig.wait(STALE + 3 * LIMIT)
    assert not rig.failures


async def test_without_a_limit_it_only_tells() -> None:
    rig = Rig(limit=0)
    rig.source.in_flight = 3
    await rig.wait(3 * LIMIT)
    assert rig.watchdog.problems()
    assert not rig.failures
