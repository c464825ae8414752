"""How the speed grows: more companies, partitions, stored messages, or a longer backlog, against the base of one
company, 26 partitions, nothing stored and `n` messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.environment import BenchError, Environment, Place
from tests.bench.events import LOADS
from tests.bench.lines import Line, Target
from tests.bench.measuring import bench
from tests.bench.options import GROWTH, Options
from tests.bench.runs import Runs
from tests.bench.systems import bare, worker

_PARTITIONS: Final = 26
# Within 15 %.
_KEPT: Final = 0.85
_MEMORY: Final = 250.0
_CONNECTIONS: Final = 20
_BASE: Final = "base"
# What the bare pipeline does with as many companies: so much of it is not the worker's doing.
_BARE: Final = "bare companies"
# As of one company.
_SHARE: Final = 0.55


class _Point(NamedTuple):
    """A place, and the backlogs that are drained there; both kinds of writes unless that takes too long."""

    axis: str
    title: str
    place: Place
    n: int
    loads: tuple[str, ...] = ("realtime", "repeats")


class Growth:
    """Some rounds over all points, so that none has the machine to itself for long."""

    def __init__(self, env: Environment, options: Options, folder: Path) -> None:
        self._env = env
        self._options = options
        self._folder = folder
        self.runs = Runs()

    async def run(self) -> list[Line]:
        """Measure what was chosen."""
        points = await self._points()
        for _ in range(self._options.runs):
            for point in points:
                try:
                    await self._measure(point)
                except BenchError as error:
                    for load in point.loads:
                        self.runs.fail(point.axis, load, str(error))
        return [line for point in points if point.axis != _BASE for line in self._lines(point)]

    async def _points(self) -> list[_Point]:
        options, make = self._options, self._env.place
        chosen, n = options.chosen(GROWTH), options.n
        base = await make("Base", partitions=_PARTITIONS)
        points = [_Point(_BASE, "base", base, n)]
        if "companies" in chosen:
            place = await make("Many", companies=options.companies, partitions=_PARTITIONS)
            points.append(_Point("companies", f"{options.companies} companies", place, n))
        if "partitions" in chosen:
            place = await make("Months", partitions=options.partitions)
            points.append(_Point("partitions", f"{options.partitions} partitions", place, n))
        if "stored" in chosen:
            place = await make("Full", partitions=_PARTITIONS, stored=options.stored)
            points.append(_Point("stored", f"{options.stored:,} stored", place, n))
        if "backlog" in chosen:
            title = f"backlog of {options.backlog:,}"
            points.append(_Point("backlog", title, base, options.backlog, ("realtime",)))
        return points

    async def _measure(self, point: _Point) -> None:
        if point.axis == "companies":
            async with (
                bare(self._env, point.place) as system,
                bench(self._env, point.place, system) as measure,
            ):
                load = LOADS["realtime"](point.place.companies, point.n)
                await self.runs.add(_BARE, "realtime", measure.drain(load))
        async with (
            worker(self._env, point.place, self._folder) as system,
            bench(self._env, point.place, system) as measure,
        ):
            for name in point.loads:
                load = LOADS[name](point.place.companies, point.n)
                await self.runs.add(point.axis, name, measure.drain(load))
            self.runs.keep(point.axis, "connections", {"count": await point.place.connections()})

    def _lines(self, point: _Point) -> Iterator[Line]:
        for load in point.loads:
            yield self._speed(f"{point.title}, {load}", load, point.axis, _BASE, _KEPT)
        if point.axis == "companies":
            yield self._speed(f"{point.title}, realtime, against bare", "realtime", point.axis, _BARE, _SHARE)
            yield from self._cost(point)

    def _speed(self, name: str, load: str, axis: str, against: str, share: float) -> Line:
        target, keys = Target("share", share, at_most=False), ((axis, load), (against, load))
        return self.runs.compared(name, "growth", target, "per_s", *keys, best=max, figure="{:,.0f}/s")

    def _cost(self, point: _Point) -> Iterator[Line]:
        last = point.loads[-1]
        for title, field, line, target in (
            ("memory at the end", "memory_mb", last, Target("MB", _MEMORY)),
            ("memory at most", "memory_peak_mb", last, Target("MB", _MEMORY)),
            ("connections", "count", "connections", Target("count", _CONNECTIONS)),
        ):
            figure = "{:.0f} MB" if target.unit == "MB" else "{:.0f}"
            keys, name = ((point.axis, line), (_BASE, line)), f"{point.title}, {title}"
            yield self.runs.compared(name, "growth", target, field, *keys, best=max, figure=figure)
