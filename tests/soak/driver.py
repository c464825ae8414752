"""Runs the soak test: one worker with default settings, events in steps, then an outage of PostgreSQL under load."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testkit.publisher import Confirmed, Ledger
from testkit.worker import Worker
from tests.acceptance.company_probe import comes_to
from tests.bench import usage
from tests.bench.environment import Environment, Place, environment
from tests.bench.publishing import EventPublisher, flood, publisher, steadily
from tests.bench.systems import SystemUnderTest, launch, under_test
from tests.faults.compare import Claim, compare
from tests.soak import verdict
from tests.soak.traffic import Traffic

Say = Callable[[str], None]

STEPS: Final = 6
_NOTICED: Final = 30.0


class Options(argparse.Namespace):
    """`events` in all before the outage, which takes `outage` seconds at `rate` events a second.

    What is allowed, in MB: `growth` with the events, `more` through the outage.
    """

    events: int
    outage: float
    rate: float
    seed: int
    growth: float
    more: float


@dataclass(frozen=True, slots=True)
class SoakRun:
    """What a soak test runs on."""

    env: Environment
    place: Place
    process: Worker
    worker: SystemUnderTest
    to: EventPublisher
    traffic: Traffic
    confirmed: list[Confirmed]
    ledger: Ledger

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
        size = options.events // STEPS
        steps = [await _step(soak, size, number, say) for number in range(1, STEPS + 1)]
        outage = await _outage(soak, options)
        say(
            f"\n{options.outage:g} s without PostgreSQL at {options.rate:g} events a second: "
            f"{outage.before:.1f} MB before, {outage.during:.1f} at most during it, "
            f"{outage.catching_up:.1f} at most while catching up, {outage.after:.1f} after"
        )
        rise = verdict.growth(verdict.judged(steps))
        say(f"growth after the first third of the events: {rise:.1f} MB")
        allowed = verdict.Allowance(options.growth, options.more)
        return [*verdict.problems(steps, outage, allowed), *await _differences(soak, say)]


async def _differences(run: SoakRun, say: Say) -> list[str]:
    """What was lost or doubled, or differs from what the events say."""

    async def unread() -> int:
        return len(run.ledger.unseen(run.confirmed))

    await comes_to(0, unread)
    published = list(run.ledger.published(run.confirmed))
    outcome, _ = await compare(run.env.js, run.place.dsn, Claim(run.place.companies[0], published))
    say(f"{outcome.published:,} events and history items, {outcome.stored:,} stored")
    return outcome.problems


@asynccontextmanager
async def _soak_run(seed: int, folder: Path) -> AsyncIterator[SoakRun]:
    async with environment() as env:
        place = await env.place("Soak")
        process = launch(env, place, folder)
        try:
            await asyncio.to_thread(process.wait_ready)
            ledger, confirmed = Ledger(env.js), list[Confirmed]()
            await ledger.follow(place.companies[0])
            async with publisher(env.broker.url, on_confirmed=confirmed.append) as to:
                traffic = Traffic(place.companies[0], seed)
                worker = under_test(process, place)
                yield SoakRun(env, place, process, worker, to, traffic, confirmed, ledger)
            await ledger.close()
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
    contacts = await run.place.connection.fetchval(f'SELECT count(*) FROM "{run.place.schemas[0]}".contacts')
    step = verdict.Step(size * number, memory.now, memory.peak, contacts)
    say(f"{step.events:>9,}{step.resident:>9.1f}{step.peak:>9.1f}{step.contacts:>10,}")
    return step


async def _outage(run: SoakRun, options: Options) -> verdict.Outage:
    before = usage.memory(run.worker.pid).now
    postgres = run.env.postgres
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
