"""Which of a worker's connections is lent: each company has a home, where its statements are planned already.

A server plans each statement of each company on each connection that it comes by, and keeps the plan there. Ten
connections and a thousand companies with ten statements each would be a hundred thousand plans; with a home for each
company they are ten thousand and some.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import Final

# Seconds after which a waiter takes whichever connection comes back: it is no use to wait for home for longer than a
# plan takes, and nobody must starve behind companies whose home is free more often.
PATIENCE: Final = 0.05


@dataclass(eq=False)
class _Waiter:
    """Somebody who waits for a slot."""

    home: int | None
    since: float = field(default_factory=time.monotonic)
    slot: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class HomeSlots:
    """The numbers from 0 to `size` - 1, each lent to one at a time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._idle = [True] * size
        self._recent: list[int] = []  # given back, the last one at the end; may name some that are lent again
        self._waiters: deque[_Waiter] = deque()

    async def take(self, home: str | None) -> int:
        """A slot: the home's own if it is idle, else the next one that is, else the first that comes back.

        What is asked for with None gets the one that was used last. Give it back with `put_back`.
        """
        number = None if home is None else zlib.crc32(home.encode()) % self._size
        slot = self._last_used() if number is None else self._next_to(number)
        if slot is not None:
            self._idle[slot] = False
            return slot
        waiter = _Waiter(number)
        self._waiters.append(waiter)
        try:
            return await waiter.slot
        except asyncio.CancelledError:
            if waiter.slot.done() and not waiter.slot.cancelled():
                self.put_back(waiter.slot.result())
            raise

    def put_back(self, slot: int) -> None:
        """Hand it to whoever has waited for too long, to one whose home it is, or to the first in the queue."""
        waiter = self._waiter_for(slot)
        if waiter is None:
            self._idle[slot] = True
            self._recent.append(slot)
            del self._recent[: -2 * self._size]
        else:
            self._waiters.remove(waiter)
            waiter.slot.set_result(slot)

    def _waiter_for(self, slot: int) -> _Waiter | None:
        while self._waiters and self._waiters[0].slot.done():
            self._waiters.popleft()
        waiting = [waiter for waiter in self._waiters if not waiter.slot.done()]
        if not waiting:
            return None
        first = waiting[0]
        if time.monotonic() - first.since > PATIENCE:
            return first
        return next((waiter for waiter in waiting if waiter.home == slot), first)

    def _last_used(self) -> int | None:
        while self._recent:
            slot = self._recent.pop()
            if self._idle[slot]:
                return slot
        return self._next_to(0)

    def _next_to(self, number: int) -> int | None:
        slots = ((number + step) % self._size for step in range(self._size))
        return next((slot for slot in slots if self._idle[slot]), None)
