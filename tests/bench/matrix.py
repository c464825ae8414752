"""The worker against the bare pipeline: backlogs, steady rates, cost and start."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.bench.environment import BenchError, Environment, Place
from tests.bench.events import LOADS, realtime
from tests.bench.lines import Line, Target
from tests.bench.measuring import bench, first_stored
from tests.bench.options import DRAINS, Options
from tests.bench.publishing import flood, publisher
from tests.bench.runs import Runs
from tests.bench.systems import SystemUnderTest, bare, worker

# Shares of the bare pipeline's messages a second.
_SHARES: Final = {"realtime": 0.55, "mixed": 0.35, "inbound_new": 0.25, "history": 0.80, "repeats": 0.40}
_BARE: Final = ("bare", "realtime")
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
            self.runs.keep("worker", "start", {"seconds": seconds})
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
            target = Target("share", _SHARES.get(name), at_most=False)
            yield self.runs.compared(
                name, "drain", target, "per_s", ("worker", name), _BARE, best=max, figure="{:,.0f}/s"
            )
        if "paced" in self._options.lines:
            for rate in self._options.rates:
                yield from self._paced(rate)
        if "realtime" in self._options.lines:
            yield from self._cost()
        if "start" in self._options.lines:
            key, target = ("worker", "start"), Target("s", _START)
            yield self.runs.compared(
                "start to first row", "cost", target, "seconds", key, None, figure="{:.2f} s"
            )

    def _paced(self, rate: float) -> Iterator[Line]:
        name = f"{rate:g}/s"
        keys = (("worker", name), ("bare", name))
        for field, times in (("p50", _P50), ("p99", _P99)):
            target = Target("times", times)
            yield self.runs.compared(f"{name}, {field}", "paced", target, field, *keys, figure="{:.2f} ms")
        yield self.runs.compared(
            f"{name}, queue at the end", "paced", Target("count", rate * _LEFT), "left", *keys
        )

    def _cost(self) -> Iterator[Line]:
        ours, target = ("worker", "realtime"), Target("times", _CPU)
        yield self.runs.compared(
            "processor time a message", "cost", target, "cpu_us", ours, _BARE, figure="{:.0f} us"
        )
        # Of the last line of a round, after all others.
        last, target = ("worker", self._options.chosen(DRAINS)[-1]), Target("MB", _MEMORY)
        for name, field in (("memory after all backlogs", "memory_mb"), ("memory at most", "memory_peak_mb")):
            yield self.runs.compared(name, "cost", target, field, last, _BARE, best=max, figure="{:.0f} MB")
