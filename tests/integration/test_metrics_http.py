"""/metrics over HTTP: compressed for those who ask, and a client that reads slowly holds up nobody."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import faust
import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import BaseTestServer, TestServer

from streams.monitoring import exposition, http
from streams.monitoring.metrics import Metrics

PLAIN = {"Accept-Encoding": "identity", "Connection": "close"}
# As large as several socket buffers.
LARGE = tuple(f"Company{number:04d}" for number in range(4000))


class App(faust.App):
    """With the worker's own web server."""

    def _new_web(self) -> http.Web:
        return http.Web(self)


async def ready() -> dict[str, str]:
    return {}


@asynccontextmanager
async def served(*companies: str) -> AsyncIterator[BaseTestServer]:
    app = App("tiny", autodiscover=False)
    http.register(app, metrics=Metrics(companies, version="1"), readiness=ready, version="1")
    async with TestServer(await app.web.wsgi()) as server:
        yield server


@asynccontextmanager
async def client(server: BaseTestServer) -> AsyncIterator[ClientSession]:
    """One that shows what comes over the wire."""
    async with ClientSession(server.make_url("/"), auto_decompress=False) as session:
        yield session


@pytest.mark.rule("MET-1")
async def test_a_client_that_takes_gzip_gets_the_same_page_compressed() -> None:
    async with served("KopiNusa") as server, client(server) as session:
        async with session.get("/metrics", headers={"Accept-Encoding": "identity"}) as answer:
            plain = await answer.read()
            assert "Content-Encoding" not in answer.headers
            assert answer.content_length == len(plain)
        async with session.get("/metrics", headers={"Accept-Encoding": "gzip"}) as answer:
            packed = await answer.read()
            assert answer.headers["Content-Encoding"] == "gzip"
            assert answer.content_length == len(packed)
        for headers in ({"Accept-Encoding": "gzip"}, {"Accept-Encoding": "identity"}):
            async with session.head("/metrics", headers=headers) as answer:
                assert await answer.read() == b""
                assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
                assert answer.headers["Vary"] == "Accept-Encoding"
    names = {line.split(b" ")[0] for line in plain.splitlines()}
    assert {line.split(b" ")[0] for line in gzip.decompress(packed).splitlines()} == names
    assert len(packed) < len(plain) / 10


async def test_a_client_that_does_not_read_holds_up_no_other_and_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exposition, "SEND_SECONDS", 2.0)
    async with served(*LARGE) as server, client(server) as session:
        with socket.create_connection(("127.0.0.1", server.port or 0)) as idle:
            idle.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(idle, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            for _ in range(2):
                async with session.get("/metrics", headers=PLAIN) as answer:
                    assert answer.status == 200
                    assert len(await answer.read()) > 10_000_000
            assert server.runner is not None
            assert server.runner.server is not None
            # The client has not closed its connection: the server has.
            async with asyncio.timeout(60):
                while server.runner.server.connections:
                    await asyncio.sleep(0.05)
