"""`python -m demo` as a newcomer runs it: it proves, it ends when asked, it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import nats
import psutil
import pytest

import demo
from demo.run import Run
from testkit.ports import preferred_port
from testkit.process_guard import family
from testkit.prometheus import RULES, Prometheus
from testkit.worker import Worker
from tests.programs import required

ROOT = Path(demo.__file__).parent.parent
DEADLINE = 90.0
PROCESSED = "message_event_service_events_processed_total"


@contextmanager
def running(**environment: str) -> Iterator[subprocess.Popen[str]]:
    """A demo, killed if the test leaves it running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "demo"],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """The line that matches; fails at the end of the output."""
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        seen.append(line)
        if re.search(pattern, line):
            return line
    raise AssertionError(f"never said {pattern!r}: {''.join(seen)}")


def await_end(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + DEADLINE
    while left := [process for process in processes if alive(process)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_counted_demo_accounts_for_every_event_and_ends_with_0() -> None:
    with running(EVENTS="300") as process:
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, output
    assert re.search(r"^total +300 ", output, re.MULTILINE), output
    assert "Every event and every history item has exactly one final place." in output
    for shown in ("status page http://", "/metrics", "/ready", "Prometheus  ", "postgresql://", "nats://"):
        assert shown in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_endless_demo_with_0_and_leaves_no_process(number: signal.Signals) -> None:
    with running() as process:
        read_until(process, r"published [1-9]")
        processes = family(process.pid)
        process.send_signal(number)
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, output
    assert "stopped" in output
    assert len(processes) >= 6  # itself, two guards, two servers, the worker
    await_end(processes)


def test_a_signal_during_the_start_ends_the_demo_with_0_and_leaves_no_process() -> None:
    with running() as process:
        read_until(process, "starting the worker")
        processes = family(process.pid)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, output
    await_end(processes)


def test_a_killed_demo_leaves_no_process() -> None:
    with running() as process:
        read_until(process, r"published [1-9]")
        processes = family(process.pid)
        process.kill()
        await_end(processes)
    assert len(processes) >= 6


def answer(address: str, resource: str) -> Any:
    with urllib.request.urlopen(f"{address}/api/v1/{resource}", timeout=DEADLINE) as found:
        return json.load(found)["data"]


def test_where_prometheus_is_installed_it_watches_the_demo_and_is_gone_with_it() -> None:
    required("prometheus")
    with running() as process:
        address = read_until(process, r"^  Prometheus  http://").split()[-1]
        read_until(process, r"published [1-9]")
        deadline = time.monotonic() + DEADLINE
        while not (stored := answer(address, f"query?query={PROCESSED}>0")["result"]):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        groups = answer(address, "rules")["groups"]
        processes = family(process.pid)
        programs = {one.name() for one in processes}
        process.kill()
        await_end(processes)
    assert "prometheus" in programs
    assert {series["metric"]["job"] for series in stored} == {"demo"}
    assert {group["file"] for group in groups} == set(map(str, RULES))


def test_without_prometheus_the_demo_says_so_and_goes_on(tmp_path: Path) -> None:
    with running(EVENTS="20", PATH=str(tmp_path)) as process:
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, output
    assert "Prometheus  not installed" in output


def test_a_port_that_somebody_has_is_left_to_him() -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        taken = somebody.getsockname()[1]
        with Prometheus(required("prometheus"), {}, interval="1s", port=preferred_port(taken)) as watcher:
            assert watcher.port != taken
            assert answer(watcher.url, "query?query=1")["result"][1] == "1"


def test_a_counted_demo_that_is_stopped_early_does_not_end_with_0() -> None:
    with running(EVENTS="1000000") as process:
        read_until(process, r"published [1-9]")
        process.terminate()
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1, output


@pytest.mark.parametrize("events", ["-1", "many"])
def test_a_wrong_number_of_events_is_told_in_one_line(events: str) -> None:
    with running(EVENTS=events) as process:
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert re.fullmatch(r"error: EVENTS: .* expected an integer from 0.*\n", output), output


def test_options_are_refused_with_a_word_on_the_environment() -> None:
    command = [sys.executable, "-m", "demo", "--events", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert done.returncode == 1
    assert "EVENTS=n" in done.stderr


def test_the_death_of_the_worker_ends_the_demo_and_names_its_log() -> None:
    with running() as process:
        read_until(process, r"published [1-9]")
        worker = next(one for one in family(process.pid) if "faust" in one.cmdline())
        worker.kill()
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    error = next(line for line in output.splitlines() if line.startswith("error: the worker has ended"))
    log = Path(error.rpartition("its log: ")[2].rstrip(")"))
    assert log.exists()
    log.unlink()


def test_own_servers_are_used_with_new_companies_and_left_alone(nats_url: str, database_dsn: str) -> None:
    for _ in range(2):
        with running(EVENTS="40", NATS_URL=nats_url, POSTGRES_DSN=database_dsn) as process:
            output, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, output
    assert len(asyncio.run(schemas(database_dsn))) == 4


async def schemas(dsn: str) -> list[str]:
    connection = await asyncpg.connect(dsn)
    try:
        found = await connection.fetch("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'daisi\\_%'")
    finally:
        await connection.close()
    return [name for (name,) in found]


@pytest.mark.parametrize("variable", ["NATS_URL", "POSTGRES_DSN"])
def test_a_server_that_cannot_be_reached_is_told_in_one_line_without_its_password(variable: str) -> None:
    address = {
        "NATS_URL": "nats://u:geheim@127.0.0.1:1",
        "POSTGRES_DSN": "postgresql://u:geheim@127.0.0.1:1/x",
    }
    with running(EVENTS="1", **{variable: address[variable]}) as process:
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert len(output.strip().splitlines()) == 1, output
    assert output.strip().startswith("error: no ")
    assert "geheim" not in output


async def test_a_lost_row_is_found_and_named(
    nats_url: str, database_dsn: str, company: str, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    worker = Worker([company], nats_url=nats_url, postgres_dsn=database_dsn, log=log)
    client = await nats.connect(nats_url)
    database = await asyncpg.connect(database_dsn)
    try:
        worker.start()
        await asyncio.to_thread(worker.wait_ready)
        run = Run(client, database_dsn, [company], seed=3)
        report = await run.prove(60)
        assert report.ok, report.text()
        lost = await database.fetchval(
            f'DELETE FROM "daisi_{company.lower()}".messages WHERE id ='
            f' (SELECT min(id) FROM "daisi_{company.lower()}".messages'
            " WHERE flow = 'OUT' AND last_metadata ->> 'message_subject' = $1) RETURNING message_id",
            f"v1.messages.upsert.{company}",
        )
        report, _ = await run.account()
        assert not report.ok
        assert any(f"v1.messages.upsert.{company} sequence " in problem.text for problem in report.problems)
        assert lost not in report.text()
        await run.close()
    finally:
        await database.close()
        await client.close()
        worker.kill()
