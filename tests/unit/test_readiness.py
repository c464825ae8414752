"""What /ready answers, and why."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from streams.jetstream.broker import Broker
from streams.jetstream.consumer_state import ConsumerStates
from streams.lifecycle.conditions import Conditions
from streams.lifecycle.outages import Outages
from streams.lifecycle.readiness import FETCH_SILENCE, NO_PROGRESS, REFUSED_SILENCE, Readiness
from streams.lifecycle.watchdog import Watchdog
from tables.errors import Unavailable
from tests.sources import StubSource


async def answers() -> None:
    """A database that answers."""


class Worker:
    """A worker that runs without trouble."""

    def __init__(
        self,
        *sources: StubSource,
        problem: str | None = None,
        ping: Callable[[], Awaitable[None]] = answers,
        dead_agents: Sequence[str] = (),
    ) -> None:
        self.conditions = Conditions()
        self.outages = Outages(self.conditions, cast(Broker, SimpleNamespace(problem=problem)), ping)
        watchdog = Watchdog(
            sources=sources,
            consumer_states=ConsumerStates(),
            operations=Counter(),
            limit=0.0,
            outage=self.outages.current,
            fail=pytest.fail,
        )
        self.readiness = Readiness(
            conditions=self.conditions,
            outages=self.outages,
            watchdog=watchdog,
            sources=sources,
            running_agents=lambda: dict.fromkeys(dead_agents, False),
        )
        self.conditions.phase = ""

    async def reasons(self) -> Mapping[str, str]:
        return await self.readiness.reasons()


def seconds_ago(seconds: float) -> float:
    return time.monotonic() - seconds


@pytest.mark.rule("RUN-2")
async def test_a_worker_with_everything_in_place_is_ready() -> None:
    assert await Worker(StubSource(in_flight=5)).reasons() == {}


async def test_a_worker_that_only_just_started_is_not_ready() -> None:
    worker = Worker(problem="not connected yet")
    worker.conditions.phase = "NATS"
    assert set(await worker.reasons()) >= {"worker", "nats"}


@pytest.mark.rule("RUN-2")
async def test_a_source_that_makes_no_progress_while_work_is_pending_is_not_ready() -> None:
    stuck = StubSource(in_flight=3, last_progress=seconds_ago(NO_PROGRESS + 1))
    [(name, reason)] = (await Worker(stuck).reasons()).items()
    assert name == stuck.name
    assert "3" in reason


async def test_a_source_without_work_needs_no_progress() -> None:
    assert await Worker(StubSource(in_flight=0, last_progress=seconds_ago(NO_PROGRESS + 1))).reasons() == {}


async def test_a_source_whose_requests_are_not_answered_is_not_ready() -> None:
    assert list(await Worker(StubSource(last_fetch=seconds_ago(FETCH_SILENCE + 1))).reasons()) == [
        "realtime KopiNusa"
    ]


async def test_a_source_that_waits_for_its_agent_need_not_fetch() -> None:
    assert await Worker(StubSource(in_flight=5, last_fetch=seconds_ago(FETCH_SILENCE + 1))).reasons() == {}


@pytest.mark.rule("RUN-2")
async def test_a_dead_agent_is_named() -> None:
    worker = Worker(dead_agents=["routing"])
    assert "routing" in (await worker.reasons())["agents"]


async def test_a_lost_connection_is_told_with_its_reason() -> None:
    assert await Worker(problem="not connected").reasons() == {"nats": "not connected"}


@pytest.mark.parametrize("error", [Unavailable("connection refused"), OSError("reset")])
async def test_a_database_that_does_not_answer_is_told_with_its_reason(error: Exception) -> None:
    async def fails() -> None:
        raise error

    assert await Worker(ping=fails).reasons() == {"postgres": str(error)}


async def test_a_database_that_hangs_costs_one_connection_however_often_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.lifecycle.outages.PING_TIMEOUT", 0.01)
    asked, awake = 0, asyncio.Event()

    async def hangs() -> None:
        nonlocal asked
        asked += 1
        await awake.wait()

    worker = Worker(ping=hangs)
    for _ in range(3):
        assert await worker.reasons() == {"postgres": "no answer"}
    assert asked == 1
    awake.set()
    both = await asyncio.gather(worker.reasons(), worker.reasons())
    assert not any(both)


async def test_whoever_waits_is_told_with_its_reason_until_it_goes_on() -> None:
    worker = Worker()
    worker.conditions.paused("storing Kopi", "the disk is full")
    worker.conditions.paused("dead letters Kopi", "dlq_stream takes nothing")
    assert await worker.reasons() == {
        "postgres": "the disk is full (storing Kopi)",
        "dead letters Kopi": "dlq_stream takes nothing",
    }
    assert await worker.outages.current()
    worker.conditions.resumed("storing Kopi")
    assert await worker.reasons() == {"dead letters Kopi": "dlq_stream takes nothing"}
    assert await worker.outages.current()
    worker.conditions.resumed("dead letters Kopi")
    assert await worker.reasons() == {}
    assert await worker.outages.current() is None


async def test_a_wait_is_logged_when_it_begins_when_its_reason_changes_and_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    worker = Worker()
    for reason in ("full", "full", "no answer", "full", "no answer"):
        worker.conditions.paused("dead letters Kopi", reason)
    for _ in range(2):
        worker.conditions.resumed("dead letters Kopi")
    worker.conditions.paused("dead letters Kopi", "full")
    assert [record.getMessage() for record in caplog.records] == [
        "dead letters Kopi waits: full",
        "dead letters Kopi waits: no answer",
        "dead letters Kopi works again",
        "dead letters Kopi waits: full",
    ]


async def test_each_waiter_has_a_reason_of_its_own_and_ends_no_others() -> None:
    worker = Worker()
    worker.conditions.paused("storing KopiNusa01", "a sequence is at its end")
    worker.conditions.paused("onboarding KopiNusa02", "a right is missing")
    worker.conditions.resumed("storing KopiNusa02")
    told = (await worker.reasons())["postgres"]
    assert "a sequence is at its end (storing KopiNusa01)" in told
    assert "a right is missing (onboarding KopiNusa02)" in told
    worker.conditions.resumed("storing KopiNusa01")
    assert await worker.reasons() == {"postgres": "a right is missing (onboarding KopiNusa02)"}


async def test_a_worker_that_stops_is_not_ready() -> None:
    worker = Worker()
    worker.conditions.phase = "stopping"
    assert list(await worker.reasons()) == ["worker"]


async def test_each_waiter_has_its_own_reason_and_is_logged_once_until_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()
    caplog.set_level(logging.INFO)
    for _ in range(50):
        worker.conditions.paused("storing Kopi", "the disk is full")
        worker.conditions.paused("onboarding Kopi", "a lock")
        worker.conditions.paused("storing Teh", "the disk is full")
    assert await worker.reasons() == {
        "postgres": "the disk is full (storing Kopi, storing Teh); a lock (onboarding Kopi)"
    }
    worker.conditions.resumed("storing Kopi")
    worker.conditions.resumed("storing Teh")
    assert await worker.reasons() == {"postgres": "a lock (onboarding Kopi)"}
    worker.conditions.resumed("onboarding Kopi")
    assert await worker.reasons() == {}
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
    worker = Worker()
    for _ in range(20):
        worker.conditions.paused("storing Kopi", "refused")
        worker.conditions.paused("storing Kopi", "no answer")
    assert [record.message for record in caplog.records] == [
        "storing Kopi waits: refused",
        "storing Kopi waits: no answer",
    ]
    worker.conditions.resumed("storing Kopi")
    worker.conditions.paused("storing Kopi", "refused")
    assert len([record for record in caplog.records if record.message.endswith("refused")]) == 2


async def test_many_companies_that_wait_for_one_thing_are_one_short_line() -> None:
    worker = Worker()
    for number in range(50):
        worker.conditions.paused(f"storing K{number}", "the disk is full")
    assert await worker.reasons() == {
        "postgres": "the disk is full (storing K0, storing K1, storing K2 and 47 more)"
    }


async def test_a_company_that_is_not_served_yet_is_no_outage_for_those_that_are() -> None:
    worker = Worker()
    worker.conditions.unserved.begin("realtime Two", "too many consumers")
    assert await worker.reasons() == {"realtime Two": "too many consumers"}
    assert await worker.outages.current() is None
    worker.conditions.unserved.end("realtime Two")
    assert await worker.reasons() == {}


async def test_a_source_whose_consumer_is_refused_says_so_without_the_long_silence() -> None:
    silent = StubSource(last_fetch=seconds_ago(REFUSED_SILENCE + 1))
    worker = Worker(silent)
    assert await worker.reasons() == {}
    worker.conditions.unanswered.begin(silent.name, "maximum consumers limit reached")
    assert await worker.reasons() == {silent.name: "maximum consumers limit reached"}
    silent.last_fetch = time.monotonic()
    assert await worker.reasons() == {}
