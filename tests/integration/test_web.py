"""The pages, as a real Faust worker without Kafka serves them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from testkit.ports import free_port

ROOT = Path(__file__).parents[2]
DEADLINE = 30.0

WORKER = """
    import logging
    import os

    import faust
    from faust.app.base import BootStrategy

    from streams import logs
    from streams.monitoring import http
    from streams.monitoring.metrics import Metrics

    logs.configure("info")


    class Boot(BootStrategy):
        enable_kafka = False


    class App(faust.App):
        BootStrategy = Boot

        def _new_web(self):
            return http.Web(self)


    app = App(
        "tiny",
        autodiscover=False,
        Worker=logs.Worker,
        web_port=int(os.environ["PORT"]),
        datadir=os.environ["DATA"],
    )
    reasons = {}


    async def readiness():
        if "broken" in reasons:
            raise RuntimeError("hunter2")
        return dict(reasons)


    @app.page("/set/{name}/{reason}")
    async def change(view, request, name, reason):
        reasons[name] = reason
        return view.text("set")


    @app.page("/broken")
    async def broken(view, request):
        raise RuntimeError("hunter2")


    @app.service
    class Greeting(faust.Service):
        async def on_start(self):
            logging.getLogger("streams.tiny").info("service started")


    enabled = os.environ.get("METRICS_ENABLED") != "false"
    metrics = Metrics(["KopiNusa"], version="1.2.3") if enabled else None
    http.register(app, metrics=metrics, readiness=readiness, version="1.2.3")
"""


class Running:
    """A worker in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    async def end(self) -> tuple[int | None, list[str], str]:
        """Its exit code, its lines on stdout and its stderr."""
        out, err = await asyncio.wait_for(self.process.communicate(), DEADLINE)
        return self.process.returncode, out.decode().splitlines(), err.decode()


async def start(folder: Path, port: int, **environment: str) -> Running:
    (folder / "tiny.py").write_text(textwrap.dedent(WORKER))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "faust", "-A", "tiny", "worker", "-l", "info",
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(folder))),
            "PORT": str(port),
            "DATA": str(folder),
            **environment,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    return Running(process, port)


@contextlib.asynccontextmanager
async def worker(folder: Path, **environment: str) -> AsyncIterator[tuple[Running, aiohttp.ClientSession]]:
    """A worker that answers, and a client for it."""
    running = await start(folder, free_port(), **environment)
    try:
        async with aiohttp.ClientSession(running.url) as client, asyncio.timeout(DEADLINE):
            while True:
                assert running.process.returncode is None, await running.end()
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with client.get("/health"):
                        break
                await asyncio.sleep(0.05)
            yield running, client
    finally:
        if running.process.returncode is None:
            running.process.kill()
        await running.process.wait()


@pytest.mark.rule("RUN-1")
async def test_health_answers_every_method(tmp_path: Path) -> None:
    async with worker(tmp_path) as (_, client):
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            async with client.request(method, "/health") as answer:
                assert answer.status == 200
                assert answer.headers["Content-Type"] == "application/json"
                assert await answer.text() == '{"status":"UP","version":"1.2.3"}\n'
        async with client.head("/health") as answer:
            assert answer.status == 200
            assert await answer.read() == b""


@pytest.mark.rule("RUN-2")
async def test_ready_tells_the_reasons_when_it_is_not(tmp_path: Path) -> None:
    async with worker(tmp_path) as (_, client):
        async with client.get("/ready") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "application/json"
            assert re.fullmatch(
                r'\{"status":"READY","details":\{"timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"\}\}\n',
                await answer.text(),
            )
        await client.get("/set/nats/disconnected")
        async with client.get("/ready") as answer:
            assert answer.status == 503
            body = await answer.json()
            assert body["status"] == "NOT_READY"
            assert body["details"].pop("timestamp")
            assert body["details"] == {"nats": "disconnected"}
        await client.get("/set/broken/yes")
        async with client.get("/ready") as answer:
            assert answer.status == 503
            assert (await answer.json())["details"]["readiness"] == "not known: RuntimeError"


@pytest.mark.rule("MET-1")
async def test_metrics_are_served_as_text_0_0_4(tmp_path: Path) -> None:
    async with worker(tmp_path) as (_, client):
        async with client.get("/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            page = await answer.text()
        assert 'dlq_tasks_dropped_total{company_id="KopiNusa"} 0\n' in page
        async with client.head("/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert await answer.read() == b""
        async with client.post("/metrics") as answer:
            assert answer.status == 405


async def test_a_page_that_fails_is_500_without_a_trace(tmp_path: Path) -> None:
    """In debug mode as well, in which aiohttp would send one."""
    async with worker(tmp_path, PYTHONASYNCIODEBUG="1", PYTHONDEVMODE="1") as (running, client):
        async with client.get("/broken") as answer:
            assert answer.status == 500
            assert answer.content_type == "text/plain"
            assert await answer.text() == "500: Internal Server Error"
        async with client.get("/health") as answer:
            assert answer.status == 200
        running.process.send_signal(signal.SIGTERM)
        _, out, _ = await running.end()
    [line] = [line for line in map(json.loads, out) if line["msg"] == "a page could not be made"]
    assert "RuntimeError" in line["stacktrace"]


@pytest.mark.rule("MET-1", "RUN-3")
async def test_everything_else_is_not_found_and_metrics_neither_when_switched_off(tmp_path: Path) -> None:
    async with worker(tmp_path, METRICS_ENABLED="false") as (_, client):
        for path in ("/", "/router/", "/table/", "/graph", "/nothing", "/metrics"):
            async with client.get(path) as answer:
                assert answer.status == 404
                assert answer.content_type == "text/plain"


async def test_stdout_has_nothing_but_json_lines_and_the_worker_stops_on_sigterm(tmp_path: Path) -> None:
    async with worker(tmp_path) as (running, _):
        running.process.send_signal(signal.SIGTERM)
        code, out, err = await running.end()
    assert code == 0
    assert err == ""
    lines = [json.loads(line) for line in out]
    assert "service started" in [line["msg"] for line in lines]
    assert all({"level", "ts", "msg"} <= line.keys() for line in lines)


async def test_a_taken_port_ends_the_worker_with_one_line_that_names_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = await start(tmp_path, port)
        code, out, err = await running.end()
    assert code == 1
    assert err == ""
    errors = [line["msg"] for line in map(json.loads, out) if line["level"] == "error"]
    assert errors == [f"SERVER_PORT: port {port} is taken at 0.0.0.0"]
