"""An import of history takes the time that real-time events leave, and always gets on."""

from __future__ import annotations

import asyncio
import time

import pytest

from agents import precedence
from agents.precedence import QUIET, Precedence

AGES = 3600.0


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

    monkeypatch.setattr("agents.precedence.asyncio.sleep", sleep)
    return slept


async def test_an_import_alone_never_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, clock = _rests(monkeypatch), Clock()
    order = Precedence(clock)
    for _ in range(3):
        await order.give_way()
        with order.history():
            clock.now += 5.0
    assert slept == []


async def test_beside_real_time_events_an_import_rests_as_long_as_it_worked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept, clock = _rests(monkeypatch), Clock()
    order = Precedence(clock)
    with order.realtime():
        pass
    await order.give_way()
    with order.history():
        clock.now += QUIET / 2
    await order.give_way()
    assert slept == [0.0, pytest.approx(QUIET / 2)]


async def test_an_import_takes_all_the_time_again_once_real_time_events_are_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept, clock = _rests(monkeypatch), Clock()
    order = Precedence(clock)
    with order.realtime():
        pass
    with order.history():
        clock.now += 2 * QUIET
    await order.give_way()
    assert slept == []


async def test_an_import_waits_until_no_real_time_event_is_being_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precedence, "LONGEST_REST", AGES)
    order = Precedence()
    with order.realtime():
        with order.realtime():
            turn = asyncio.create_task(order.give_way())
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not turn.done()
    await turn


async def test_a_gap_is_when_no_real_time_event_is_being_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "LONGEST_REST", AGES)
    order = Precedence()
    await order.gap()
    with order.realtime():
        gap = asyncio.create_task(order.gap())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not gap.done()
    await gap


async def test_an_import_gets_on_however_long_real_time_events_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "LONGEST_REST", 0.01)
    order = Precedence()
    with order.history():
        pass
    order._owed = AGES
    started = time.monotonic()
    with order.realtime():
        await order.give_way()
    assert time.monotonic() - started < AGES
