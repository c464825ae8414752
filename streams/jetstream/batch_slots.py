"""How many batches of all companies are decoded and written at once."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

# A batch that is not done after so many seconds no longer keeps others from beginning: its table may be locked.
LENT_AFTER: Final = 0.25


class BatchSlot:
    """The right to be decoded and written now."""

    __slots__ = ("_slots", "_timer")

    def __init__(self, slots: BatchSlots) -> None:
        self._slots: BatchSlots | None = slots
        self._timer = asyncio.get_running_loop().call_later(LENT_AFTER, self.release)

    def release(self) -> None:
        """Give the slot to the next; safe when repeated."""
        if self._slots is not None:
            self._timer.cancel()
            slots, self._slots = self._slots, None
            slots.give_back()


class BatchSlots:
    """A number of slots, taken in the order of the requests.

    While all are taken, deliveries of the companies that wait become larger batches.
    """

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> BatchSlot:
        """A slot, when there is one."""
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.give_back()
                raise
        return BatchSlot(self)

    def give_back(self) -> None:
        """A slot is free: the next one that waits has it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
