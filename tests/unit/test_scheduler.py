"""When periodic tasks run."""

from __future__ import annotations

import asyncio
import logging

import pytest

from streams.lifecycle.scheduler import PeriodicTask, Scheduler, WakeUp
from tests.unit.fakes import until


class Repeated:
    """A task that counts its runs, each of which lasts until `go` is set."""

    def __init__(self) -> None:
        self.runs = 0
        self.go = asyncio.Event()
        self.wake_up = WakeUp()
        self.ready = asyncio.Event()
        self.scheduler = Scheduler([PeriodicTask("task", 3600.0, self._run)], self.ready, self.wake_up)

    async def _run(self) -> bool:
        self.runs += 1
        await self.go.wait()
        return False


async def test_a_task_waits_for_the_start_and_then_for_its_interval() -> None:
    task = Repeated()
    task.go.set()
    async with task.scheduler:
        await asyncio.sleep(0.01)
        assert task.runs == 0
        task.ready.set()
        await until(lambda: task.runs == 1)
        await asyncio.sleep(0.01)
        assert task.runs == 1


async def test_a_wake_up_ends_the_pause_of_a_task() -> None:
    task = Repeated()
    task.go.set()
    task.ready.set()
    async with task.scheduler:
        await until(lambda: task.runs == 1)
        await asyncio.sleep(0.01)
        task.wake_up.notify()
        await until(lambda: task.runs == 2)


async def test_a_wake_up_during_a_run_is_followed_by_another_run() -> None:
    task = Repeated()
    task.ready.set()
    async with task.scheduler:
        await until(lambda: task.runs == 1)
        task.wake_up.notify()
        task.go.set()
        await until(lambda: task.runs == 2)


async def test_a_task_that_keeps_failing_is_logged_when_its_reason_changes_and_when_it_works_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "streams.lifecycle")
    answers = iter(["down", "down", "down", "starting", "starting", ""])

    async def run() -> bool:
        if reason := next(answers, ""):
            raise OSError(reason)
        return False

    ready = asyncio.Event()
    ready.set()
    async with Scheduler([PeriodicTask("gauges", 0.001, run)], ready, WakeUp()):
        await until(lambda: "gauges works again" in caplog.messages)
    assert [message for message in caplog.messages if message.startswith("gauges ")] == [
        "gauges failed, trying again later: down",
        "gauges failed, trying again later: starting",
        "gauges works again",
    ]
