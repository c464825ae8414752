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


async def test_a_pause_of_storing_is_told_until_it_works_again() -> None:
    readiness = running()
    readiness.paused("storing KopiNusa01", "the disk is full")
    assert await readiness.reasons() == {"postgres": "storing KopiNusa01: the disk is full"}
    readiness.resumed("storing KopiNusa01")
    assert await readiness.reasons() == {}


async def test_each_waiter_has_a_reason_of_its_own_and_ends_no_others() -> None:
    readiness = running()
    readiness.paused("storing KopiNusa01", "a sequence is at its end")
    readiness.paused("onboarding KopiNusa02", "a right is missing")
    readiness.resumed("storing KopiNusa02")
    told = (await readiness.reasons())["postgres"]
    assert "storing KopiNusa01: a sequence is at its end" in told
    assert "onboarding KopiNusa02: a right is missing" in told
    readiness.resumed("storing KopiNusa01")
    assert await readiness.reasons() == {"postgres": "onboarding KopiNusa02: a right is missing"}


async def test_a_worker_that_stops_is_not_ready() -> None:
    readiness = running()
    readiness.stopping()
    assert list(await readiness.reasons()) == ["worker"]
