"""Real-time events have precedence: history imports run in time slices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Final

# Seconds without any real-time events after which an import need not hold back: a company at work has many a second.
QUIET: Final = 0.2
# Most seconds that an import waits or rests around each of its time slices, so that it goes on whatever else there is.
LONGEST_REST: Final = 0.1
# How many times as long as it worked an import rests. Half of the time was too much for the disk: after a minute of it
# every commit waited for tens of milliseconds now and then.
RESTS: Final = 3
# Seconds after which the next import has its time slice, even if this one's is not over: its table may be locked.
LONGEST_SLICE: Final = 0.1


class HistoryThrottle:
    """Shared by all sources of a worker; `clock` gives seconds.

    While there are real-time events, imports run one time slice at a time. Each begins when no event is being stored,
    and is followed by a rest three times as long: all imports together have at most a quarter of the processor, the
    disk and PostgreSQL.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._storing = 0
        self._none_storing = asyncio.Event()
        self._none_storing.set()
        self._last = float("-inf")
        self._slice = asyncio.Lock()

    @contextmanager
    def realtime(self) -> Iterator[None]:
        """In a `with` statement: real-time events are being stored."""
        self._begin()
        try:
            yield
        finally:
            self._end()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """In a `with` statement within `realtime`: these events wait for an outage to end, and imports need not."""
        self._end()
        try:
            yield
        finally:
            self._begin()

    def _begin(self) -> None:
        self._storing += 1
        self._none_storing.clear()

    def _end(self) -> None:
        self._last = self._clock()
        self._storing -= 1
        if not self._storing:
            self._none_storing.set()

    @property
    def idle(self) -> bool:
        """Whether there have been no real-time events for a while."""
        return not self._storing and self._clock() - self._last > QUIET

    @asynccontextmanager
    async def time_slice(self) -> AsyncIterator[None]:
        """In an `async with` statement: a time slice of an import."""
        if self.idle:
            await asyncio.sleep(0)
            yield
            return
        async with self._exclusive_slice():
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_REST):
                    await self._none_storing.wait()
            began = self._clock()
            yield
            # Not just one pass of the loop: an event that has arrived meanwhile takes half a dozen.
            await asyncio.sleep(min(RESTS * (self._clock() - began), LONGEST_REST))

    @asynccontextmanager
    async def _exclusive_slice(self) -> AsyncIterator[None]:
        await self._slice.acquire()
        with ExitStack() as stack:
            stack.callback(self._slice.release)
            passing_on = asyncio.get_running_loop().call_later(LONGEST_SLICE + LONGEST_REST, stack.close)
            try:
                yield
            finally:
                passing_on.cancel()
