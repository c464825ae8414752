"""How the speed grows: more companies, partitions, stored messages, or a longer backlog, against the base of one
company, 26 partitions, nothing stored and `n` messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from tests.bench.environment import BenchError, Place
from tests.bench.events import LOADS
from tests.bench.lines import Line
from tests.bench.measuring import Section, bench
from tests.bench.options import SECTIONS
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


async def measure(section: Section) -> list[Line]:
    """Some rounds over all points, so that none has the machine to itself for long."""
    points = await _points(section)
    for _ in range(section.options.runs):
        for point in points:
            try:
                await _measure(section, point)
            except BenchError as error:
                for load in point.loads:
                    section.runs.fail(point.axis, load, str(error))
    return [line for point in points if point.axis != _BASE for line in _lines(section, point)]


async def _points(section: Section) -> list[_Point]:
    options, make = section.options, section.env.place
    chosen, n = options.chosen(SECTIONS["growth"]), options.n
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


async def _measure(section: Section, point: _Point) -> None:
    env, place, runs = section.env, point.place, section.runs
    if point.axis == "companies":
        async with bare(env, place) as system, bench(env, place, system) as measure:
            await runs.add(_BARE, "realtime", measure.drain(LOADS["realtime"](place.companies, point.n)))
    async with worker(env, place, section.folder) as system, bench(env, place, system) as measure:
        for name in point.loads:
            await runs.add(point.axis, name, measure.drain(LOADS[name](place.companies, point.n)))
        runs.keep(point.axis, "connections", {"connections": await place.connections()})


def _lines(section: Section, point: _Point) -> Iterator[Line]:
    axis, title, last = point.axis, point.title, point.loads[-1]

    def compared(name: str, field: str, line: str, against: str, *target: Any) -> Line:
        keys = ((axis, line), (against, line))
        return section.runs.compared("growth", f"{title}, {name}", field, *keys, *target)

    for load in point.loads:
        yield compared(load, "per_s", load, _BASE, "share", _KEPT)
    if axis == "companies":
        yield compared("realtime, against bare", "per_s", "realtime", _BARE, "share", _SHARE)
        yield compared("memory at the end", "memory_mb", last, _BASE, "MB", _MEMORY)
        yield compared("memory at most", "memory_peak_mb", last, _BASE, "MB", _MEMORY)
        yield compared("connections", "connections", "connections", _BASE, "count", _CONNECTIONS)
