"""Runs one class of faults once: load, fault, quiet, comparison."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from testkit.differences import Problem
from testkit.evidence import Evidence, backlog
from tests.acceptance.worker import Worker, logged
from tests.faults.catalogue import FAULTS
from tests.faults.clusters import ClusterScene, PairScene, PoolerScene
from tests.faults.compare import Claim, Outcome, compare, deliveries
from tests.faults.fault import Fault
from tests.faults.nats_cluster import NatsCluster
from tests.faults.postgres_pair import PostgresPair
from tests.faults.scene import SETTINGS_OF_POSTGRES, Database, Plan, Scene, postgres
from tests.faults.server_fault import mend, stale_replicas, stuck_consumers, vanished

# Without any progress for this long nothing more is expected.
_PATIENCE: Final = 40.0
# Once all consumers are quiet, for a dead letter whose replay has begun.
_SETTLING: Final = 8.0
_POLL: Final = 0.1
# Messages published after a fault that have to be stored before the recovery is complete.
_AFTERWARDS: Final = 5
STORED: Final = "every message is stored"
_LOUD: Final = ("error", "critical")


@asynccontextmanager
async def database_for(name: str) -> AsyncIterator[Database]:
    """The PostgreSQL that a class needs, which runs may share."""
    fault = FAULTS[name]
    if fault.servers == "pair":
        async with PostgresPair(SETTINGS_OF_POSTGRES, synchronous=fault.synchronous) as pair:
            yield pair
    else:
        with postgres() as server:
            yield server


async def run(
    name: str,
    database: Database,
    folder: Path,
    *,
    seed: int,
    short: bool,
    cluster: NatsCluster | None = None,
) -> Outcome:
    """One run of a class, on servers that other runs may have used; logs go to `folder`.

    `cluster`: three nodes that stand already, for a class that needs them.
    """
    fault = FAULTS[name]
    plan = Plan(
        seed=seed,
        rate=fault.rate,
        short=short,
        settings=dict(fault.settings),
        without=fault.without,
        often=fault.often,
        proxies=fault.proxies,
        cold=fault.cold,
        replicas=fault.replicas,
    )
    async with _scene(fault, plan, database, folder, cluster) as scene:
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
        if isinstance(scene, ClusterScene) and scene.evidence:
            outcome.show(scene.evidence)
    return outcome


def _scene(fault: Fault, plan: Plan, database: Database, folder: Path, cluster: NatsCluster | None) -> Scene:
    if fault.servers == "nodes":
        return ClusterScene(plan, database, folder, cluster)
    return {"single": Scene, "pair": PairScene, "pooler": PoolerScene}[fault.servers](plan, database, folder)


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

    if not await scene.until(STORED, stored):
        return None
    recovered = time.monotonic() - healed
    # Some more, after all of it.
    await scene.pause(0.5, 1.0)
    return recovered


async def settle(scene: Scene, fault: Fault) -> Outcome:
    """The outcome once everything is accounted for, or nothing moves any more."""
    last = scene.load.eras[-1]
    for era in scene.load.eras:
        if era is last:
            await era.read(scene.company)
    outcome = await _quiet(scene, fault)
    outcome.blame(
        *(
            Problem("lost", f"{one.publication.subject} sequence {one.sequence}: not in the stream")
            for one in last.unseen()
        )
    )
    if isinstance(scene, ClusterScene) and not outcome.ok:
        outcome = await _judged_by_the_nodes(scene, fault, outcome)
    for era in scene.load.eras:
        await era.close()
    return outcome


async def _judged_by_the_nodes(scene: ClusterScene, fault: Fault, outcome: Outcome) -> Outcome:
    """Whether a server is to blame: it shows in its own state, and what an operator does about it mends all."""
    if gone := await vanished(scene, scene.load.eras[-1].unseen()):
        if all("not in the stream" in one or "belongs to no event" in one for one in outcome.problems):
            outcome.excuse(gone)
        return outcome
    stale, stuck = await stale_replicas(scene), await stuck_consumers(scene)
    if not stale and not stuck:
        return outcome
    await mend(scene, stale, stuck)
    mended = await _quiet(scene, fault)
    if mended.ok:
        late = [one for one in scene.problems if one.endswith(STORED)]
        scene.problems = [one for one in scene.problems if one not in late]
        mended.excuse([*stale.values(), *stuck.values(), *late, *outcome.problems])
        return mended
    return outcome


async def _quiet(scene: Scene, fault: Fault) -> Outcome:
    seen: object = None
    moved = time.monotonic()
    while True:
        state = await backlog(scene.js, scene.company)
        quiet = not state.lag and not (fault.drained and state.waiting)
        size: object = None
        if quiet:
            outcome, evidence = await _compared(scene, fault)
            if outcome.ok:
                return outcome
            size = evidence.size()
        if seen != (seen := (state, size)):
            moved = time.monotonic()
        if time.monotonic() - moved > (_SETTLING if quiet else _PATIENCE):
            return (await _compared(scene, fault))[0]
        await asyncio.sleep(_POLL)


async def _compared(scene: Scene, fault: Fault) -> tuple[Outcome, Evidence]:
    """What was published is read anew each time: a publish that was not confirmed may come late."""
    claim = Claim(
        scene.company,
        [one for era in scene.load.eras for one in era.published()],
        doubtful=scene.doubtful,
        undelivered=scene.undelivered,
        letters_allowed=fault.letters,
    )
    return await compare(scene.js, scene.dsn, claim, scene.put_right)


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
