"""The quick classes of faults of NATS nodes and of a primary with a standby: the short form of `make faults`."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from tests.faults.clusters import ClusterScene
from tests.faults.compare import Outcome
from tests.faults.driver import database_for, run
from tests.faults.nats_cluster import NatsCluster
from tests.faults.scene import Plan, postgres
from tests.faults.server_fault import stale_replicas, stuck_consumers

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ON_NODES: Final = ("stream leader killed", "worker's node killed", "step-downs")
_ON_A_PAIR: Final = ("primary killed, standby promoted",)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[NatsCluster]:
    """Three nodes that the classes share: each leaves them healthy."""
    async with NatsCluster() as cluster:
        yield cluster


async def test_no_node_reaches_another_one_past_the_proxies_and_healthy_nodes_are_no_evidence(
    cluster: NatsCluster, tmp_path: Path
) -> None:
    with postgres() as server:
        async with ClusterScene(Plan(seed=1), server, tmp_path, cluster) as scene:
            assert cluster.direct_routes() == []
            assert await stale_replicas(scene) == {}
            assert await stuck_consumers(scene) == {}


@pytest.mark.parametrize("name", _ON_NODES)
async def test_nothing_is_lost_when_nodes_fail(cluster: NatsCluster, tmp_path: Path, name: str) -> None:
    """Another seed each time; the message names it, for `make faults ARGS="--class ... --seed ... --short"`."""
    _proved(*await _run(name, tmp_path, cluster))


@pytest.mark.parametrize("name", _ON_A_PAIR)
async def test_nothing_is_lost_when_a_standby_takes_over(tmp_path: Path, name: str) -> None:
    """As above."""
    _proved(*await _run(name, tmp_path))


async def _run(name: str, folder: Path, cluster: NatsCluster | None = None) -> tuple[Outcome, str]:
    seed = random.randrange(10**6)
    async with database_for(name) as database:
        outcome = await run(name, database, folder, seed=seed, short=True, cluster=cluster)
    return outcome, f"{name}, seed {seed}: {outcome.record()}"


def _proved(outcome: Outcome, told: str) -> None:
    assert outcome.ok, told
    assert outcome.recovered is not None
    assert outcome.published > 50
