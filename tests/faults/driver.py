"""Runs one class of faults once: load, fault, quiet, comparison."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import nats

from testkit.differences import Problem
from testkit.evidence import Evidence, backlog
from testkit.worker import Worker
from tests.faults.catalogue import FAULTS
from tests.faults.clusters import ClusterEnvironment, PairEnvironment, PoolerEnvironment
from tests.faults.compare import Claim, Outcome, compare, deliveries
from tests.faults.environment import SETTINGS_OF_POSTGRES, Database, Environment, postgres
from tests.faults.fault import Fault
from tests.faults.server_fault import repair, stale_replicas, stuck_consumers, vanished
from tests.servers.nats_cluster import NatsCluster
from tests.servers.postgres_pair import PostgresPair

# Without any progress for this long nothing more is expected.
_PATIENCE: Final = 40.0
# Once all consumers are quiet, for a dead letter whose replay has begun.
_SETTLING: Final = 8.0
_POLL: Final = 0.1
# Messages published after a fault that have to be stored before the recovery is complete.
_AFTERWARDS: Final = 5
STORED: Final = "every message is stored"
Answer = TypeVar("Answer")


@asynccontextmanager
async def database_for(name: str) -> AsyncIterator[Database]:
    """The PostgreSQL that a class needs, which runs may share."""
    fault = FAULTS[name]
    if fault.servers == "pair":
        async with PostgresPair(dict(SETTINGS_OF_POSTGRES), synchronous=fault.synchronous) as pair:
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
    made = _environment(fault, database, folder, cluster, seed=seed, short=short)
    async with made.opened() as env:
        publishing = asyncio.create_task(env.load.run())
        try:
            recovered = await _inject(env, fault)
        finally:
            env.load.finish()
            await asyncio.wait_for(publishing, 60)
        outcome = await settle(env, fault)
        outcome.recovered = recovered
        outcome.redelivered = await _redelivered(env)
        if fault.afterwards is not None:
            await fault.afterwards(env)
        await _examine_workers(env)
        outcome.complain(*env.problems)
        if isinstance(env, ClusterEnvironment) and env.evidence:
            outcome.show(env.evidence)
    return outcome


def _environment(
    fault: Fault, database: Database, folder: Path, cluster: NatsCluster | None, *, seed: int, short: bool
) -> Environment:
    if fault.servers == "nodes":
        return ClusterEnvironment(fault, database, folder, cluster, seed=seed, short=short)
    kinds = {"single": Environment, "pair": PairEnvironment, "pooler": PoolerEnvironment}
    return kinds[fault.servers](fault, database, folder, seed=seed, short=short)


async def _inject(env: Environment, fault: Fault) -> float | None:
    """Inject the fault; seconds from its end until all messages before it, and some after it, are stored."""
    await env.pause(0.3, 1.0)
    if not env.short:
        env.load.burst(env.rng.choice((0, 100, 600)))
    await fault.inject(env)
    healed = time.monotonic()
    enough = len(env.load.messages()) + _AFTERWARDS

    async def stored() -> bool:
        ids = env.load.messages()[:enough]
        return len(ids) == enough and await env.all_stored(ids)

    if not await env.until(STORED, stored):
        return None
    recovered = time.monotonic() - healed
    # Some more, after all of it.
    await env.pause(0.5, 1.0)
    return recovered


async def settle(env: Environment, fault: Fault) -> Outcome:
    """The outcome once everything is accounted for, or nothing moves any more."""
    last = env.load.eras[-1]
    await _answer(partial(last.read, env.company))
    outcome = await _quiet(env, fault)
    outcome.blame(
        *(
            Problem("lost", f"{one.publication.subject} sequence {one.sequence}: not in the stream")
            for one in last.unseen()
        )
    )
    if isinstance(env, ClusterEnvironment) and not outcome.ok:
        outcome = await _judged_by_the_nodes(env, fault, outcome)
    for era in env.load.eras:
        await era.close()
    return outcome


async def _judged_by_the_nodes(env: ClusterEnvironment, fault: Fault, outcome: Outcome) -> Outcome:
    """Whether a server is to blame: it shows in its own state, and what an operator does about it mends all."""
    if gone := await vanished(env, env.load.eras[-1].unseen()):
        if all("not in the stream" in one or "belongs to no event" in one for one in outcome.problems):
            outcome.excuse(gone)
        return outcome
    stale, stuck = await stale_replicas(env), await stuck_consumers(env)
    if not stale and not stuck:
        return outcome
    await repair(env, stale, stuck)
    mended = await _quiet(env, fault)
    if mended.ok:
        late = [one for one in env.problems if one.endswith(STORED)]
        env.problems = [one for one in env.problems if one not in late]
        mended.excuse([*stale.values(), *stuck.values(), *late, *outcome.problems])
        return mended
    return outcome


async def _quiet(env: Environment, fault: Fault) -> Outcome:
    seen: object = None
    moved = time.monotonic()
    while True:
        state = await _answer(partial(backlog, env.js, env.company))
        quiet = not state.lag and not (fault.drained and state.waiting)
        size: object = None
        if quiet:
            outcome, evidence = await _compared(env, fault)
            if outcome.ok:
                return outcome
            size = evidence.size()
        if seen != (seen := (state, size)):
            moved = time.monotonic()
        if time.monotonic() - moved > (_SETTLING if quiet else _PATIENCE):
            return (await _compared(env, fault))[0]
        await asyncio.sleep(_POLL)


async def _compared(env: Environment, fault: Fault) -> tuple[Outcome, Evidence]:
    """What was published is read anew each time: a publish that was not confirmed may come late."""
    claim = Claim(
        env.company,
        env.as_told(one for era in env.load.eras for one in era.published()),
        doubtful=env.doubtful,
        undelivered=env.undelivered,
        letters_allowed=fault.letters,
    )
    return await _answer(partial(compare, env.js, env.dsn, claim))


async def _redelivered(env: Environment) -> int:
    delivered = env.delivered_before + await _answer(partial(deliveries, env.js, env.company))
    return max(0, delivered - sum(len(era.published()) for era in env.load.eras))


async def _ready(worker: Worker) -> bool:
    status, _ = await asyncio.to_thread(worker.page, "/ready")
    return status == 200


async def _examine_workers(env: Environment) -> None:
    """Who is left works, and nobody met anything unexpected."""
    for worker in env.workers:
        if not worker.running:
            env.complain(f"a worker ended by itself, code {worker.process.poll()}: {worker.log}")
            continue

        await env.until("a worker is ready again", partial(_ready, worker), 20)
    env.problems += env.launcher.logged_errors()


async def _answer(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """What NATS answers; a cluster that has just healed may be without leaders for a moment, and silent.

    Raises `ServiceUnavailableError` or `TimeoutError` of nats-py if it stays so.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return await ask()
        except (nats.js.errors.ServiceUnavailableError, nats.errors.TimeoutError):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(_POLL)
