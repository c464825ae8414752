"""Real-time events go first: a history import takes the time that they leave (design 4)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

# Seconds without any real-time events after which an import need not hold back: a company at work has many a second.
QUIET: Final = 0.2
# Most seconds that an import waits before each of its turns, so that it goes on whatever else there is to do.
LONGEST_REST: Final = 0.1


class Precedence:
    """Shared by all sources of a worker; `clock` gives seconds.

    While there are real-time events, an import waits until none is being stored, and rests after each turn for as
    long as the turn took: it then has at most half of the processor, the disk and PostgreSQL.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._storing = 0
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._last = float("-inf")
        self._owed = 0.0

    @contextmanager
    def realtime(self) -> Iterator[None]:
        """In a `with` statement: real-time events are being stored."""
        self._storing += 1
        self._none_left.clear()
        try:
            yield
        finally:
            self._last = self._clock()
            self._storing -= 1
            if not self._storing:
                self._none_left.set()

    @contextmanager
    def history(self) -> Iterator[None]:
        """In a `with` statement: a turn of an import."""
        began = self._clock()
        try:
            yield
        finally:
            self._owed = self._clock() - began

    @property
    def undisturbed(self) -> bool:
        """Whether there have been no real-time events for a while."""
        return not self._storing and self._clock() - self._last > QUIET

    async def give_way(self) -> None:
        """Wait for the next turn of an import."""
        owed, self._owed = self._owed, 0.0
        if not self.undisturbed:
            await self.gap(owed)

    async def gap(self, rest: float = 0.0) -> None:
        """Let others have their turn, and wait until no real-time event is being stored; `rest` seconds at least."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_REST):
                await asyncio.sleep(rest)
                await self._none_left.wait()
