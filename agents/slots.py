"""Places for work side by side; who waits for an outage to end leaves the place to others meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType


class Slot:
    """One of the places that `places` counts, in an `async with` statement."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._held = False

    async def __aenter__(self) -> Slot:
        """Wait for a place."""
        await self._places.acquire()
        self._held = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self._give_back()

    @asynccontextmanager
    async def left(self) -> AsyncIterator[None]:
        """In an `async with` statement: it is somebody else's, also after an exception, which is to end the work."""
        self._give_back()
        yield
        await self.__aenter__()

    def _give_back(self) -> None:
        if self._held:
            self._held = False
            self._places.release()
