"""The classes of faults of a primary with a standby, and of a pooler."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from tests.faults.clusters import PairEnvironment, PoolerEnvironment
from tests.faults.fault import Fault

_OURS: Final = "datname = current_database() AND application_name = 'daisi-wa-events-processor'"
# The worker has to leave a host that hangs; each host has a time limit of its own.
_LEFT: Final = 45.0


async def primary_killed(env: PairEnvironment) -> None:
    """SIGKILL of the primary, the synchronous standby is promoted; then the old one comes back as its standby."""
    async for _ in env.rounds(2):
        await asyncio.to_thread(env.pair.primary.kill)
        await env.pause(0.0, 1.0)
        await env.pair.promote()
        await env.pause(0.5, 3.0)
        await env.pair.rejoin(afresh=True)


async def switch_over(env: PairEnvironment) -> None:
    """The primary ends in its orderly way and becomes the standby of the other one; then back."""
    for _ in range(2):
        await asyncio.to_thread(env.pair.primary.stop)
        await env.pair.promote()
        await env.pair.rejoin(afresh=False)
        await env.pause(0.5, 2.0)


async def first_host_hung(env: PairEnvironment) -> None:
    """SIGSTOP of the primary, the first host of the DSN; the standby is promoted, and the worker has to find it."""
    env.pair.primary.pause()
    await env.pair.promote()
    await env.goes_on("the worker has left the host that hangs", _LEFT)
    # Never to run on beside the new primary.
    await asyncio.to_thread(env.pair.standby.kill)
    await env.pair.rejoin(afresh=True)


async def backends_ended(env: PairEnvironment) -> None:
    """pg_terminate_backend of all our connections, again and again."""
    loop = asyncio.get_running_loop()
    end = loop.time() + env.outage((4.0, 8.0), (2.0, 3.0))
    ended = 0
    async with env.admin() as database:
        while loop.time() < end:
            statement = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {_OURS}"
            ended += await database.fetchval(statement)
            await env.pause(0.05, 0.4)
    if ended < 2:
        env.complain(f"only {ended} backends were ended")


async def pooler_restarted(env: PoolerEnvironment) -> None:
    """The pooler ends, in its orderly way or not, and comes back."""
    async for _ in env.rounds(3):
        await env.restart_pooler()


_on_a_pair = partial(Fault, servers="pair", runs=5)

FAILOVER_FAULTS: Final = {
    "primary killed, standby promoted": _on_a_pair(inject=primary_killed),
    "switch-over and back": _on_a_pair(inject=switch_over),
    "switch-over and back, asynchronous": _on_a_pair(inject=switch_over, synchronous=False),
    "first host hung": _on_a_pair(inject=first_host_hung),
    "backends ended in a loop": _on_a_pair(inject=backends_ended),
    "pooler restarted": Fault(inject=pooler_restarted, servers="pooler", runs=5),
}
