"""One measurement: a backlog drained, events at a steady rate, a start.

The clock is PostgreSQL's: every row tells when it was committed (`pg_xact_commit_timestamp`), which costs the
systems nothing. It is stamped just before the commit reaches the disk.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from tests.bench import usage
from tests.bench.environment import BenchError, Environment, Place
from tests.bench.events import LOADS, Event, Load
from tests.bench.options import Options
from tests.bench.publishing import EventPublisher, flood, publisher, steadily
from tests.bench.runs import Run, Runs
from tests.bench.systems import SystemUnderTest

WARM_UP: Final = 300
# Fewer commits say too little about the time between them.
_FEW_COMMITS: Final = 4


@dataclass(frozen=True, slots=True)
class Section:
    """What the lines of a section are measured with, and the runs that come of it; logs go to `folder`."""

    env: Environment
    options: Options
    folder: Path
    runs: Runs


class Bench:
    """Measures one system at one place."""

    def __init__(self, env: Environment, place: Place, system: SystemUnderTest, to: EventPublisher) -> None:
        self._env = env
        self._place = place
        self._system = system
        self._to = to

    async def drain(self, load: Load) -> Run:
        """Publish a backlog while the system is stopped, then let it go. Raises `BenchError`.

        `per_s` leaves out the rows of the first commit, with which the clock starts.
        """
        await self._prepare(load)
        env = self._env
        pids = {"": self._system.pid, "postgres_": env.postgres.pid, "nats_": env.broker.pid}
        begun = time.time()
        with self._system.stopped():
            await flood(self._to, load.events)
            before = [usage.cpu(pid) for pid in pids.values()]
            resumed = time.time()
        await self._system.drained(self._env, load.role)
        used = [usage.cpu(pid) - already for pid, already in zip(pids.values(), before, strict=True)]
        memory = usage.memory(self._system.pid)
        await self._env.purge(letters=load.role == "dlq")
        found = await stored(self._place, self._system, load, begun)
        rows = [row["at"] for row in found if row["name"] in load.counted]
        commits = {row["at"] for row in found}
        first, last = min(rows), max(commits)
        speed = len(rows) / max(last - resumed, 1e-6)
        if len(commits) >= _FEW_COMMITS:
            speed = sum(at > first for at in rows) / (last - first)
        return {
            "rows": len(rows),
            "commits": len(commits),
            "per_s": speed,
            **{f"{name}cpu_us": spent / len(rows) * 1e6 for name, spent in zip(pids, used, strict=True)},
            "memory_mb": memory.now,
            "memory_peak_mb": memory.peak,
        }

    async def paced(self, load: Load, rate: float) -> Run:
        """Publish at `rate` events a second; `left` were not settled when the last was out. Raises `BenchError`."""
        await self._prepare(load)
        begun = time.time()
        left_at = await steadily(self._to, load.events, rate)
        left = await self._system.backlog(self._env, load.role)
        await self._system.drained(self._env, load.role)
        await self._env.purge()
        waits = latencies(await stored(self._place, self._system, load, begun), left_at)
        return {
            "rows": len(waits),
            "p50": percentile(waits, 0.5),
            "p99": percentile(waits, 0.99),
            "left": left,
        }

    async def _prepare(self, load: Load) -> None:
        # What a run before has left, if it failed.
        await self._env.purge(letters=True)
        await self._place.clear()
        if load.name != "dlq":
            await self._warm(LOADS[load.name](self._place.companies, WARM_UP * len(self._place.companies)))
        await self._store(load.seeds)
        await self._place.checkpoint()

    async def _warm(self, like: Load) -> None:
        """A backlog of each company first: empty tables, which `clear` leaves, have no plans and no caches."""
        await self._store(like.seeds)
        with self._system.stopped():
            await flood(self._to, like.events)
        await self._system.drained(self._env, like.role)

    async def _store(self, seeds: Sequence[Event]) -> None:
        await flood(self._to, seeds)
        await self._system.drained(self._env, "realtime")


@asynccontextmanager
async def bench(env: Environment, place: Place, system: SystemUnderTest) -> AsyncIterator[Bench]:
    """A bench with a connection of its own to publish on."""
    async with publisher(env.broker.url, system.prefix) as to:
        yield Bench(env, place, system, to)


async def stored(place: Place, system: SystemUnderTest, load: Load, since: float) -> list[asyncpg.Record]:
    """When each row of a load was committed, after `since`. Raises `BenchError` if any row is missing."""
    commits = await place.commits(system.schemas, load, since)
    if missing := load.expected() - Counter(row["name"] for row in commits):
        tables = ", ".join(f"{count} of {table}" for table, count in missing.items())
        raise BenchError(f"{system.name} has settled all events, but rows are missing: {tables}")
    return commits


def latencies(commits: Sequence[asyncpg.Record], left_at: Mapping[tuple[str, str], float]) -> list[float]:
    """Milliseconds from publishing to commit of all rows, sorted."""
    pairs = ((row["at"], left_at.get((row["name"], row["key"]))) for row in commits)
    return sorted((at - left) * 1000 for at, left in pairs if left is not None)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies; they must be sorted."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
