"""Runs the soak test: one worker with default settings, events in steps, then an outage of PostgreSQL under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testkit.worker import Worker
from tests.bench import usage
from tests.bench.environment import Environment, Place, environment
from tests.bench.publishing import EventPublisher, flood, publisher, steadily
from tests.bench.systems import SystemUnderTest, launch, under_test
from tests.soak import counting, verdict
from tests.soak.options import STEPS, Options
from tests.soak.traffic import Traffic

Say = Callable[[str], None]

_NOTICED: Final = 30.0


@dataclass(frozen=True, slots=True)
class SoakRun:
    """What a soak test runs on."""

    env: Environment
    place: Place
    process: Worker
    worker: SystemUnderTest
    to: EventPublisher
    traffic: Traffic

    async def settled(self) -> None:
        """Return when everything is stored and acknowledged. Raises `BenchError` when nothing moves."""
        for role in ("realtime", "historical"):
            await self.worker.drained(self.env, role)

    async def scraped(self) -> None:
        """Read the metrics page, as Prometheus would: making it takes memory, too."""
        await asyncio.to_thread(self.process.scrape)


async def run(options: Options, folder: Path, say: Say) -> list[str]:
    """Why the promise is not held; empty when it is. The worker's log goes to `folder`.

    Raises `tests.bench.environment.BenchError` or `AssertionError` when it cannot be found out.
    """
    async with _soak_run(options.seed, folder) as soak:
        say(f"{'events':>9}{'MB now':>9}{'MB peak':>9}{'contacts':>10}")
        steps = [await _step(soak, options.step, number, say) for number in range(1, STEPS + 1)]
        outage = await _outage(soak, options)
        say(
            f"\n{options.outage:g} s without PostgreSQL at {options.rate:g} events a second: "
            f"{outage.before:.1f} MB before, {outage.during:.1f} at most during it, "
            f"{outage.catching_up:.1f} at most while catching up, {outage.after:.1f} after"
        )
        expected = soak.traffic.expected()
        found = await counting.counts(soak.env, soak.place.dsn, soak.place.tenants[0])
        say(", ".join(f"{count:,} {name}" for name, count in found.items()))
        rise = verdict.growth(verdict.judged(steps))
        say(f"growth after the first third of the events: {rise:.1f} MB")
        return [*verdict.problems(steps, outage, options.allowed), *counting.differences(expected, found)]


@asynccontextmanager
async def _soak_run(seed: int, folder: Path) -> AsyncIterator[SoakRun]:
    async with environment() as env:
        place = await env.place("Soak")
        process = launch(env, place, folder)
        try:
            await asyncio.to_thread(process.wait_ready)
            async with publisher(env.servers.nats.url) as to:
                traffic = Traffic(place.companies[0], seed)
                yield SoakRun(env, place, process, under_test(process, place), to, traffic)
            assert await asyncio.to_thread(process.stop) == 0, process.written()
        finally:
            process.kill()


async def _step(run: SoakRun, size: int, number: int, say: Say) -> verdict.Step:
    # Half of them as they come, half as a backlog: then batches are full, and onboarding falls behind.
    await flood(run.to, run.traffic.events(size // 2))
    with run.worker.stopped():
        await flood(run.to, run.traffic.events(size - size // 2))
    await run.settled()
    await run.scraped()
    memory = usage.memory(run.worker.pid)
    contacts = await counting.contacts(run.place.dsn, run.place.tenants[0])
    step = verdict.Step(size * number, memory.now, memory.peak, contacts)
    say(f"{step.events:>9,}{step.resident:>9.1f}{step.peak:>9.1f}{step.contacts:>10,}")
    return step


async def _outage(run: SoakRun, options: Options) -> verdict.Outage:
    before = usage.memory(run.worker.pid).now
    postgres = run.env.servers.postgres
    async with usage.watching(run.worker.pid) as during:
        await asyncio.to_thread(postgres.stop)
        await steadily(run.to, run.traffic.events(round(options.rate * options.outage)), options.rate)
        # Else there was none.
        await asyncio.to_thread(run.process.wait_page, "/ready", 503, _NOTICED)
    async with usage.watching(run.worker.pid) as afterwards:
        await asyncio.to_thread(postgres.start)
        await asyncio.to_thread(run.process.wait_ready)
        await run.settled()
        await run.scraped()
    return verdict.Outage(before, during.value, afterwards.value, usage.memory(run.worker.pid).now)
