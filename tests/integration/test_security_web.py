"""The worker's web server listens where it is told to, and answers what it has to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from testkit.servers import free_port
from testkit.worker import START, Worker

ELSEWHERE = "127.0.0.2"
READ_ONLY = ("/", "/status.json", "/ready", "/metrics")
METHODS = ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "SEARCH", "PROPFIND")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    """A worker without servers: its pages are there all the same."""
    made = Worker(
        ["KopiNusa"],
        nats_url=f"nats://127.0.0.1:{free_port()}",
        postgres_dsn=f"postgres://postgres@127.0.0.1:{free_port()}/wa",
        log=tmp_path / "worker.log",
        SERVER_BIND=ELSEWHERE,
    )
    made.start()
    yield made
    made.kill()


async def _session(worker: Worker) -> aiohttp.ClientSession:
    """A client for the worker's pages, once they are there."""
    session = aiohttp.ClientSession(f"http://{ELSEWHERE}:{worker.port}")
    async with asyncio.timeout(60):
        while True:
            assert worker.running, worker.written()
            try:
                async with session.get("/health"):
                    return session
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


async def test_pages_are_where_they_were_bound_to_and_read_only(worker: Worker) -> None:
    async with await _session(worker) as client:
        assert worker.page("/health") == (0, ""), "it listens on another address as well"
        for path in READ_ONLY:
            for method in ("GET", "HEAD"):
                async with client.request(method, path) as answer:
                    assert answer.status in (200, 503), (method, path)
            for method in METHODS:
                async with client.request(method, path) as answer:
                    assert answer.status in (400, 405), (method, path)
                    assert "Traceback" not in await answer.text()
        for path in ("/nothing", "/../etc/passwd", "/%00", "/status.json/x", "/metrics?name[]=x%00"):
            async with client.get(path) as answer:
                assert answer.status in (200, 404), path
                assert "Traceback" not in await answer.text()


async def test_an_address_that_is_not_there_ends_the_start_and_is_named(tmp_path: Path) -> None:
    worker = Worker(
        ["KopiNusa"],
        nats_url=f"nats://127.0.0.1:{free_port()}",
        postgres_dsn=f"postgres://postgres@127.0.0.1:{free_port()}/wa",
        log=tmp_path / "worker.log",
        SERVER_BIND="192.0.2.1",
    )
    worker.start()
    try:
        assert await asyncio.to_thread(worker.process.wait, START) == 1
    finally:
        worker.kill()
    errors = [line["msg"] for line in worker.lines() if line["level"] == "error"]
    assert "SERVER_BIND: address 192.0.2.1 is not there" in errors
    assert "Traceback" not in json.dumps(worker.lines())
