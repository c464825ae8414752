"""The worker's start: what is missing is waited for and named, what is wrong ends it with one line."""

from __future__ import annotations

import json
import re
import socket

import asyncpg
import pytest

from streams.version import VERSION
from testkit.servers import NatsServer, PostgresServer, free_port
from testkit.worker import START, Worker
from tests import builders
from tests.acceptance.company_probe import CompanyProbe, comes_true
from tests.acceptance.conftest import Launch


def _wait_reason(worker: Worker, part: str) -> str:
    """The reason, once /ready names this part."""
    body = worker.wait_page("/ready", 503)
    answer = json.loads(body)
    assert answer["status"] == "NOT_READY"
    assert part in answer["details"], answer
    return str(answer["details"][part])


def _end(worker: Worker) -> str:
    """The one line that tells why the worker ended, with code 1."""
    assert worker.process.wait(START) == 1
    severe = [line["msg"] for line in worker.lines() if line["level"] not in ("debug", "info", "warn")]
    printed = worker.errors.read_text(encoding="utf-8").splitlines()
    [line] = severe + printed
    return str(line)


@pytest.mark.rule("RUN-4", "RUN-1")
async def test_health_answers_while_servers_are_missing_and_ready_names_them_until_they_come(
    launch: Launch, company: str
) -> None:
    with NatsServer() as nats, PostgresServer() as postgres:
        nats.stop()
        postgres.stop()
        worker = launch(company, ready=False, nats_url=nats.url, postgres_dsn=postgres.dsn)
        health = json.loads(worker.wait_page("/health", 200))
        assert health == {"status": "UP", "version": VERSION}
        assert _wait_reason(worker, "nats")
        assert _wait_reason(worker, "postgres")

        postgres.start()
        await comes_true(lambda: "postgres" not in worker.ready()["details"])
        assert _wait_reason(worker, "nats")

        nats.start()
        worker.wait_ready()
        details = worker.ready()["details"]
        assert list(details) == ["timestamp"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", details["timestamp"])


@pytest.mark.parametrize("absent", [("nats", "postgres"), ("nats",), ("postgres",)], ids=",".join)
def test_a_worker_that_waits_for_its_servers_can_be_stopped(
    launch: Launch, company: str, nats_url: str, postgres_dsn: str, absent: tuple[str, ...]
) -> None:
    nowhere = free_port()
    worker = launch(
        company,
        ready=False,
        nats_url=f"nats://127.0.0.1:{nowhere}" if "nats" in absent else nats_url,
        postgres_dsn=f"postgres://x@127.0.0.1:{nowhere}/x" if "postgres" in absent else postgres_dsn,
    )
    worker.wait_page("/health", 200)
    for part in absent:
        assert _wait_reason(worker, part)
    assert worker.stop() == 0


@pytest.mark.rule("RUN-2")
async def test_ready_names_a_server_that_is_lost_later(launch: Launch, company: str) -> None:
    with NatsServer() as nats, PostgresServer() as postgres:
        worker = launch(company, nats_url=nats.url, postgres_dsn=postgres.dsn)
        nats.kill()
        worker.wait_page("/ready", 503)
        assert "nats" in worker.ready()["details"]
        nats.start()
        worker.wait_ready()
        postgres.kill()
        worker.wait_page("/ready", 503)
        assert "postgres" in worker.ready()["details"]
        postgres.start()
        worker.wait_ready()


@pytest.mark.rule("SET-1")
def test_wrong_settings_end_the_start_with_one_message_that_names_every_variable(launch: Launch) -> None:
    worker = launch(
        "a.b",
        ready=False,
        nats_url="",
        postgres_dsn="",
        NATS_REALTIME_NAKBASEDELAY="5",
        NATS_DLQWORKERS="0",
        SERVER_PORT="70000",
    )
    line = _end(worker)
    for name in (
        "POSTGRES_DSN",
        "COMPANY_ID",
        "NATS_REALTIME_NAKBASEDELAY",
        "NATS_DLQWORKERS",
        "SERVER_PORT",
    ):
        assert name in line


@pytest.mark.rule("SET-3")
def test_a_company_must_be_named(launch: Launch) -> None:
    assert "COMPANY_ID" in _end(launch(ready=False))


@pytest.mark.rule("RUN-5")
def test_a_taken_port_ends_the_start_with_one_line_that_names_server_port(
    launch: Launch, company: str
) -> None:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        port = holder.getsockname()[1]
        line = _end(launch(company, ready=False, SERVER_PORT=str(port)))
    assert line.startswith("SERVER_PORT")
    assert str(port) in line


@pytest.mark.rule("RUN-5")
def test_an_unknown_database_ends_the_start(launch: Launch, company: str, postgres_dsn: str) -> None:
    line = _end(launch(company, ready=False, postgres_dsn=postgres_dsn.replace("/postgres", "/nowhere")))
    assert "POSTGRES_DSN" in line
    assert "nowhere" in line


@pytest.mark.rule("RUN-5")
async def test_a_wrong_password_ends_the_start_and_is_not_shown(launch: Launch, company: str) -> None:
    with PostgresServer() as postgres:
        connection = await asyncpg.connect(postgres.dsn)
        hba = await connection.fetchval("SHOW hba_file")
        await connection.execute("CREATE ROLE writer LOGIN PASSWORD 'right'")
        await connection.execute(
            f"COPY (SELECT 'host all all all scram-sha-256') TO '{hba}'"  # as the server's own account
        )
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()
        dsn = f"postgres://writer:mistaken@127.0.0.1:{postgres.port}/postgres"
        line = _end(launch(company, ready=False, postgres_dsn=dsn))
    assert "POSTGRES_DSN" in line
    assert "mistaken" not in line


@pytest.mark.rule("SUB-5")
async def test_two_spellings_of_a_company_do_not_share_a_schema(launch: Launch, probe: CompanyProbe) -> None:
    other = probe.company.swapcase()
    launch(probe.company).stop()
    await probe.execute(f"INSERT INTO {{schema}}.chats (chat_id, company_id) VALUES ('c', '{probe.company}')")
    line = _end(launch(other, ready=False))
    assert probe.company in line
    assert other in line


def test_metrics_can_be_switched_off(launch: Launch, company: str) -> None:
    worker = launch(company, METRICS_ENABLED="false")
    assert worker.page("/metrics")[0] == 404
    assert worker.page("/health")[0] == 200


@pytest.mark.rule("RUN-3")
def test_every_other_page_is_not_found(launch: Launch, company: str) -> None:
    worker = launch(company)
    assert worker.page("/graph")[0] == worker.page("/ready/x")[0] == worker.page("/metrics/x")[0] == 404


@pytest.mark.rule("RUN-16")
async def test_every_line_on_stdout_is_json_and_one_says_that_consumers_are_running(
    launch: Launch, company: str
) -> None:
    worker = launch(company)
    await comes_true(lambda: any(line["msg"] == "consumers are running" for line in worker.lines()))
    lines = worker.lines()
    assert len([line for line in lines if line["msg"] == "consumers are running"]) == 1
    assert all({"level", "ts", "msg"} <= set(line) for line in lines)
    assert worker.stop() == 0
    assert worker.lines()
    assert worker.log.read_text(encoding="utf-8").endswith("}\n")
    assert worker.errors.read_text(encoding="utf-8") == ""


@pytest.mark.rule("TAB-5")
async def test_without_auto_migrate_missing_tables_end_the_start_and_are_named(
    launch: Launch, company: str
) -> None:
    line = _end(launch(company, ready=False, DATABASE_POSTGRESAUTOMIGRATE="false"))
    for table in ("chats", "agents", "contacts", "onboarding_log", "exhausted_events"):
        assert table in line


@pytest.mark.rule("RUN-17")
async def test_a_stored_event_leaves_no_line_in_the_log(launch: Launch, probe: CompanyProbe) -> None:
    worker = launch(probe.company)
    before = len(worker.lines())
    await probe.publish_many(
        "v1.chats.upsert", [builders.chat(chat_id=f"c{number}") for number in range(200)]
    )
    await probe.settled()
    assert not [
        line for line in worker.lines()[before:] if "stream_sequence" in line or probe.company in str(line)
    ]
