"""One measurement: a backlog drained, events at a steady rate, a start.

The clock is PostgreSQL's: every row tells when it was committed (`pg_xact_commit_timestamp`), which costs the
contestants nothing. It is stamped just before the commit reaches the disk.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import asyncpg

from tests.bench import usage
from tests.bench.contestants import Contestant
from tests.bench.events import Load, realtime
from tests.bench.publishing import Publisher, flood, publisher, steadily
from tests.bench.scene import Place, Scene
from tests.bench.trouble import BenchError

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

    def record(self) -> dict[str, Any]:
        """For the file of results."""
        return _rounded(asdict(self))


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

    def record(self) -> dict[str, Any]:
        """For the file of results."""
        return _rounded(asdict(self))


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


class Bench:
    """Measures one contestant at one place."""

    def __init__(self, scene: Scene, place: Place, contestant: Contestant, to: Publisher) -> None:
        self._scene = scene
        self._place = place
        self._contestant = contestant
        self._to = to

    async def warm(self) -> None:
        """A few events first: connections, prepared statements, caches."""
        await self._store(realtime(self._place.companies, WARM_UP))

    async def drain(self, load: Load) -> Drained:
        """Publish a backlog while the contestant is stopped, then let it go. Raises `BenchError`."""
        await self._prepare(load)
        pids = (self._contestant.pid, self._scene.servers.postgres.pid, self._scene.servers.nats.pid)
        begun = time.time()
        with self._contestant.stopped():
            await flood(self._to, load.events)
            before = [usage.cpu(pid) for pid in pids]
            resumed = time.time()
        await self._contestant.drained(self._scene, load.role)
        used = [usage.cpu(pid) - already for pid, already in zip(pids, before, strict=True)]
        memory = usage.memory(self._contestant.pid)
        commits = await self._commits(load, begun)
        rows = [at for name, at in commits if name in load.counted]
        first, last, moments = min(rows), max(at for _, at in commits), len({at for _, at in commits})
        seconds, later = last - first, sum(at > first for at in rows)
        resumed_rate = len(rows) / max(last - resumed, 1e-6)
        few = moments < _FEW_COMMITS
        return Drained(
            len(rows),
            moments,
            seconds,
            resumed_rate if few else later / seconds,
            resumed_rate if few else len(rows) / seconds,
            resumed_rate,
            *(seconds_used / len(rows) * 1e6 for seconds_used in used),
            *memory,
        )

    async def paced(self, load: Load, rate: float) -> Paced:
        """Publish at `rate` events a second. Raises `BenchError`."""
        await self._prepare(load)
        begun = time.time()
        seen: list[int] = []
        watch = asyncio.create_task(self._watch(load, seen))
        try:
            left_at = await steadily(self._to, load.events, rate)
            left = await self._contestant.backlog(self._scene, load.role)
            await self._contestant.drained(self._scene, load.role)
        finally:
            watch.cancel()
        commits = await self._place.commits(self._contestant.schemas, load, begun)
        self._check(load, Counter(row["name"] for row in commits))
        sent = sorted(left_at.values())
        waits = latencies(commits, left_at)
        return Paced(
            len(waits),
            (len(sent) - 1) / max(sent[-1] - sent[0], 1e-6),
            *(percentile(waits, share) for share in (0.5, 0.95, 0.99)),
            max([*seen, left]),
            left,
        )

    async def first_stored(self, load: Load, since: float) -> float:
        """Seconds from `since` (Unix) until the first event of a load was committed. Raises `BenchError`."""
        await self._contestant.drained(self._scene, load.role)
        commits = await self._commits(load, since)
        return min(at for _, at in commits) - since

    async def _prepare(self, load: Load) -> None:
        await self._place.clear()
        if load.seeds:
            await flood(self._to, load.seeds)
            await self._contestant.drained(self._scene, load.role)
            await self._place.checkpoint()

    async def _store(self, load: Load) -> None:
        await flood(self._to, load.events)
        await self._contestant.drained(self._scene, load.role)

    async def _watch(self, load: Load, seen: list[int]) -> None:
        while True:
            await asyncio.sleep(_SAMPLE)
            seen.append(await self._contestant.backlog(self._scene, load.role))

    async def _commits(self, load: Load, since: float) -> list[tuple[str, float]]:
        rows = await self._place.commits(self._contestant.schemas, load, since)
        commits = [(row["name"], row["at"]) for row in rows]
        self._check(load, Counter(name for name, _ in commits))
        return commits

    def _check(self, load: Load, found: Counter[str]) -> None:
        if missing := load.expected() - found:
            tables = ", ".join(f"{count} of {table}" for table, count in missing.items())
            raise BenchError(f"{self._contestant.name} has settled all events, but rows are missing: {tables}")


@asynccontextmanager
async def bench(scene: Scene, place: Place, contestant: Contestant) -> AsyncIterator[Bench]:
    """A bench with a connection of its own to publish on; the contestant is warm."""
    async with publisher(scene.servers.nats.url, contestant.prefix) as to:
        made = Bench(scene, place, contestant, to)
        await made.warm()
        yield made


def latencies(commits: Sequence[asyncpg.Record], left_at: Mapping[tuple[str, str], float]) -> list[float]:
    """Milliseconds from publishing to commit of all rows, sorted."""
    pairs = ((row["at"], left_at.get((row["name"], row["key"]))) for row in commits)
    return sorted((at - left) * 1000 for at, left in pairs if left is not None)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies; they must be sorted."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
