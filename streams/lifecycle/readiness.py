"""Whether the worker is ready: the reasons behind `/ready`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from events.delivery import SourceStatus
from streams.lifecycle.conditions import Conditions
from streams.lifecycle.outages import Outages
from streams.lifecycle.watchdog import Watchdog

# Seconds without an answered pull request after which a source is not ready, and where the server gave a reason.
FETCH_SILENCE: Final = 15.0
REFUSED_SILENCE: Final = 3.0
# Seconds without a settled delivery, while some are in flight.
NO_PROGRESS: Final = 60.0


@dataclass(eq=False)
class Readiness:
    """Collects reasons not to be ready; an empty answer means ready."""

    conditions: Conditions
    outages: Outages
    watchdog: Watchdog
    sources: Sequence[SourceStatus]  # the started ones; may grow
    running_agents: Callable[[], Mapping[str, bool]]  # whether each runs, by name

    async def reasons(self) -> Mapping[str, str]:
        """Why the worker is not ready, by part; empty when it is."""
        found: dict[str, str] = {}
        if phase := self.conditions.phase:
            found["worker"] = phase
        found.update(await self.outages.problems())
        if dead := [name for name, runs in self.running_agents().items() if not runs]:
            found["agents"] = f"not running: {', '.join(dead)}"
        found.update(self.conditions.waits())
        if not self.conditions.phase:
            found.update(self.watchdog.problems())
            found.update(self._source_problems(time.monotonic()))
        return found

    def _source_problems(self, now: float) -> Mapping[str, str]:
        found = {}
        unanswered = self.conditions.unanswered.all()
        for source in self.sources:
            reason = unanswered.get(source.name)
            silence = FETCH_SILENCE if reason is None else REFUSED_SILENCE
            if now - source.last_fetch > silence and not source.in_flight:
                found[source.name] = reason or "no pull request was answered lately"
            elif source.in_flight and now - source.last_progress > NO_PROGRESS:
                found[source.name] = f"{source.in_flight} deliveries under way, none finished lately"
        return found
