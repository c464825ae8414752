"""Fairness: how long real-time events of two companies take while one of them imports its history."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Final

from tests.bench.environment import BenchError, Place
from tests.bench.events import HISTORY_BATCH, LARGE_BATCH, Author, Load, history
from tests.bench.lines import Line
from tests.bench.measuring import WARM_UP, Section, latencies, percentile
from tests.bench.publishing import EventPublisher, flood, publisher, steadily
from tests.bench.runs import Run
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


async def measure(section: Section) -> list[Line]:
    """Each round measures both companies first in quiet, then while the first one's imports are worked off."""
    runs = section.runs
    place = await section.env.place("Fair", companies=2, partitions=26)
    for _ in range(section.options.runs):
        await place.clear()
        try:
            async with (
                worker(section.env, place, section.folder) as system,
                publisher(section.env.broker.url) as to,
            ):
                await _round(section, place, system, to)
        except BenchError as error:
            for line in _IMPORTS:
                runs.fail("import", line, str(error))
    return [
        runs.compared("fairness", f"{name}, {line}", field, ("import", line), (_QUIET, _QUIET), "times", _P99)
        for line in _IMPORTS
        for name, field in (("same company", "own_p99"), ("other company", "other_p99"))
    ]


async def _round(section: Section, place: Place, system: SystemUnderTest, to: EventPublisher) -> None:
    warm = Author(place.companies)
    await flood(to, (warm.message(number) for number in range(WARM_UP)))
    await system.drained(section.env, "realtime")
    deadline = time.monotonic() + section.options.seconds
    quiet = _pace(section, place, system, to, lambda: time.monotonic() < deadline)
    await section.runs.add(_QUIET, _QUIET, quiet)
    for line, (batch, share) in _IMPORTS.items():
        rows = history(place.companies[:1], int(section.options.history * share), batch)
        with system.stopped():
            await flood(to, rows.events)
        importing = asyncio.create_task(system.drained(section.env, "historical"))
        going = _until(importing, time.monotonic() + _LONGEST)
        await section.runs.add("import", line, _pace(section, place, system, to, going))
        await importing


async def _pace(
    section: Section, place: Place, system: SystemUnderTest, to: EventPublisher, going: Callable[[], bool]
) -> Run:
    """Milliseconds from publishing to commit, of the company that imports and of the other one."""
    author = Author(place.companies)
    begun = time.time()
    left = await steadily(to, map(author.message, itertools.count()), RATE * len(place.companies), going)
    seconds = time.time() - begun
    await system.drained(section.env, "realtime")
    load = Load("realtime", "realtime", author.agents, [author.message(0)])
    own, other = [latencies(await place.commits([schema], load, begun), left) for schema in place.schemas]
    if not own or not other:
        raise BenchError("no real-time event was measured: the history import is too short")
    return {
        "own_p50": percentile(own, 0.5),
        "own_p99": percentile(own, 0.99),
        "other_p50": percentile(other, 0.5),
        "other_p99": percentile(other, 0.99),
        "events": len(left),
        "seconds": seconds,
    }


def _until(importing: asyncio.Task[None], deadline: float) -> Callable[[], bool]:
    return lambda: not importing.done() and time.monotonic() < deadline
