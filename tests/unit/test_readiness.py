"""What /ready answers, and why (contract 8.1, C18)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from streams.readiness import FETCH_SILENCE, NO_PROGRESS, Readiness
from tables.errors import Unavailable


@dataclass
class Watched:
    """A source that says what it is told to; times are seconds ago."""

    name: str = "realtime Kopi"
    held: int = 0
    fetched_ago: float = 0.0
    progress_ago: float = 0.0
    now: float = field(default_factory=time.monotonic)

    @property
    def last_fetch(self) -> float:
        return self.now - self.fetched_ago

    @property
    def last_progress(self) -> float:
        return self.now - self.progress_ago


async def answers() -> None:
    """A database that answers."""


def running(*sources: Watched) -> Readiness:
    """A worker that runs without trouble."""
    readiness = Readiness()
    readiness.started()
    readiness.broker_problem = lambda: None
    readiness.ping_database = answers
    readiness.sources = sources
    return readiness


async def test_a_worker_with_everything_in_place_is_ready() -> None:
    assert await running(Watched(held=5)).reasons() == {}


async def test_a_worker_that_only_just_started_is_not_ready() -> None:
    assert set(await Readiness().reasons()) >= {"worker", "nats"}


async def test_a_source_that_makes_no_progress_while_work_is_pending_is_not_ready() -> None:
    stuck = Watched(held=3, progress_ago=NO_PROGRESS + 1)
    [(name, reason)] = (await running(stuck).reasons()).items()
    assert name == stuck.name
    assert "3" in reason


async def test_a_source_without_work_needs_no_progress() -> None:
    assert await running(Watched(held=0, progress_ago=NO_PROGRESS + 1)).reasons() == {}


async def test_a_source_whose_requests_are_not_answered_is_not_ready() -> None:
    assert list(await running(Watched(fetched_ago=FETCH_SILENCE + 1)).reasons()) == ["realtime Kopi"]


async def test_a_source_that_waits_for_its_agent_need_not_fetch() -> None:
    assert await running(Watched(held=5, fetched_ago=FETCH_SILENCE + 1)).reasons() == {}


async def test_a_dead_agent_is_named() -> None:
    readiness = running()
    readiness.dead_agents = lambda: ["routing"]
    assert "routing" in (await readiness.reasons())["agents"]


async def test_a_lost_connection_is_told_with_its_reason() -> None:
    readiness = running()
    readiness.broker_problem = lambda: "not connected"
    assert await readiness.reasons() == {"nats": "not connected"}


@pytest.mark.parametrize("error", [Unavailable("connection refused"), OSError("reset")])
async def test_a_database_that_does_not_answer_is_told_with_its_reason(error: Exception) -> None:
    async def fails() -> None:
        raise error

    readiness = running()
    readiness.ping_database = fails
    assert await readiness.reasons() == {"postgres": str(error)}


async def test_a_database_that_hangs_costs_one_connection_however_often_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.readiness.PING_TIMEOUT", 0.01)
    asked, awake = 0, asyncio.Event()

    async def hangs() -> None:
        nonlocal asked
        asked += 1
        await awake.wait()

    readiness = running()
    readiness.ping_database = hangs
    for _ in range(3):
        assert await readiness.reasons() == {"postgres": "no answer"}
    assert asked == 1
    awake.set()
    both = await asyncio.gather(readiness.reasons(), readiness.reasons())
    assert not any(both)


async def test_whoever_waits_is_told_with_its_reason_until_it_goes_on() -> None:
    readiness = running()
    readiness.paused("postgres", "the disk is full")
    readiness.paused("dead letters Kopi", "dlq_stream takes nothing")
    assert await readiness.reasons() == {
        "postgres": "the disk is full",
        "dead letters Kopi": "dlq_stream takes nothing",
    }
    assert await readiness.outage()
    readiness.resumed("postgres")
    assert await readiness.reasons() == {"dead letters Kopi": "dlq_stream takes nothing"}
    assert await readiness.outage() == "dlq_stream takes nothing"
    readiness.resumed("dead letters Kopi")
    assert await readiness.reasons() == {}
    assert await readiness.outage() is None


async def test_a_wait_is_logged_when_it_begins_when_its_reason_changes_and_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "streams.readiness")
    readiness = running()
    for reason in ("full", "full", "no answer", "full", "no answer"):
        readiness.paused("dead letters Kopi", reason)
    for _ in range(2):
        readiness.resumed("dead letters Kopi")
    readiness.paused("dead letters Kopi", "full")
    assert [record.getMessage() for record in caplog.records] == [
        "waiting: dead letters Kopi: full",
        "waiting: dead letters Kopi: no answer",
        "no longer waiting: dead letters Kopi",
        "waiting: dead letters Kopi: full",
    ]


async def test_a_worker_that_stops_is_not_ready() -> None:
    readiness = running()
    readiness.stopping()
    assert list(await readiness.reasons()) == ["worker"]
