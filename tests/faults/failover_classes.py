"""The classes of faults of a primary with a standby, and of a pooler."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tests.faults.clusters import PairScene, PoolerScene
from tests.faults.fault import Fault, rounds

_OURS: Final = "datname = current_database() AND application_name = 'daisi-wa-events-processor'"
# The worker has to leave a host that hangs; each host has a time limit of its own.
_LEFT: Final = 45.0
_MORE: Final = 20


async def primary_killed(scene: PairScene) -> None:
    """SIGKILL of the primary, the synchronous standby is promoted; then the old one comes back as its standby."""
    async for _ in rounds(scene, 2):
        await asyncio.to_thread(scene.pair.primary.kill)
        await scene.pause(0.0, 1.0)
        await scene.pair.promote()
        await scene.pause(0.5, 3.0)
        await scene.pair.rejoin(afresh=True)


async def switch_over(scene: PairScene) -> None:
    """The primary ends in its orderly way and becomes the standby of the other one; then back."""
    for _ in range(2):
        await asyncio.to_thread(scene.pair.primary.stop)
        await scene.pair.promote()
        await scene.pair.rejoin(afresh=False)
        await scene.pause(0.5, 2.0)


async def first_host_hung(scene: PairScene) -> None:
    """SIGSTOP of the primary, the first host of the DSN; the standby is promoted, and the worker has to find it."""
    scene.pair.primary.pause()
    await scene.pair.promote()
    known = len(scene.load.messages())

    async def stored() -> bool:
        ids = scene.load.messages()[known : known + _MORE]
        return len(ids) == _MORE and await scene.all_stored(ids)

    await scene.until("the worker has left the host that hangs", stored, _LEFT)
    # Never to run on beside the new primary.
    await asyncio.to_thread(scene.pair.standby.kill)
    await scene.pair.rejoin(afresh=True)


async def backends_ended(scene: PairScene) -> None:
    """pg_terminate_backend of all our connections, again and again."""
    loop = asyncio.get_running_loop()
    end = loop.time() + scene.outage((4.0, 8.0), (2.0, 3.0))
    ended = 0
    async with scene.admin() as database:
        while loop.time() < end:
            statement = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {_OURS}"
            ended += await database.fetchval(statement)
            await scene.pause(0.05, 0.4)
    if ended < 2:
        scene.complain(f"only {ended} backends were ended")


async def pooler_restarted(scene: PoolerScene) -> None:
    """The pooler ends, in its orderly way or not, and comes back."""
    async for _ in rounds(scene, 3):
        await scene.restart_pooler()


FAILOVER_FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        "primary killed, standby promoted": Fault(strike=primary_killed, servers="pair", runs=5),
        "switch-over and back": Fault(strike=switch_over, servers="pair", runs=5),
        "switch-over and back, asynchronous": Fault(
            strike=switch_over, servers="pair", runs=5, synchronous=False
        ),
        "first host hung": Fault(strike=first_host_hung, servers="pair", runs=5),
        "backends ended in a loop": Fault(strike=backends_ended, servers="pair", runs=5),
        "pooler restarted": Fault(strike=pooler_restarted, servers="pooler", runs=5),
    }
)
