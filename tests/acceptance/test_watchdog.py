"""A worker that looks alive and does nothing ends by itself, and the next one does its work (RUN-2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.worker import START, Worker
from tests import builders
from tests.acceptance.company_probe import CompanyProbe
from tests.acceptance.conftest import Launch

# The real worker, but that its routing never comes to an end.
_STUCK = """
import asyncio, streams.app
from agents.routing import Routing
from faust.cli.faust import cli

async def handle(self, batch, events):
    await asyncio.Event().wait()

Routing._handle = handle
cli()
"""


@pytest.fixture
def stuck(company: str, nats_url: str, postgres_dsn: str, tmp_path: Path) -> Iterator[Worker]:
    """A stuck worker of the test's company, with a patience of seconds."""
    worker = Worker(
        [company],
        nats_url=nats_url,
        postgres_dsn=postgres_dsn,
        log=tmp_path / "stuck.log",
        code=_STUCK,
        STALL_TIMEOUT="6s",
        STOP_TIMEOUT="2s",
    )
    worker.start()
    yield worker
    worker.kill()


@pytest.mark.rule("RUN-10")
async def test_a_stuck_worker_says_so_and_ends_with_1_and_the_next_one_stores_its_events(
    stuck: Worker, launch: Launch, probe: CompanyProbe
) -> None:
    stuck.wait_ready()
    await probe.publish("v1.chats.upsert", builders.chat())
    assert "1 deliveries under way" in stuck.wait_page("/ready", 503)
    assert stuck.process.wait(START) == 1
    told = [line["msg"] for line in stuck.lines() if "giving up" in line["msg"]]
    assert len(told) == 1
    assert f"realtime {probe.company}: 1 deliveries under way, and no progress" in told[0]
    launch(probe.company)
    await probe.holds("chats", 1)
