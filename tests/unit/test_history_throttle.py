"""An import of history takes the time that real-time events leave, and always gets on."""

from __future__ import annotations

import asyncio

import pytest

from agents import history_throttle
from agents.history_throttle import LONGEST_REST, QUIET, RESTS, HistoryThrottle

AGES = 3600.0
# Seconds until what waits for ever counts as failed.
PATIENCE = 30.0


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was slept each time; no time passes in it."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("agents.history_throttle.asyncio.sleep", sleep)
    return slept


async def _passes() -> None:
    """Enough passes of the loop for whatever needs no time."""
    for _ in range(10):
        await asyncio.sleep(0)


async def _slice(order: HistoryThrottle, clock: Clock, seconds: float) -> None:
    async with order.time_slice():
        clock.now += seconds


def _at_work(order: HistoryThrottle) -> None:
    """A real-time event has just been stored."""
    with order.realtime():
        pass


@pytest.mark.rule("CON-10")
async def test_an_import_alone_never_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, clock = _rests(monkeypatch), Clock()
    order = HistoryThrottle(clock)
    for _ in range(3):
        await _slice(order, clock, 5.0)
    assert not any(slept)


@pytest.mark.rule("CON-10")
async def test_beside_real_time_events_an_import_rests_longer_than_it_worked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept, clock = _rests(monkeypatch), Clock()
    order = HistoryThrottle(clock)
    _at_work(order)
    await _slice(order, clock, LONGEST_REST / 4)
    await _slice(order, clock, LONGEST_REST / 8)
    assert slept == [pytest.approx(LONGEST_REST / 4 * RESTS), pytest.approx(LONGEST_REST / 8 * RESTS)]


async def test_no_rest_is_longer_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, clock = _rests(monkeypatch), Clock()
    order = HistoryThrottle(clock)
    _at_work(order)
    await _slice(order, clock, AGES)
    assert slept == [LONGEST_REST]


async def test_an_import_takes_all_the_time_again_once_real_time_events_are_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept, clock = _rests(monkeypatch), Clock()
    order = HistoryThrottle(clock)
    _at_work(order)
    clock.now += 2 * QUIET
    await _slice(order, clock, 1.0)
    assert not any(slept)


async def test_an_import_waits_until_no_real_time_event_is_being_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history_throttle, "LONGEST_REST", AGES)
    clock = Clock()
    order = HistoryThrottle(clock)
    with order.realtime():
        with order.realtime():
            waiting = asyncio.create_task(_slice(order, clock, 0.0))
            await _passes()
        await _passes()
        assert not waiting.done()
    await waiting


async def test_an_import_gets_on_however_long_real_time_events_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_throttle, "LONGEST_REST", 0.01)
    clock = Clock()
    order = HistoryThrottle(clock)
    async with asyncio.timeout(PATIENCE):
        with order.realtime():
            await _slice(order, clock, 0.0)


async def test_beside_real_time_events_imports_run_one_slice_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history_throttle, "LONGEST_SLICE", AGES)
    order = HistoryThrottle(Clock())
    _at_work(order)
    begun: list[str] = []
    over = {name: asyncio.Event() for name in "abc"}

    async def import_slice(name: str) -> None:
        async with order.time_slice():
            begun.append(name)
            await over[name].wait()

    async with asyncio.TaskGroup() as group:
        for name in over:
            group.create_task(import_slice(name))
        for count, name in enumerate(over, 1):
            await _passes()
            assert begun == list("abc")[:count]
            over[name].set()


async def test_an_import_that_is_stuck_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_throttle, "LONGEST_SLICE", 0.01)
    clock = Clock()
    order = HistoryThrottle(clock)
    _at_work(order)
    free = asyncio.Event()

    async def stuck() -> None:
        async with order.time_slice():
            await free.wait()

    first = asyncio.create_task(stuck())
    await _passes()
    async with asyncio.timeout(PATIENCE):
        await _slice(order, clock, 0.0)
        await _slice(order, clock, 0.0)
    assert not first.done()
    free.set()
    await first
    await _slice(order, clock, 0.0)


async def test_a_slice_that_fails_ends_like_any_other() -> None:
    clock = Clock()
    order = HistoryThrottle(clock)
    _at_work(order)
    with pytest.raises(ValueError, match="broken"):
        async with order.time_slice():
            raise ValueError("broken")
    await _slice(order, clock, 0.0)
