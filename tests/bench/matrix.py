"""The worker against the bare pipeline: backlogs, steady rates, cost and start."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

from tests.bench.environment import BenchError, Place
from tests.bench.events import LOADS, realtime
from tests.bench.lines import Line
from tests.bench.measuring import Section, bench, stored
from tests.bench.options import DRAINS
from tests.bench.publishing import flood, publisher
from tests.bench.systems import SystemUnderTest, bare, worker

# Shares of the bare pipeline's messages a second.
_SHARES: Final = {"realtime": 0.55, "mixed": 0.35, "inbound_new": 0.25, "history": 0.80, "repeats": 0.40}
_BARE: Final = ("bare", "realtime")
# Events a second.
_RATES: Final = (100, 500, 2000)
_P50: Final = 1.5
_P99: Final = 3.0
_CPU: Final = 3.0
_MEMORY: Final = 110.0
_START: Final = 3.0
# Left when the last event is published: half a second's worth would be a queue.
_LEFT: Final = 0.5
# Dead letters are replayed one by one: a tenth of them says as much.
_FEWER: Final = 10


async def measure(section: Section) -> list[Line]:
    """Some rounds: each measures the bare pipeline, then the worker, on tables of the same shape."""
    drains = section.options.chosen(DRAINS)
    rates = _RATES if section.options.chosen(["paced"]) else ()
    place = await section.env.place("Matrix", partitions=26)
    for _ in range(section.options.runs):
        if drains or rates:
            async with bare(section.env, place) as system:
                # What every backlog is compared with.
                await _measure(section, place, system, ("realtime",) if drains else (), rates)
        try:
            await _start(section, place, drains, rates)
        except BenchError as error:
            section.runs.fail("worker", "start", str(error))
    return list(_lines(section, drains, rates))


async def _start(section: Section, place: Place, drains: Sequence[str], rates: Sequence[int]) -> None:
    """Start the worker while an event waits for it; then measure the rest."""
    await place.clear()
    first = realtime(place.companies, 1)
    async with publisher(section.env.broker.url) as to:
        await flood(to, first.events)
    since = time.time()
    async with worker(section.env, place, section.folder) as system:
        await system.drained(section.env, first.role)
        [row] = await stored(place, system, first, since)
        section.runs.keep("worker", "start", {"start_s": row["at"] - since})
        await _measure(section, place, system, drains, rates)


async def _measure(
    section: Section, place: Place, system: SystemUnderTest, drains: Sequence[str], rates: Sequence[int]
) -> None:
    n, runs = section.options.n, section.runs
    async with bench(section.env, place, system) as measure:
        for name in drains:
            count = max(1, n // _FEWER) if name == "dlq" else n
            await runs.add(system.name, name, measure.drain(LOADS[name](place.companies, count)))
        for rate in rates:
            load = realtime(place.companies, max(1, round(rate * section.options.seconds)))
            await runs.add(system.name, f"{rate}/s", measure.paced(load, rate))


def _lines(section: Section, drains: Sequence[str], rates: Sequence[int]) -> Iterator[Line]:
    compared = section.runs.compared
    for name in drains:
        yield compared("drain", name, "per_s", ("worker", name), _BARE, "share", _SHARES.get(name))
    for name, rate in [(f"{rate}/s", rate) for rate in rates]:
        keys = (("worker", name), ("bare", name))
        yield compared("paced", f"{name}, p50", "p50", *keys, "times", _P50)
        yield compared("paced", f"{name}, p99", "p99", *keys, "times", _P99)
        yield compared("paced", f"{name}, queue at the end", "left", *keys, "count", rate * _LEFT)
    if "realtime" in drains:
        keys = (("worker", "realtime"), _BARE)
        yield compared("cost", "processor time a message", "cpu_us", *keys, "times", _CPU)
        # Of the last line of a round, after all others.
        keys = (("worker", drains[-1]), _BARE)
        yield compared("cost", "memory after all backlogs", "memory_mb", *keys, "MB", _MEMORY)
        yield compared("cost", "memory at most", "memory_peak_mb", *keys, "MB", _MEMORY)
    if section.options.chosen(["start"]):
        yield compared("cost", "start to first row", "start_s", ("worker", "start"), None, "s", _START)
