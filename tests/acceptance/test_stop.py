"""A worker that is told to stop has ended in its time, whatever hangs, and nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest

from testkit.servers import NatsServer, PostgresServer
from testkit.worker import Worker
from tests import builders
from tests.acceptance.company_probe import CompanyProbe, comes_to, comes_true
from tests.acceptance.conftest import Launch, visited

_STOP = 6.0
_QUICK = {"STOP_TIMEOUT": f"{_STOP:g}s", "NATS_REALTIME_ACKWAIT": "2s"}
# The end of a process takes its time on a busy machine; what hangs would take minutes.
_SLACK = 10.0
_COUNT = 20
_CHATS = [builders.chat(chat_id=f"C{number}", jid=f"62811{number:07}@c.us") for number in range(_COUNT)]


@pytest.fixture
async def servers(company: str) -> AsyncIterator[tuple[CompanyProbe, NatsServer, PostgresServer]]:
    """The test's company on servers of its own."""
    with NatsServer() as broker, PostgresServer() as postgres:
        client = await nats.connect(broker.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
        async with visited(company, client, postgres.dsn) as probe:
            yield probe, broker, postgres
        await client.close()


async def _stop(worker: Worker, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
    """Exit code, and seconds until the end."""
    began = time.monotonic()
    code = await asyncio.to_thread(worker.stop, number)
    return code, time.monotonic() - began


async def _held(probe: CompanyProbe) -> None:
    async def held() -> int | None:
        return (await probe.consumer()).num_ack_pending

    await comes_to(_COUNT, held)


async def _all_stored(company: str, broker: NatsServer, postgres: PostgresServer) -> None:
    client = await nats.connect(broker.url)
    async with visited(company, client, postgres.dsn) as probe:
        await probe.holds("chats", _COUNT)
        await probe.settled()
        assert await probe.letters() == 0
    await client.close()


@pytest.mark.rule("RUN-14")
@pytest.mark.parametrize("frozen", ["postgres", "nats", "both"])
async def test_stop_ends_in_its_time_when_a_server_is_frozen_and_loses_nothing(
    launch: Launch, servers: tuple[CompanyProbe, NatsServer, PostgresServer], frozen: str
) -> None:
    probe, broker, postgres = servers
    worker = launch(probe.company, nats_url=broker.url, postgres_dsn=postgres.dsn, also=_QUICK)
    if frozen != "nats":
        postgres.pause()
    else:
        await probe.execute("ALTER TABLE {schema}.chats RENAME TO chats_away")
    await probe.publish_many("v1.chats.upsert", _CHATS)
    await _held(probe)
    if frozen != "postgres":
        broker.pause()

    code, seconds = await _stop(worker)
    assert seconds < _STOP + _SLACK
    assert code in ((0,) if frozen == "postgres" else (0, 75))

    for server in (broker, postgres):
        server.resume()
    if frozen == "nats":
        await probe.execute("ALTER TABLE {schema}.chats_away RENAME TO chats")
    launch(probe.company, nats_url=broker.url, postgres_dsn=postgres.dsn, also=_QUICK)
    await _all_stored(probe.company, broker, postgres)


@pytest.mark.rule("RUN-15")
async def test_second_signal_ends_a_worker_at_once_and_loses_nothing(
    launch: Launch, servers: tuple[CompanyProbe, NatsServer, PostgresServer]
) -> None:
    probe, broker, postgres = servers
    patient = {**_QUICK, "STOP_TIMEOUT": "10m"}
    worker = launch(probe.company, nats_url=broker.url, postgres_dsn=postgres.dsn, also=patient)
    postgres.pause()
    await probe.publish_many("v1.chats.upsert", _CHATS)
    await _held(probe)
    worker.process.send_signal(signal.SIGTERM)
    await comes_true(lambda: worker.ready()["details"].get("worker") == "stopping")

    code, seconds = await _stop(worker, signal.SIGINT)
    assert code == 128 + signal.SIGINT
    assert seconds < _SLACK

    postgres.resume()
    launch(probe.company, nats_url=broker.url, postgres_dsn=postgres.dsn, also=_QUICK)
    await _all_stored(probe.company, broker, postgres)


async def test_sources_of_many_companies_are_drained_at_once(launch: Launch, company: str) -> None:
    # An idle source ends with its last pull request, after up to a second: one by one these would take 15.
    worker = launch(*(f"{company}{number}" for number in range(10)))
    code, seconds = await _stop(worker)
    assert code == 0
    assert seconds < 8


async def test_client_that_never_reads_its_answer_does_not_hold_a_stop_up(
    launch: Launch, company: str
) -> None:
    worker = launch(company, STOP_TIMEOUT="20s")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", worker.port))
        # More answers than the sockets take.
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 500)
        await comes_true(lambda: worker.page("/health")[0] == 200)
        code, seconds = await _stop(worker)
    assert code == 0
    assert seconds < 10


_PATCHED = """
import asyncio, time, streams.app
from agents.routing import Routing
from faust.cli.faust import cli
from streams.monitoring.http import Web
from tables.connection.pool import Database

async def blocks(*_):
    time.sleep(600)

async def hangs(*_):
    await asyncio.Event().wait()

{patch}
cli()
"""


def patched(patch: str, company: str, nats_url: str, dsn: str, log: Path) -> Worker:
    """The real worker, with one of its parts replaced."""
    code = _PATCHED.format(patch=patch)
    return Worker([company], nats_url=nats_url, postgres_dsn=dsn, log=log, code=code, STOP_TIMEOUT="5s")


@pytest.mark.rule("RUN-14")
@pytest.mark.parametrize(
    ("patch", "named"),
    [
        ("Database.close = hangs", "the connections to PostgreSQL did not stop within"),
        ("Routing._handle = blocks", "not stopped within 5 s (STOP_TIMEOUT); left: the event loop"),
    ],
    ids=["pool", "event loop"],
)
async def test_part_that_does_not_stop_is_named_and_the_process_ends_with_75(
    probe: CompanyProbe, nats_url: str, postgres_dsn: str, tmp_path: Path, patch: str, named: str
) -> None:
    worker = patched(patch, probe.company, nats_url, postgres_dsn, tmp_path / "worker.log")
    worker.start()
    try:
        worker.wait_ready()
        if "Routing" in patch:
            await probe.publish("v1.chats.upsert", builders.chat())
            await comes_true(lambda: worker.page("/health", timeout=0.5)[0] == 0)
        code, seconds = await _stop(worker)
    finally:
        worker.kill()
    assert code == 75
    assert seconds < 5 + _SLACK
    errors = [line["msg"] for line in worker.lines() if line["level"] == "error"]
    assert len(errors) == 1
    assert named in errors[0]
