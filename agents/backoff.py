"""Growing waits between tries."""

from __future__ import annotations

import asyncio
import random
from typing import Final

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0


class Backoff:
    """Growing waits with jitter, for an outage of unknown length."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE

    async def wait(self) -> None:
        """Sleep a little longer than the last time."""
        await asyncio.sleep(self._next * random.uniform(0.5, 1.0))
        self._next = min(self._next * 2, LONGEST_PAUSE)
