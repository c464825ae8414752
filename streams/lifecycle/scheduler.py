"""What is done now and then beside the events: each chore at its interval, one failure not stopping the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from mode import Service

logger = logging.getLogger(__name__)

STOP_SECONDS: Final = 1.0


class PeriodicTask(NamedTuple):
    """Something to do every `interval` seconds; `run` returns True to be called again at once."""

    name: str
    interval: float
    run: Callable[[], Awaitable[bool]]


class Scheduler(Service):
    """Runs the chores once `ready` is set, each in a loop of its own."""

    def __init__(self, chores: Sequence[PeriodicTask], ready: asyncio.Event) -> None:
        super().__init__()
        self._chores = chores
        self._ready = ready
        self._hurried = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    def hurry(self) -> None:
        """Run every chore now, whatever is left of its interval: there is something new to do."""
        self._hurried.set()
        self._hurried = asyncio.Event()

    async def on_started(self) -> None:
        """Start the loops."""
        self._loops = [asyncio.create_task(self._repeat(chore)) for chore in self._chores]

    async def on_stop(self) -> None:
        """End the loops. A chore that asks a server that hangs is not waited for: it has nothing to hand back."""
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops, timeout=STOP_SECONDS)

    async def _repeat(self, chore: PeriodicTask) -> None:
        await self._ready.wait()
        while not self.should_stop:
            try:
                more = await chore.run()
            except Exception as error:
                logger.warning("%s failed, trying again later: %s", chore.name, error)
                more = False
            if not more:
                await self._pause(chore.interval)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hurried.wait()
        except TimeoutError:
            return
