"""Fairness: how long real-time events of two companies take while one of them imports its history."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.environment import BenchError, Environment, Place
from tests.bench.events import HISTORY_BATCH, LARGE_BATCH, Author, Event, Load, history
from tests.bench.lines import Line, Target
from tests.bench.measuring import WARM_UP, latencies, percentile
from tests.bench.options import Options
from tests.bench.publishing import EventPublisher, flood, publisher, steadily
from tests.bench.runs import Runs
from tests.bench.systems import SystemUnderTest, worker

# Real-time events a second of each company.
RATE: Final = 100.0
_P99: Final = 3.0
# However long the import takes: a million rows take some five minutes.
_LONGEST: Final = 900.0
_QUIET: Final = "quiet"
# Rows of a batch, and the share of the rows of an import that is enough.
_IMPORTS: Final = {
    "p99 beside a history import": (HISTORY_BATCH, 1.0),
    "p99 beside an import of large batches": (LARGE_BATCH, 0.5),
}


@dataclass(frozen=True, slots=True)
class Waits:
    """Milliseconds from publishing to commit, of the company that imports and of the other one."""

    own_p50: float
    own_p99: float
    other_p50: float
    other_p99: float
    events: int
    seconds: float


class Fairness:
    """Each round measures both companies first in quiet, then while the first one's imports are worked off."""

    def __init__(self, env: Environment, options: Options, folder: Path) -> None:
        self._env = env
        self._options = options
        self._folder = folder
        self.runs = Runs()

    async def run(self) -> list[Line]:
        """Measure both."""
        place = await self._env.place("Fair", companies=2, partitions=26)
        for _ in range(self._options.runs):
            await place.clear()
            try:
                async with (
                    worker(self._env, place, self._folder) as system,
                    publisher(self._env.servers.nats.url) as to,
                ):
                    await self._round(place, system, to)
            except BenchError as error:
                for line in _IMPORTS:
                    self.runs.fail("import", line, str(error))
        return [self._line(whose, line) for line in _IMPORTS for whose in ("own", "other")]

    async def _round(self, place: Place, system: SystemUnderTest, to: EventPublisher) -> None:
        warm = Author(place.companies)
        await flood(to, (warm.message(number) for number in range(WARM_UP)))
        await system.drained(self._env, "realtime")
        deadline = time.monotonic() + self._options.seconds
        quiet = self._pace(place, system, to, lambda: time.monotonic() < deadline)
        await self.runs.add(_QUIET, _QUIET, quiet)
        for line, (batch, share) in _IMPORTS.items():
            rows = history(place.companies[:1], int(self._options.history * share), batch)
            with system.stopped():
                await flood(to, rows.events)
            importing = asyncio.create_task(system.drained(self._env, "historical"))
            going = _until(importing, time.monotonic() + _LONGEST)
            await self.runs.add("import", line, self._pace(place, system, to, going))
            await importing

    async def _pace(
        self, place: Place, system: SystemUnderTest, to: EventPublisher, going: Callable[[], bool]
    ) -> Waits:
        author = Author(place.companies)
        begun = time.time()
        left = await steadily(to, _endless(author), RATE * len(place.companies), going)
        seconds = time.time() - begun
        await system.drained(self._env, "realtime")
        load = Load("realtime", "realtime", author.agents, [author.message(0)])
        own, other = [latencies(await place.commits([schema], load, begun), left) for schema in place.schemas]
        if not own or not other:
            raise BenchError("no real-time event was measured: the history import is too short")
        return Waits(
            own_p50=percentile(own, 0.5),
            own_p99=percentile(own, 0.99),
            other_p50=percentile(other, 0.5),
            other_p99=percentile(other, 0.99),
            events=len(left),
            seconds=seconds,
        )

    def _line(self, whose: str, line: str) -> Line:
        name = f"{'same' if whose == 'own' else 'other'} company, {line}"
        keys = (("import", line), (_QUIET, _QUIET))
        field, target = f"{whose}_p99", Target("times", _P99)
        return self.runs.compared(name, "fairness", target, field, *keys, figure="{:.2f} ms")


def _until(importing: asyncio.Task[None], deadline: float) -> Callable[[], bool]:
    return lambda: not importing.done() and time.monotonic() < deadline


def _endless(author: Author) -> Iterator[Event]:
    return map(author.message, itertools.count())
