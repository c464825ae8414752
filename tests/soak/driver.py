"""Runs the soak test: one worker with default settings, events in steps, then an outage of PostgreSQL under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.acceptance.worker import Worker
from tests.bench import usage
from tests.bench.contestants import Contestant, contestant, launch
from tests.bench.publishing import Publisher, flood, publisher, steadily
from tests.bench.scene import Place, Scene, scene
from tests.soak import counting, verdict
from tests.soak.options import STEPS, Options
from tests.soak.resident import watching
from tests.soak.traffic import Traffic

Say = Callable[[str], None]

_NOTICED: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Stage:
    scene: Scene
    place: Place
    process: Worker
    worker: Contestant
    to: Publisher
    traffic: Traffic

    async def settled(self) -> None:
        """Return when everything is stored and acknowledged. Raises `BenchError` when nothing moves."""
        for role in ("realtime", "historical"):
            await self.worker.drained(self.scene, role)

    async def scraped(self) -> None:
        """Read the metrics page, as Prometheus would: making it takes memory, too."""
        await asyncio.to_thread(self.process.scrape)


async def run(options: Options, folder: Path, say: Say) -> list[str]:
    """Why the promise is not held; empty when it is. The worker's log goes to `folder`.

    Raises `tests.bench.trouble.BenchError` or `AssertionError` when it cannot be found out.
    """
    async with _stage(options.seed, folder) as stage:
        say(f"{'events':>9}{'MB now':>9}{'MB peak':>9}{'contacts':>10}")
        steps = [await _step(stage, options.step, number, say) for number in range(1, STEPS + 1)]
        outage = await _outage(stage, options)
        say(
            f"\n{options.outage:g} s without PostgreSQL at {options.rate:g} events a second: "
            f"{outage.before:.1f} MB before, {outage.during:.1f} at most during it, "
            f"{outage.catching_up:.1f} at most while catching up, {outage.after:.1f} after"
        )
        expected = stage.traffic.expected()
        found = await counting.counts(stage.scene, stage.place.dsn, stage.place.tenants[0])
        say(", ".join(f"{count:,} {name}" for name, count in found.items()))
        rise = verdict.growth(verdict.judged(steps))
        say(f"growth after the first third of the events: {rise:.1f} MB")
        return [*verdict.problems(steps, outage, options.allowed), *counting.differences(expected, found)]


@asynccontextmanager
async def _stage(seed: int, folder: Path) -> AsyncIterator[_Stage]:
    async with scene() as made:
        place = await made.place("Soak")
        process = launch(made, place, folder)
        try:
            await asyncio.to_thread(process.wait_ready)
            async with publisher(made.servers.nats.url, "") as to:
                traffic = Traffic(place.companies[0], seed)
                yield _Stage(made, place, process, contestant(process, place), to, traffic)
            assert await asyncio.to_thread(process.stop) == 0, process.told()
        finally:
            process.kill()


async def _step(stage: _Stage, size: int, number: int, say: Say) -> verdict.Step:
    # Half of them as they come, half as a backlog: then batches are full, and onboarding falls behind.
    await flood(stage.to, stage.traffic.events(size // 2))
    with stage.worker.stopped():
        await flood(stage.to, stage.traffic.events(size - size // 2))
    await stage.settled()
    await stage.scraped()
    memory = usage.memory(stage.worker.pid)
    contacts = await counting.contacts(stage.place.dsn, stage.place.tenants[0])
    step = verdict.Step(size * number, memory.now, memory.peak, contacts)
    say(f"{step.events:>9,}{step.resident:>9.1f}{step.peak:>9.1f}{step.contacts:>10,}")
    return step


async def _outage(stage: _Stage, options: Options) -> verdict.Outage:
    before = usage.memory(stage.worker.pid).now
    postgres = stage.scene.servers.postgres
    async with watching(stage.worker.pid) as during:
        await asyncio.to_thread(postgres.stop)
        await steadily(stage.to, stage.traffic.events(round(options.rate * options.outage)), options.rate)
        # Else there was none.
        await asyncio.to_thread(stage.process.wait_page, "/ready", 503, _NOTICED)
    async with watching(stage.worker.pid) as afterwards:
        await asyncio.to_thread(postgres.start)
        await asyncio.to_thread(stage.process.wait_ready)
        await stage.settled()
        await stage.scraped()
    return verdict.Outage(before, during.value, afterwards.value, usage.memory(stage.worker.pid).now)
