"""Growing pauses between attempts."""

from __future__ import annotations

import asyncio
import random
from typing import Final

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0


class Backoff:
    """Pauses that double, with jitter, up to a longest one; all in seconds."""

    def __init__(self, first: float | None = None, longest: float | None = None) -> None:
        self._first = FIRST_PAUSE if first is None else first
        self._longest = LONGEST_PAUSE if longest is None else longest
        self._next = self._first

    def next(self) -> float:
        """The next pause."""
        pause = self._next * random.uniform(0.5, 1.0)
        self._next = min(self._next * 2, self._longest)
        return pause

    def reset(self) -> None:
        """Begin with the first pause again."""
        self._next = self._first

    async def wait(self) -> None:
        """Sleep for the next pause."""
        await asyncio.sleep(self.next())
