"""The highest resident memory of a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tests.bench import usage

_EVERY: Final = 0.2


class Highest:
    """The highest reading so far, in megabytes."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.value = 0.0

    def look(self) -> float:
        """Take a reading; returns it."""
        now = usage.memory(self._pid).now
        self.value = max(self.value, now)
        return now


@asynccontextmanager
async def watching(pid: int) -> AsyncIterator[Highest]:
    """Take readings until the block ends."""
    highest = Highest(pid)
    task = asyncio.create_task(_watch(highest))
    try:
        yield highest
        highest.look()
    finally:
        task.cancel()


async def _watch(highest: Highest) -> None:
    while True:
        highest.look()
        await asyncio.sleep(_EVERY)
