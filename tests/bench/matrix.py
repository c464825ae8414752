"""The worker against the bare pipeline: backlogs, steady rates, cost and start."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.bench.environment import BenchError, Environment, Place
from tests.bench.events import LOADS, realtime
from tests.bench.lines import Line, ratio
from tests.bench.measuring import bench, first_stored
from tests.bench.options import DRAINS, Options
from tests.bench.publishing import flood, publisher
from tests.bench.runs import Runs
from tests.bench.systems import SystemUnderTest, bare, worker

# Shares of the bare pipeline's messages a second (issue 7).
_SHARES: Final = {"realtime": 0.55, "mixed": 0.35, "inbound_new": 0.25, "history": 0.80, "repeats": 0.40}
_P50: Final = 1.5
_P99: Final = 3.0
_CPU: Final = 3.0
_MEMORY: Final = 110.0
_START: Final = 3.0
# Left when the last event is published: half a second's worth would be a queue.
_LEFT: Final = 0.5
# Dead letters are replayed one by one: a tenth of them says as much.
_FEWER: Final = 10


class Matrix:
    """Some rounds: each measures the bare pipeline, then the worker, on tables of the same shape."""

    def __init__(self, env: Environment, options: Options, folder: Path) -> None:
        self._env = env
        self._options = options
        self._folder = folder
        self.runs = Runs()

    async def run(self) -> list[Line]:
        """Measure what was chosen."""
        place = await self._env.place("Matrix", partitions=26)
        for _ in range(self._options.runs):
            await self._round(place)
        return list(self._lines())

    async def _round(self, place: Place) -> None:
        drains = self._options.chosen(DRAINS)
        paced = self._options.rates if "paced" in self._options.lines else ()
        if drains or paced:
            async with bare(self._env, place) as system:
                # What every backlog is compared with.
                await self._measure(place, system, ("realtime",) if drains else (), paced)
        try:
            await self._start(place, drains, paced)
        except BenchError as error:
            self.runs.fail("worker", "start", str(error))

    async def _start(self, place: Place, drains: tuple[str, ...], paced: tuple[float, ...]) -> None:
        """Start the worker while an event waits for it; then measure the rest."""
        await place.clear()
        first = realtime(place.companies, 1)
        async with publisher(self._env.servers.nats.url) as to:
            await flood(to, first.events)
        since = time.time()
        async with worker(self._env, place, self._folder) as system:
            seconds = await first_stored(self._env, place, system, first, since)
            self.runs.keep("worker", "start", {"seconds": round(seconds, 3)})
            await self._measure(place, system, drains, paced)

    async def _measure(
        self, place: Place, system: SystemUnderTest, drains: tuple[str, ...], rates: tuple[float, ...]
    ) -> None:
        n, seconds = self._options.n, self._options.seconds
        async with bench(self._env, place, system) as measure:
            for name in drains:
                count = max(1, n // _FEWER) if name == "dlq" else n
                await self.runs.add(system.name, name, measure.drain(LOADS[name](place.companies, count)))
            for rate in rates:
                load = realtime(place.companies, max(1, round(rate * seconds)))
                await self.runs.add(system.name, f"{rate:g}/s", measure.paced(load, rate))

    def _lines(self) -> Iterator[Line]:
        for name in self._options.chosen(DRAINS):
            yield self._drain(name)
        if "paced" in self._options.lines:
            for rate in self._options.rates:
                yield from self._paced(rate)
        if "realtime" in self._options.lines:
            yield from self._cost()
        if "start" in self._options.lines:
            yield self._started()

    def _drain(self, name: str) -> Line:
        if problem := self.runs.problem(("worker", name), ("bare", "realtime")):
            return Line(name, "drain", problem=problem)
        ours = self.runs.best("worker", name, "per_s", highest=True)
        limit = self.runs.best("bare", "realtime", "per_s", highest=True)
        return Line(
            name,
            "drain",
            "share",
            ratio(ours, limit),
            _SHARES.get(name),
            ours=f"{ours:,.0f}/s",
            theirs=f"{limit:,.0f}/s",
        )

    def _paced(self, rate: float) -> Iterator[Line]:
        name = f"{rate:g}/s"
        if problem := self.runs.problem(("worker", name), ("bare", name)):
            yield Line(name, "paced", problem=problem)
            return
        for value, target in (("p50", _P50), ("p99", _P99)):
            ours, limit = (self.runs.best(system, name, value) for system in ("worker", "bare"))
            yield Line(
                f"{name}, {value}",
                "paced",
                "times",
                ratio(ours, limit),
                target,
                at_most=True,
                ours=f"{ours:.2f} ms",
                theirs=f"{limit:.2f} ms",
            )
        ours, limit = (self.runs.best(system, name, "left") for system in ("worker", "bare"))
        yield Line(
            f"{name}, queue at the end",
            "paced",
            "count",
            ours,
            rate * _LEFT,
            at_most=True,
            ours=f"{ours:.0f}",
            theirs=f"{limit:.0f}",
        )

    def _cost(self) -> Iterator[Line]:
        if problem := self.runs.problem(("worker", "realtime"), ("bare", "realtime")):
            yield Line("processor time", "cost", problem=problem)
            return
        ours, limit = (self.runs.best(system, "realtime", "cpu_us") for system in ("worker", "bare"))
        yield Line(
            "processor time a message",
            "cost",
            "times",
            ratio(ours, limit),
            _CPU,
            at_most=True,
            ours=f"{ours:.0f} us",
            theirs=f"{limit:.0f} us",
        )
        for name, value in (("memory after all backlogs", "memory_mb"), ("memory at most", "memory_peak_mb")):
            # Of the last line of a round, after all others.
            last = self._options.chosen(DRAINS)[-1]
            ours = max(float(run[value]) for run in self.runs.of("worker", last))
            limit = self.runs.best("bare", "realtime", value)
            yield Line(
                name,
                "cost",
                "MB",
                ours,
                _MEMORY,
                at_most=True,
                ours=f"{ours:.0f} MB",
                theirs=f"{limit:.0f} MB",
            )

    def _started(self) -> Line:
        if problem := self.runs.problem(("worker", "start")):
            return Line("start to first row", "cost", problem=problem)
        ours = self.runs.best("worker", "start", "seconds")
        return Line("start to first row", "cost", "s", ours, _START, at_most=True, ours=f"{ours:.2f} s")
