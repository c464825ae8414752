"""What /ready answers, and why."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from streams.lifecycle.readiness import FETCH_SILENCE, NO_PROGRESS, REFUSED_SILENCE, Readiness
from tables.errors import Unavailable
from tests.sources import StubSource


def source(*, held: int = 0, fetched_ago: float = 0.0, progress_ago: float = 0.0) -> StubSource:
    """A source; times are seconds ago."""
    now = time.monotonic()
    return StubSource(held=held, last_fetch=now - fetched_ago, last_progress=now - progress_ago)


async def answers() -> None:
    """A database that answers."""


def running(*sources: StubSource) -> Readiness:
    """A worker that runs without trouble."""
    readiness = Readiness()
    readiness.started()
    readiness.broker_problem = lambda: None
    readiness.ping_database = answers
    readiness.sources = sources
    return readiness


async def test_a_worker_with_everything_in_place_is_ready() -> None:
    assert await running(source(held=5)).reasons() == {}


async def test_a_worker_that_only_just_started_is_not_ready() -> None:
    assert set(await Readiness().reasons()) >= {"worker", "nats"}


async def test_a_source_that_makes_no_progress_while_work_is_pending_is_not_ready() -> None:
    stuck = source(held=3, progress_ago=NO_PROGRESS + 1)
    [(name, reason)] = (await running(stuck).reasons()).items()
    assert name == stuck.name
    assert "3" in reason


async def test_a_source_without_work_needs_no_progress() -> None:
    assert await running(source(held=0, progress_ago=NO_PROGRESS + 1)).reasons() == {}


async def test_a_source_whose_requests_are_not_answered_is_not_ready() -> None:
    assert list(await running(source(fetched_ago=FETCH_SILENCE + 1)).reasons()) == ["realtime KopiNusa"]


async def test_a_source_that_waits_for_its_agent_need_not_fetch() -> None:
    assert await running(source(held=5, fetched_ago=FETCH_SILENCE + 1)).reasons() == {}


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
    monkeypatch.setattr("streams.lifecycle.readiness.PING_TIMEOUT", 0.01)
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
    readiness.paused("storing Kopi", "the disk is full")
    readiness.paused("dead letters Kopi", "dlq_stream takes nothing")
    assert await readiness.reasons() == {
        "postgres": "the disk is full (storing Kopi)",
        "dead letters Kopi": "dlq_stream takes nothing",
    }
    assert await readiness.outage()
    readiness.resumed("storing Kopi")
    assert await readiness.reasons() == {"dead letters Kopi": "dlq_stream takes nothing"}
    assert await readiness.outage()
    readiness.resumed("dead letters Kopi")
    assert await readiness.reasons() == {}
    assert await readiness.outage() is None


async def test_a_wait_is_logged_when_it_begins_when_its_reason_changes_and_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    readiness = running()
    for reason in ("full", "full", "no answer", "full", "no answer"):
        readiness.paused("dead letters Kopi", reason)
    for _ in range(2):
        readiness.resumed("dead letters Kopi")
    readiness.paused("dead letters Kopi", "full")
    assert [record.getMessage() for record in caplog.records] == [
        "dead letters Kopi waits: full",
        "dead letters Kopi waits: no answer",
        "dead letters Kopi works again",
        "dead letters Kopi waits: full",
    ]


async def test_each_waiter_has_a_reason_of_its_own_and_ends_no_others() -> None:
    readiness = running()
    readiness.paused("storing KopiNusa01", "a sequence is at its end")
    readiness.paused("onboarding KopiNusa02", "a right is missing")
    readiness.resumed("storing KopiNusa02")
    told = (await readiness.reasons())["postgres"]
    assert "a sequence is at its end (storing KopiNusa01)" in told
    assert "a right is missing (onboarding KopiNusa02)" in told
    readiness.resumed("storing KopiNusa01")
    assert await readiness.reasons() == {"postgres": "a right is missing (onboarding KopiNusa02)"}


async def test_a_worker_that_stops_is_not_ready() -> None:
    readiness = running()
    readiness.stopping()
    assert list(await readiness.reasons()) == ["worker"]


async def test_each_waiter_has_its_own_reason_and_is_logged_once_until_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    readiness = running()
    caplog.set_level(logging.INFO)
    for _ in range(50):
        readiness.paused("storing Kopi", "the disk is full")
        readiness.paused("onboarding Kopi", "a lock")
        readiness.paused("storing Teh", "the disk is full")
    assert await readiness.reasons() == {
        "postgres": "the disk is full (storing Kopi, storing Teh); a lock (onboarding Kopi)"
    }
    readiness.resumed("storing Kopi")
    readiness.resumed("storing Teh")
    assert await readiness.reasons() == {"postgres": "a lock (onboarding Kopi)"}
    readiness.resumed("onboarding Kopi")
    assert await readiness.reasons() == {}
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(warned) == [
        "onboarding Kopi waits: a lock",
        "storing Kopi waits: the disk is full",
        "storing Teh waits: the disk is full",
    ]
    ended = [record.message for record in caplog.records if record.levelno == logging.INFO]
    assert sorted(ended) == [
        "onboarding Kopi works again",
        "storing Kopi works again",
        "storing Teh works again",
    ]


async def test_a_reason_that_changes_is_logged_and_one_that_comes_back_is_not_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    readiness = running()
    for _ in range(20):
        readiness.paused("storing Kopi", "refused")
        readiness.paused("storing Kopi", "no answer")
    assert [record.message for record in caplog.records] == [
        "storing Kopi waits: refused",
        "storing Kopi waits: no answer",
    ]
    readiness.resumed("storing Kopi")
    readiness.paused("storing Kopi", "refused")
    assert len([record for record in caplog.records if record.message.endswith("refused")]) == 2


async def test_many_companies_that_wait_for_one_thing_are_one_short_line() -> None:
    readiness = running()
    for number in range(50):
        readiness.paused(f"storing K{number}", "the disk is full")
    assert await readiness.reasons() == {
        "postgres": "the disk is full (storing K0, storing K1, storing K2 and 47 more)"
    }


async def test_a_company_that_is_not_served_yet_is_no_outage_for_those_that_are() -> None:
    readiness = running()
    readiness.unserved("realtime Two", "too many consumers")
    assert await readiness.reasons() == {"realtime Two": "too many consumers"}
    assert await readiness.outage() is None
    readiness.served("realtime Two")
    assert await readiness.reasons() == {}


async def test_a_source_whose_consumer_is_refused_says_so_without_the_long_silence() -> None:
    silent = source(fetched_ago=REFUSED_SILENCE + 1)
    readiness = running(silent)
    assert await readiness.reasons() == {}
    readiness.unanswered(silent.name, "maximum consumers limit reached")
    assert await readiness.reasons() == {silent.name: "maximum consumers limit reached"}
    silent.last_fetch = time.monotonic()
    assert await readiness.reasons() == {}
