"""What the onboarding agent keeps in memory: how many tasks wait, and who needs no more of them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Final

from events.subjects import Tenant
from tables.attribution import Incoming
from tables.last_writer_wins import Version
from tables.onboarding import Pair

logger = logging.getLogger(__name__)

# Some 250 bytes each.
REMEMBERED_PAIRS: Final = 20_000
# Bytes that one company's waiting tasks may hold: some 2,000 ordinary messages. That keeps its transactions busy;
# whatever is beyond it waits as well in JetStream.
SHARE: Final = 6 * 1024 * 1024
# What a waiting task holds besides the body of its message.
TASK_BYTES: Final = 2048
_PART: Final = 2**64 - 1


class KnownPairs:
    """Pairs that later plain messages have nothing to add to, the latest ones.

    Only a hint for which statement to begin with: the log is asked all the same, so that rows which somebody
    deleted, or another replica corrected, count as they are.
    """

    def __init__(self, limit: int = REMEMBERED_PAIRS) -> None:
        self._limit = limit
        self._pairs: OrderedDict[str, int | None] = OrderedDict()

    def has(self, tenant: Tenant, pair: Pair, version: Version | None = None) -> bool:
        """Whether a plain message of `pair` has nothing to add, as far as is known here."""
        key = _key(tenant, pair)
        if key not in self._pairs:
            return False
        self._pairs.move_to_end(key)
        since = self._pairs[key]
        return since is None or (version is not None and not _version(since).supersedes(version))

    def add(self, tenant: Tenant, pair: Pair, since: Version | None = None) -> None:
        """Remember `pair`, for messages from version `since` on: an older one would give the contact its origin.

        The version of an origin only falls, so this stays true whatever other replicas do.
        """
        self._pairs[_key(tenant, pair)] = None if since is None else _number(since)
        if len(self._pairs) > self._limit:
            self._pairs.popitem(last=False)


def nothing_new(message: Incoming, logged: Mapping[Pair, Version | None]) -> bool:
    """Whether a plain message of a settled pair is not earlier than the one in the log."""
    if message.pair not in logged:
        return False
    first, version = logged[message.pair], message.stamp.version
    return first is None or (version is not None and not first.supersedes(version))


# One text and one number take half the memory of the tuples that they stand for.
def _key(tenant: Tenant, pair: Pair) -> str:
    return "\0".join((tenant.company, *pair))


def _number(version: Version) -> int:
    return version.incarnation << 128 | version.ns << 64 | version.sequence


def _version(number: int) -> Version:
    return Version(number >> 64 & _PART, number & _PART, number >> 128)


class TaskQueue:
    """Counts the tasks that wait for a worker, and makes submitters wait, in order, while they are too many.

    `limit` is the most tasks of all tenants, `share` the most memory of one tenant's in bytes: a tenant whose
    onboarding is behind fills neither the memory nor the others' places.
    """

    def __init__(self, limit: int, max_block: float, share: int = SHARE) -> None:
        self._limit = limit
        self._share = share
        self._max_block = max_block
        self._admission = asyncio.Lock()
        self._tenant_admission: defaultdict[Tenant, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting_bytes: Counter[Tenant] = Counter()
        self._left = asyncio.Event()
        self.waiting = 0

    async def enter(self, tenant: Tenant, tasks: int, size: int) -> None:
        """Queue so many tasks of a tenant, with so many bytes, once there is room; at once if there are no others."""
        async with self._tenant_admission[tenant]:
            try:
                async with asyncio.timeout(self._max_block):
                    await self._room(tenant, tasks, size)
            except TimeoutError:
                logger.warning("the onboarding queue is full: %d tasks wait", self.waiting)
                await self._room(tenant, tasks, size)
            self.waiting += tasks
            self._waiting_bytes[tenant] += size

    def leave(self, tenant: Tenant, tasks: int, size: int) -> None:
        """A worker took these tasks, or they were withdrawn."""
        self.waiting -= tasks
        self._waiting_bytes[tenant] -= size
        self._left.set()

    async def _room(self, tenant: Tenant, tasks: int, size: int) -> None:
        while (waiting := self._waiting_bytes[tenant]) and waiting + size > self._share:
            await self._change()
        async with self._admission:
            while self.waiting and self.waiting + tasks > self._limit:
                await self._change()

    async def _change(self) -> None:
        self._left.clear()
        await self._left.wait()
