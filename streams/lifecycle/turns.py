"""Spreads work for many companies over time, so that a thousand of them cost what fifty do."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

# Companies a second, and at once: up to fifty all have their turn every 5 s, a thousand every 100 s.
RATE: Final = 10.0
BURST: Final = 50


class Turns(Generic[Item]):
    """Whose turn it is: those that waited longest, at most `RATE` a second and `BURST` at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._room = float(BURST)
        self._looked = clock()
        self._turns: dict[Item, int] = {}  # when each had its turn, as a number that grows
        self._count = 0

    def take(self, items: Sequence[Item]) -> list[Item]:
        """Those of the items that have their turn now, in their order if it is that of all."""
        now = self._clock()
        self._room = min(BURST, self._room + RATE * (now - self._looked))
        self._looked = now
        number = min(len(items), int(self._room))
        self._room -= number
        if number == len(items):
            taken = list(items)
        else:
            taken = heapq.nsmallest(number, items, key=lambda item: self._turns.get(item, 0))
        self._count += 1
        self._turns.update(dict.fromkeys(taken, self._count))
        if len(self._turns) > 2 * len(items):
            # Companies that are served no more.
            self._turns = {item: self._turns[item] for item in items if item in self._turns}
        return taken
