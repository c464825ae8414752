"""What the onboarding agent keeps in memory: how many tasks wait, and who needs no more of them."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from streams.subjects import Tenant
from tables.onboarding import Pair
from tables.versions import Version

logger = logging.getLogger(__name__)


class KnownPairs:
    """Pairs that later plain messages have nothing to add to, the latest ones.

    Only a hint for which statement to begin with: the log is asked all the same, so that rows which somebody
    deleted, or another replica corrected, count as they are.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pairs: OrderedDict[tuple[Tenant, Pair], Version | None] = OrderedDict()

    def has(self, tenant: Tenant, pair: Pair, version: Version | None = None) -> bool:
        """Whether a plain message of `pair` has nothing to add, as far as is known here."""
        key = tenant, pair
        if key not in self._pairs:
            return False
        self._pairs.move_to_end(key)
        since = self._pairs[key]
        return since is None or (version is not None and version >= since)

    def add(self, tenant: Tenant, pair: Pair, since: Version | None = None) -> None:
        """Remember `pair`, for messages from version `since` on: an older one would give the contact its origin.

        The version of an origin only falls, so this stays true whatever other replicas do.
        """
        self._pairs[tenant, pair] = since
        if len(self._pairs) > self._limit:
            self._pairs.popitem(last=False)


class TaskQueue:
    """Counts the tasks that wait for a worker, and makes submitters wait, in order, while they are too many."""

    def __init__(self, limit: int, max_block: float) -> None:
        self._limit = limit
        self._max_block = max_block
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()
        self.waiting = 0

    async def enter(self, count: int) -> None:
        """Queue `count` tasks once there is room; a lone item is let in whatever its size."""
        async with self._turn:
            try:
                async with asyncio.timeout(self._max_block):
                    await self._room(count)
            except TimeoutError:
                logger.warning("the onboarding queue is full: %d tasks wait", self.waiting)
                await self._room(count)
            self.waiting += count

    def leave(self, count: int) -> None:
        """A worker took `count` tasks, or they were withdrawn."""
        self.waiting -= count
        self._left.set()

    async def change(self) -> None:
        """Returns after the next `leave`."""
        self._left.clear()
        await self._left.wait()

    async def _room(self, count: int) -> None:
        while self.waiting and self.waiting + count > self._limit:
            await self.change()
