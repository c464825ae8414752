"""After each class of faults the tables hold exactly what the events said: the short form of `make faults`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.servers import PostgresServer
from tests.faults.catalogue import of_kind
from tests.faults.driver import run
from tests.faults.environment import postgres


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A database server that the classes of one pytest worker share: each leaves it as it was."""
    with postgres() as server:
        yield server


@pytest.mark.parametrize("name", of_kind("single"))
async def test_nothing_is_lost_nothing_is_doubled_and_no_outage_makes_a_dead_letter(
    server: PostgresServer, tmp_path: Path, name: str
) -> None:
    """Another seed each time; the message names it, for `make faults ARGS="--class ... --seed ... --short"`."""
    if not server.running:  # a run that failed may have left it so
        server.start()
    seed = random.randrange(10**6)
    outcome = await run(name, server, tmp_path, seed=seed, short=True)
    assert outcome.ok, f"{name}, seed {seed}: {outcome}"
    assert outcome.recovered is not None
    # Events in the last moments of a fault are the point; a run without enough of them proves nothing.
    assert outcome.published > 50
