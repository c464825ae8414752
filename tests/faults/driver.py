"""Runs one class of faults once: load, fault, quiet, comparison."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Final

from demo.evidence import Evidence, backlog
from demo.servers import PostgresServer
from tests.acceptance.worker import Worker, logged
from tests.faults.classes import FAULTS, Fault
from tests.faults.compare import Claim, Outcome, compare, deliveries
from tests.faults.scene import Plan, Scene

# Without any progress for this long nothing more is expected.
_PATIENCE: Final = 40.0
# Once all consumers are quiet, for a dead letter whose replay has begun.
_SETTLING: Final = 8.0
_POLL: Final = 0.1
# Messages published after a fault that have to be stored before the recovery is complete.
_AFTERWARDS: Final = 5
_LOUD: Final = ("error", "critical")


async def run(name: str, postgres: PostgresServer, folder: Path, *, seed: int, short: bool) -> Outcome:
    """One run of a class, on a database server that other runs may have used; logs go to `folder`."""
    fault = FAULTS[name]
    plan = Plan(
        seed=seed,
        rate=fault.rate,
        short=short,
        settings=dict(fault.settings),
        calm=fault.calm,
        proxies=fault.proxies,
        cold=fault.cold,
    )
    async with Scene(plan, postgres, folder) as scene:
        publishing = asyncio.create_task(scene.load.run())
        try:
            recovered = await _suffer(scene, fault)
        finally:
            scene.load.finish()
            await asyncio.wait_for(publishing, 60)
        outcome = await settle(scene, fault)
        outcome.recovered = recovered
        outcome.redelivered = await _redelivered(scene)
        if fault.afterwards is not None:
            await fault.afterwards(scene)
        await _examine_workers(scene, folder)
        outcome.complain(*scene.problems)
    return outcome


async def _suffer(scene: Scene, fault: Fault) -> float | None:
    """Let the fault strike; seconds from its end until all messages before it, and some after it, are stored."""
    await scene.pause(0.3, 1.0)
    if not scene.plan.short:
        scene.load.burst(scene.rng.choice((0, 100, 600)))
    await fault.strike(scene)
    healed = time.monotonic()
    enough = len(scene.load.messages()) + _AFTERWARDS

    async def stored() -> bool:
        ids = scene.load.messages()[:enough]
        return len(ids) == enough and await scene.all_stored(ids)

    if not await scene.until("every message is stored", stored):
        return None
    recovered = time.monotonic() - healed
    # Some more, after all of it.
    await scene.pause(0.5, 1.0)
    return recovered


async def settle(scene: Scene, fault: Fault) -> Outcome:
    """The outcome once everything is accounted for, or nothing moves any more."""
    unseen = []
    for era in scene.load.eras:
        if era is scene.load.eras[-1] and not await era.read(scene.company):
            unseen = [
                f"{one.publication.subject} sequence {one.sequence}: not in the stream"
                for one in era.unseen()
            ]
    claim = Claim(
        scene.company,
        [one for era in scene.load.eras for one in era.published()],
        doubtful=scene.doubtful,
        undelivered=scene.undelivered,
        letters_allowed=fault.letters,
    )
    outcome, _ = await _quiet(scene, claim, drained=fault.drained)
    outcome.blame(*unseen)
    for era in scene.load.eras:
        await era.close()
    return outcome


async def _quiet(scene: Scene, claim: Claim, *, drained: bool) -> tuple[Outcome, Evidence]:
    seen: object = None
    moved = time.monotonic()
    while True:
        state = await backlog(scene.js, scene.company)
        quiet = not state.lag and not (drained and state.waiting)
        size: object = None
        if quiet:
            outcome, evidence = await compare(scene.js, scene.dsn, claim)
            if outcome.ok:
                return outcome, evidence
            size = evidence.size()
        if seen != (seen := (state, size)):
            moved = time.monotonic()
        if time.monotonic() - moved > (_SETTLING if quiet else _PATIENCE):
            return await compare(scene.js, scene.dsn, claim)
        await asyncio.sleep(_POLL)


async def _redelivered(scene: Scene) -> int:
    delivered = scene.delivered_before + await deliveries(scene.js, scene.company)
    return max(0, delivered - sum(len(era.published()) for era in scene.load.eras))


async def _ready(worker: Worker) -> bool:
    status, _ = await asyncio.to_thread(worker.page, "/ready")
    return status == 200


async def _examine_workers(scene: Scene, folder: Path) -> None:
    """Who is left works, and nobody met anything unexpected."""
    for worker in scene.workers:
        if not worker.running:
            scene.complain(f"a worker ended by itself, code {worker.process.poll()}: {worker.log}")
            continue

        await scene.until("a worker is ready again", partial(_ready, worker), 20)
    for log in folder.glob(f"{scene.company}-*.log"):
        for said in logged(log):
            if said.get("level") in _LOUD:
                scene.complain(f"the worker logged: {str(said.get('msg'))[:150]} ({log})")
