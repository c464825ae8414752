"""The last resort against a worker that looks alive and does nothing (field cases A1, B2)."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

from events.delivery import SourceStatus
from streams.jetstream.consumer_state import ConsumerStates
from tables.queries import Observer

logger = logging.getLogger(__name__)

# Seconds between two looks.
LOOK_EVERY: Final = 5.0
# Seconds without progress after which `/ready` tells; the worker ends after the operator's limit.
SUSPICIOUS: Final = 60.0
# A consumer_state older than this says nothing of the present.
STALE: Final = 20.0


class Activity:
    """How many operations the database did for each company."""

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()

    def observer(self, company: str, told: Observer) -> Observer:
        """Counts for a company what it is told, and tells it on."""

        def observe(operation: str, entity: str, seconds: float, succeeded: bool) -> None:
            told(operation, entity, seconds, succeeded)
            self.operations[company] += succeeded

        return observe


class _Mark(NamedTuple):
    """How far a source was, and since when (`time.monotonic()`)."""

    progress_count: int
    operations: int
    since: float


class Watchdog:
    """Ends the worker when a source has work, both servers are there, and nothing moved for `limit` seconds.

    Progress is a delivery that arrived or was settled, or an operation of the database for its company: a huge
    batch is settled only at its end. An outage that is known is waited out: `outage` tells of it, and the time
    begins anew after it. `limit` 0: never.
    """

    def __init__(
        self,
        *,
        sources: Sequence[SourceStatus],
        consumer_states: ConsumerStates,
        activity: Activity,
        limit: float,
        outage: Callable[[], Awaitable[object]],
        fail: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = sources
        self._standings = consumer_states
        self._activity = activity
        self._limit = limit
        self._outage = outage
        self._fail = fail
        self._clock = clock
        self._marks: dict[str, _Mark] = {}

    async def look(self) -> bool:
        """Compare with the last look; the body of a chore."""
        if await self._outage():
            self._marks.clear()
            return False
        for source in self._sources:
            self._compare(source)
        for name, (seconds, work) in self._idle().items():
            if 0 < self._limit <= seconds:
                self._fail(f"{name}: {work}, and no progress for {seconds:.0f} s")
        return False

    def problems(self) -> Mapping[str, str]:
        """What `/ready` has to say, by source."""
        return {
            name: f"{work}, no progress for {seconds:.0f} s"
            for name, (seconds, work) in self._idle().items()
            if seconds >= (min(self._limit, SUSPICIOUS) or SUSPICIOUS)
        }

    def _compare(self, source: SourceStatus) -> None:
        moves, operations = source.progress_count, self._activity.operations[source.tenant.company]
        mark = self._marks.get(source.name)
        if mark is None or mark[:2] != (moves, operations) or not self._work(source):
            self._marks[source.name] = _Mark(moves, operations, self._clock())

    def _idle(self) -> dict[str, tuple[float, str]]:
        """Seconds without progress, and what there is to do, by source."""
        now = self._clock()
        return {
            source.name: (now - mark.since, work)
            for source in self._sources
            if (mark := self._marks.get(source.name)) and (work := self._work(source))
        }

    def _work(self, source: SourceStatus) -> str:
        """What a source has to do, in words; empty if nothing, or nothing that is known."""
        if source.held:
            return f"{source.held} deliveries under way"
        consumer_state = self._standings.of(source.stream, source.durable)
        if consumer_state is None or consumer_state.closed or self._clock() - consumer_state.noted > STALE:
            return ""
        return f"{consumer_state.num_pending} events waiting" if consumer_state.num_pending else ""
