"""Channels that work without Kafka: Faust's own are suspended until a rebalance that never comes."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

import faust
from mode.utils.queues import FlowControlEvent, ThrowableQueue

# The source bounds what is in flight; the channel only passes it on.
_ROOM: Final = 2

Item = TypeVar("Item")


class DirectChannel(faust.Channel[Item]):
    """A channel whose queue is open from the start and passes plain objects."""

    @property
    def queue(self) -> ThrowableQueue[Any]:
        """The queue of this channel, or of the iterator that reads it."""
        if self._queue is None:
            self._queue = ThrowableQueue(
                maxsize=_ROOM,
                flow_control=FlowControlEvent(initially_suspended=False),
                clear_on_resume=False,
            )
        return self._queue

    async def send_item(self, item: Item) -> None:
        """Hand `item` to the agent that reads this channel, once it reads; waits for room."""
        # Without a reader Faust would drop the item in silence.
        while not self.subscriber_count:
            await asyncio.sleep(0.01)
        await self.put(item)  # type: ignore[arg-type]  # Faust wraps Kafka events, and passes on anything
