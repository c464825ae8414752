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
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

# Seconds that one waits for a connection that knows its statements while another is idle: about as long as it takes to
# plan them there.
CHOOSY: Final = 0.005
# Seconds in a queue after which one takes whichever connection comes back: nobody must starve behind companies that are
# at home more often.
PATIENCE: Final = 0.05
# Seconds after which it is forgotten which connections a company has used: a rush is over, and plans that are not used
# make room for others.
MEMORY: Final = 600.0


@dataclass(eq=False)
class _Waiter:
    """Somebody who waits for a slot; while `choosy`, for one of `known` only."""

    home: int | None
    known: frozenset[int]
    choosy: bool
    since: float = field(default_factory=time.monotonic)
    slot: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def takes(self, slot: int) -> bool:
        """Whether it would take this slot."""
        return not self.slot.done() and (not self.choosy or slot in self.known)


class HomeSlots:
    """The numbers from 0 to `size` - 1, each lent to one at a time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._idle = [True] * size
        self._recent: list[int] = []  # given back, the last one at the end; may name some that are lent again
        self._waiters: deque[_Waiter] = deque()
        self._known: dict[str, frozenset[int]] = {}
        self._forget_at = time.monotonic() + MEMORY

    async def take(self, home: str | None) -> int:
        """The home's slot if it is idle, else one that it has used, a moment later any that is idle or comes back.

        What is asked for with None gets the one that was used last. Give it back with `put_back`.
        """
        slot = self.take_at_once(home)
        if slot is not None:
            return slot
        if home is None:
            return await self._wait(_Waiter(None, frozenset(), choosy=False))
        number, known = self._number(home), self._known_to(home)
        slot = await self._wait(_Waiter(number, known, choosy=any(self._idle)))
        if slot not in known:
            self._known[home] = self._known.get(home, known) | {slot}
        return slot

    def take_at_once(self, home: str | None) -> int | None:
        """As `take`, but None if one would have to wait."""
        if home is None:
            return self._last_used()
        return self._take_idle(self._number(home), self._known_to(home))

    def _number(self, home: str) -> int:
        return zlib.crc32(home.encode()) % self._size

    def put_back(self, slot: int) -> None:
        """Hand it to whoever has waited for too long, to one whose home it is, or to the first in the queue."""
        waiter = self._waiter_for(slot)
        if waiter is None:
            self._idle[slot] = True
            self._recent.append(slot)
            del self._recent[: -2 * self._size]
        else:
            waiter.slot.set_result(slot)

    def _known_to(self, home: str) -> frozenset[int]:
        if time.monotonic() > self._forget_at:
            self._known.clear()
            self._forget_at = time.monotonic() + MEMORY
        return self._known.get(home) or frozenset({self._number(home)})

    async def _wait(self, waiter: _Waiter) -> int:
        self._waiters.append(waiter)
        try:
            if waiter.choosy:
                await asyncio.wait({waiter.slot}, timeout=CHOOSY)
                waiter.choosy = False
                if not waiter.slot.done() and (slot := self._take_idle(waiter.home or 0)) is not None:
                    return slot
            return await waiter.slot
        except asyncio.CancelledError:
            if waiter.slot.done() and not waiter.slot.cancelled():
                self.put_back(waiter.slot.result())
            raise
        finally:
            waiter.slot.cancel()
            self._waiters.remove(waiter)

    def _waiter_for(self, slot: int) -> _Waiter | None:
        waiting = [waiter for waiter in self._waiters if waiter.takes(slot)]
        if not waiting:
            return None
        if time.monotonic() - waiting[0].since > PATIENCE:
            return waiting[0]
        return next((waiter for waiter in waiting if waiter.home == slot), waiting[0])

    def _last_used(self) -> int | None:
        while self._recent:
            slot = self._recent.pop()
            if self._idle[slot]:
                self._idle[slot] = False
                return slot
        return self._take_idle(0)

    def _take_idle(self, number: int, among: frozenset[int] | None = None) -> int | None:
        """The first idle slot from `number` on, of those in `among` if that is given."""
        for slot in self._from(number):
            if self._idle[slot] and (among is None or slot in among):
                self._idle[slot] = False
                return slot
        return None

    def _from(self, number: int) -> Iterator[int]:
        return ((number + step) % self._size for step in range(self._size))
