"""A limit on how fast events are given up when the database refuses one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Final

# So many different events, with nothing stored between, are no accident. Events with the same fault come in twos and
# threes (one chat, one import); an event that passed our own checks and is refused by the database is rare.
IN_A_ROW: Final = 5
# Seconds between two events that are blamed while the breaker is open.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0


class CircuitBreaker:
    """Opens when several different events in a row were blamed, closes with the first one that is stored.

    While it is open, one more event is blamed after each of its growing pauses, so that a wrong deployment does not
    move a whole stream into the dead letters.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._blamed: set[Hashable] = set()
        self._pause = FIRST_PAUSE
        self._until = 0.0
        self._last = ""

    def wait(self, event: Hashable) -> float:
        """Seconds until this event may be blamed; one that was blamed before, in this row, may at once."""
        if len(self._blamed) < IN_A_ROW or event in self._blamed:
            return 0.0
        return max(0.0, self._until - self._clock())

    def blamed(self, event: Hashable, error: str) -> None:
        """An event was given up for a refusal of the database."""
        self._last = error
        if event in self._blamed:
            return
        self._blamed.add(event)
        if len(self._blamed) >= IN_A_ROW:
            self._until = self._clock() + self._pause
            self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def stored(self) -> None:
        """An event was stored."""
        self._blamed.clear()
        self._pause = FIRST_PAUSE

    @property
    def reason(self) -> str:
        """Why it is open."""
        return (
            f"{len(self._blamed)} different events in a row were refused by PostgreSQL: {self._last}; "
            "the last probe was stored"
        )
