"""Slots for concurrent work; work that waits for an outage to end yields its slot to others meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType


class Slot:
    """One of the slots that `slots` counts, in an `async with` statement."""

    def __init__(self, slots: asyncio.Semaphore) -> None:
        self._slots = slots
        self._taken = False

    async def __aenter__(self) -> Slot:
        """Wait for a slot."""
        await self._slots.acquire()
        self._taken = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the slot."""
        self._free()

    @asynccontextmanager
    async def yielded(self) -> AsyncIterator[None]:
        """In an `async with` statement: others may take the slot, also after an exception, which is to end the work."""
        self._free()
        yield
        await self.__aenter__()

    def _free(self) -> None:
        if self._taken:
            self._taken = False
            self._slots.release()
