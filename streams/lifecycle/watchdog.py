"""Ends a worker that makes no progress although there are events and both servers answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from events.delivery import SourceStatus
from events.subjects import ALL_COMPANIES
from streams.jetstream.consumer_state import ConsumerStates

# Seconds between two looks.
LOOK_EVERY: Final = 5.0
# Seconds without progress after which `/ready` answers 503; the worker ends after the operator's limit.
SUSPICIOUS: Final = 60.0
# A consumer state that is older, in seconds, is not used.
STALE: Final = 20.0


class _Progress(NamedTuple):
    """The counters of a source, and since when they have not changed (`time.monotonic()`)."""

    progress_count: int
    operations: int
    since: float


@dataclass(kw_only=True, eq=False)
class Watchdog:
    """Ends the worker when a source has events, both servers answer, and there is no progress for `limit` seconds.

    Progress is a delivery that arrived or was settled, or an operation of the database for its company: a large batch
    is settled only at its end. A known outage is waited out; the time begins anew after it. `limit` 0: never.
    """

    sources: Sequence[SourceStatus]
    consumer_states: ConsumerStates
    operations: Counter[str]  # that succeeded in the database, by company
    limit: float
    outage: Callable[[], Awaitable[str | None]]
    fail: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _progress: dict[str, _Progress] = field(default_factory=dict, init=False)

    async def look(self) -> bool:
        """Compare with the last look; run as a periodic task."""
        if await self.outage():
            self._progress.clear()
            return False
        for source in self.sources:
            self._compare(source)
        for name, (seconds, backlog) in self._idle().items():
            if 0 < self.limit <= seconds:
                self.fail(f"{name}: {backlog}, and no progress for {seconds:.0f} s")
        return False

    def problems(self) -> Mapping[str, str]:
        """Reason not to be ready, by source."""
        return {
            name: f"{backlog}, no progress for {seconds:.0f} s"
            for name, (seconds, backlog) in self._idle().items()
            if seconds >= (min(self.limit, SUSPICIOUS) or SUSPICIOUS)
        }

    def _compare(self, source: SourceStatus) -> None:
        counters = source.progress_count, self._operations_of(source.company)
        before = self._progress.get(source.name)
        if before is None or before[:2] != counters or not self._backlog(source):
            self._progress[source.name] = _Progress(*counters, self.clock())

    def _operations_of(self, company: str) -> int:
        return self.operations.total() if company == ALL_COMPANIES else self.operations[company]

    def _idle(self) -> dict[str, tuple[float, str]]:
        """Seconds without progress, and what there is to process, by source."""
        now = self.clock()
        return {
            source.name: (now - before.since, backlog)
            for source in self.sources
            if (before := self._progress.get(source.name)) and (backlog := self._backlog(source))
        }

    def _backlog(self, source: SourceStatus) -> str:
        """What a source has to process, as text; empty for nothing or not known."""
        if source.in_flight:
            return f"{source.in_flight} deliveries under way"
        state = self.consumer_states.of(source.stream, source.durable)
        if state is None or state.closed or self.clock() - state.noted > STALE:
            return ""
        return f"{state.num_pending} events waiting" if state.num_pending else ""
