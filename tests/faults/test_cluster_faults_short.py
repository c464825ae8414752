"""The quick classes of faults of NATS nodes and of a primary with a standby: the short form of `make faults`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from events.subjects import REALTIME
from testkit.publisher import Confirmed
from testkit.servers import PostgresServer
from testkit.traffic import Traffic
from tests.faults.clusters import ClusterEnvironment
from tests.faults.compare import Outcome
from tests.faults.driver import database_for, run
from tests.faults.environment import postgres
from tests.faults.fault import Fault
from tests.faults.server_fault import stale_replicas, stuck_consumers, vanished
from tests.servers.nats_cluster import NatsCluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ON_NODES: Final = ("stream leader killed", "worker's node killed", "step-downs")
_ON_A_PAIR: Final = ("primary killed, standby promoted",)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[NatsCluster]:
    """Three nodes that the classes share: each leaves them healthy."""
    async with NatsCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A database server that the classes on nodes share."""
    with postgres() as server:
        yield server


async def test_no_node_reaches_another_one_past_the_proxies(cluster: NatsCluster) -> None:
    assert cluster.direct_routes() == []


async def test_only_what_the_nodes_say_is_evidence_against_them(
    cluster: NatsCluster, server: PostgresServer, tmp_path: Path
) -> None:
    idle = Fault(inject=asyncio.sleep, cold=True)
    async with ClusterEnvironment(idle, server, tmp_path, cluster, seed=1).opened() as env:
        assert await stale_replicas(env) == {}
        assert await stuck_consumers(env) == {}
        # Of one stream: the other one may have no event under this sequence.
        events = Traffic(env.company, 1, start=1_790_000_000).events(100)
        event, other = [one for one in events if one.event_type in REALTIME][:2]
        answer = await env.js.publish(event.subject, event.body, headers=event.headers)
        assert await vanished(env, [Confirmed(event, answer.seq, False)]) == []
        away, taken = await vanished(
            env, [Confirmed(event, answer.seq + 1000, False), Confirmed(other, answer.seq, False)]
        )
    assert "does not have it" in away
    assert "has another event there" in taken


@pytest.mark.parametrize("name", _ON_NODES)
async def test_nothing_is_lost_when_nodes_fail(
    cluster: NatsCluster, server: PostgresServer, tmp_path: Path, name: str
) -> None:
    """Another seed each time; the message names it, for `make faults ARGS="--class ... --seed ... --short"`."""
    seed = random.randrange(10**6)
    _proved(name, seed, await run(name, server, tmp_path, seed=seed, short=True, cluster=cluster))


@pytest.mark.parametrize("name", _ON_A_PAIR)
async def test_nothing_is_lost_when_a_standby_takes_over(tmp_path: Path, name: str) -> None:
    """As above."""
    seed = random.randrange(10**6)
    async with database_for(name) as database:
        _proved(name, seed, await run(name, database, tmp_path, seed=seed, short=True))


def _proved(name: str, seed: int, outcome: Outcome) -> None:
    assert outcome.ok, f"{name}, seed {seed}: {outcome}"
    assert outcome.recovered is not None
    assert outcome.published > 50
