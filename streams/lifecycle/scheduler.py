"""Runs periodic tasks, each at its interval."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from mode import Service

from streams.lifecycle.conditions import WaitReasons

STOP_SECONDS: Final = 1.0


class PeriodicTask(NamedTuple):
    """Something to do every `interval` seconds; `run` returns True to be called again at once."""

    name: str
    interval: float
    run: Callable[[], Awaitable[bool]]


class WakeUp:
    """Makes every periodic task run now, or once more after the run that is under way."""

    def __init__(self) -> None:
        self.next = asyncio.Event()

    def notify(self) -> None:
        """Set `next`, and begin another one."""
        self.next.set()
        self.next = asyncio.Event()


class Scheduler(Service):
    """Runs the tasks once `ready` is set, each in a loop of its own.

    After a failure the loop goes on. A reason is logged once until the task works again.
    """

    def __init__(self, tasks: Sequence[PeriodicTask], ready: asyncio.Event, wake_up: WakeUp) -> None:
        super().__init__()
        self._periodic = tasks
        self._ready = ready
        self._wake_up = wake_up
        self._loops: list[asyncio.Task[None]] = []
        self._failures = WaitReasons("{name} failed, trying again later: {reason}", "{name} works again")

    async def on_started(self) -> None:
        """Start the loops."""
        self._loops = [asyncio.create_task(self._repeat(task)) for task in self._periodic]

    async def on_stop(self) -> None:
        """Cancel the loops. One whose server hangs is left: no task has anything to hand back."""
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops, timeout=STOP_SECONDS)

    async def _repeat(self, task: PeriodicTask) -> None:
        await self._ready.wait()
        while not self.should_stop:
            # Taken before the run, which may not see what changes during it.
            changed = self._wake_up.next
            try:
                more = await task.run()
                self._failures.end(task.name)
            except Exception as error:
                self._failures.begin(task.name, str(error))
                more = False
            if not more:
                with suppress(TimeoutError):
                    async with asyncio.timeout(task.interval):
                        await changed.wait()
