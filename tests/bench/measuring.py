"""One measurement: a backlog drained, events at a steady rate, a start.

The clock is PostgreSQL's: every row tells when it was committed (`pg_xact_commit_timestamp`), which costs the
systems nothing. It is stamped just before the commit reaches the disk.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from tests.bench import usage
from tests.bench.environment import BenchError, Environment, Place
from tests.bench.events import LOADS, Event, Load
from tests.bench.publishing import EventPublisher, flood, publisher, steadily
from tests.bench.systems import SystemUnderTest

WARM_UP: Final = 300
# Fewer commits say too little about the time between them.
_FEW_COMMITS: Final = 4
_SAMPLE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Drained:
    """How a backlog was worked off. `per_s` leaves out the rows of the first commit, with which the clock starts;
    `per_s_all` divides all rows by the same time, and `per_s_resumed` counts from the resumption on."""

    rows: int
    commits: int
    seconds: float
    per_s: float
    per_s_all: float
    per_s_resumed: float
    cpu_us: float
    postgres_cpu_us: float
    nats_cpu_us: float
    memory_mb: float
    memory_peak_mb: float


@dataclass(frozen=True, slots=True)
class Paced:
    """Milliseconds from publishing to commit; `left` events were not settled when the last was published, at most
    `backlog` at any time."""

    rows: int
    per_s: float
    p50: float
    p95: float
    p99: float
    backlog: int
    left: int


def _speeds(rows: Sequence[float], commits: Collection[float], resumed: float) -> dict[str, Any]:
    """The part of `Drained` that follows from the moments of the commits, of the counted rows and of all."""
    first, last = min(rows), max(commits)
    from_resumed = len(rows) / max(last - resumed, 1e-6)
    few = len(commits) < _FEW_COMMITS
    return {
        "rows": len(rows),
        "commits": len(commits),
        "seconds": last - first,
        "per_s": from_resumed if few else sum(at > first for at in rows) / (last - first),
        "per_s_all": from_resumed if few else len(rows) / (last - first),
        "per_s_resumed": from_resumed,
    }


class Bench:
    """Measures one system at one place."""

    def __init__(self, env: Environment, place: Place, system: SystemUnderTest, to: EventPublisher) -> None:
        self._env = env
        self._place = place
        self._system = system
        self._to = to

    async def drain(self, load: Load) -> Drained:
        """Publish a backlog while the system is stopped, then let it go. Raises `BenchError`."""
        await self._prepare(load)
        pids = (self._system.pid, self._env.servers.postgres.pid, self._env.servers.nats.pid)
        begun = time.time()
        with self._system.stopped():
            await flood(self._to, load.events)
            before = [usage.cpu(pid) for pid in pids]
            resumed = time.time()
        await self._system.drained(self._env, load.role)
        used = [usage.cpu(pid) - already for pid, already in zip(pids, before, strict=True)]
        memory = usage.memory(self._system.pid)
        await self._env.purge(letters=load.role == "dlq")
        commits = await stored(self._place, self._system, load, begun)
        counted = [row["at"] for row in commits if row["name"] in load.counted]
        return Drained(
            **_speeds(counted, {row["at"] for row in commits}, resumed),
            cpu_us=used[0] / len(counted) * 1e6,
            postgres_cpu_us=used[1] / len(counted) * 1e6,
            nats_cpu_us=used[2] / len(counted) * 1e6,
            memory_mb=memory.now,
            memory_peak_mb=memory.peak,
        )

    async def paced(self, load: Load, rate: float) -> Paced:
        """Publish at `rate` events a second. Raises `BenchError`."""
        await self._prepare(load)
        begun = time.time()
        seen: list[int] = []
        over = asyncio.Event()
        watch = asyncio.create_task(self._watch(load, seen, over))
        try:
            left_at = await steadily(self._to, load.events, rate)
            left = await self._system.backlog(self._env, load.role)
            await self._system.drained(self._env, load.role)
        finally:
            over.set()
            await watch
        await self._env.purge()
        commits = await stored(self._place, self._system, load, begun)
        sent = sorted(left_at.values())
        waits = latencies(commits, left_at)
        return Paced(
            rows=len(waits),
            per_s=(len(sent) - 1) / max(sent[-1] - sent[0], 1e-6),
            p50=percentile(waits, 0.5),
            p95=percentile(waits, 0.95),
            p99=percentile(waits, 0.99),
            backlog=max([*seen, left]),
            left=left,
        )

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

    async def _watch(self, load: Load, seen: list[int], over: asyncio.Event) -> None:
        # Not cancelled: a request of nats-py that is cancelled in the wrong moment goes on.
        while not over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), _SAMPLE)
            seen.append(await self._system.backlog(self._env, load.role))


@asynccontextmanager
async def bench(env: Environment, place: Place, system: SystemUnderTest) -> AsyncIterator[Bench]:
    """A bench with a connection of its own to publish on."""
    async with publisher(env.servers.nats.url, system.prefix) as to:
        yield Bench(env, place, system, to)


async def stored(place: Place, system: SystemUnderTest, load: Load, since: float) -> list[asyncpg.Record]:
    """When each row of a load was committed, after `since`. Raises `BenchError` if any row is missing."""
    commits = await place.commits(system.schemas, load, since)
    if missing := load.expected() - Counter(row["name"] for row in commits):
        tables = ", ".join(f"{count} of {table}" for table, count in missing.items())
        raise BenchError(f"{system.name} has settled all events, but rows are missing: {tables}")
    return commits


async def first_stored(
    env: Environment, place: Place, system: SystemUnderTest, load: Load, since: float
) -> float:
    """Seconds from `since` (Unix) until the first row of a load was committed. Raises `BenchError`."""
    await system.drained(env, load.role)
    first: float = min(row["at"] for row in await stored(place, system, load, since))
    return first - since


def latencies(commits: Sequence[asyncpg.Record], left_at: Mapping[tuple[str, str], float]) -> list[float]:
    """Milliseconds from publishing to commit of all rows, sorted."""
    pairs = ((row["at"], left_at.get((row["name"], row["key"]))) for row in commits)
    return sorted((at - left) * 1000 for at, left in pairs if left is not None)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies; they must be sorted."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
