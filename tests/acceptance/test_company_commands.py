"""The commands for companies, and the others with `COMPANY_ID=*`, run as an operator runs them beside workers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from subprocess import CompletedProcess
from typing import Any

import asyncpg
import nats
import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from events.subjects import Tenant
from testkit.servers import NatsServer
from testkit.worker import Worker, environment
from tests import builders
from tests.acceptance.company_probe import (
    DLQ_STREAM,
    HISTORY_STREAM,
    REALTIME_STREAM,
    CompanyProbe,
    comes_to,
    comes_true,
)
from tests.acceptance.conftest import Launch, visited
from tests.programs import command

Run = Callable[..., CompletedProcess[str]]
Start = Callable[..., Worker]


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    """A NATS of this module's own: a fleet serves whatever its streams hold."""
    with NatsServer() as server:
        yield server


@pytest.fixture
async def client(server: NatsServer) -> AsyncIterator[Client]:
    """A connection to it; its streams are gone afterwards."""
    client = await nats.connect(server.url)
    yield client
    for name in (REALTIME_STREAM, HISTORY_STREAM, DLQ_STREAM):
        try:
            await client.jetstream().delete_stream(name)
        except NotFoundError:
            continue
    await client.close()


@pytest.fixture
async def fleet(company: str, client: Client, database_dsn: str) -> AsyncIterator[CompanyProbe]:
    """A company that nobody knows yet, in a database of its own."""
    async with visited(company, client, database_dsn) as probe:
        yield probe


@pytest.fixture
def run(server: NatsServer, database_dsn: str) -> Run:
    """Runs a command with the settings of a fleet."""

    def run(*arguments: str, companies: str = "*", **settings: str) -> CompletedProcess[str]:
        env = environment([companies], server.url, database_dsn, LOG_LEVEL="error", **settings)
        return command(*arguments, env=env)

    return run


@pytest.fixture
def start(client: Client, launch: Launch, server: NatsServer, database_dsn: str) -> Start:
    """Starts workers on these servers; they begin with no streams.

    `client` is asked for first: it deletes the streams at the end, when no worker is left to make them again.
    """

    def start(company: str, **settings: str) -> Worker:
        return launch(company, nats_url=server.url, postgres_dsn=database_dsn, also=settings)

    return start


def _listed(run: Run, *arguments: str, **settings: str) -> dict[str, dict[str, Any]]:
    done = command_json(run, *arguments, **settings)
    return {each["company"]: each for each in done}


def command_json(run: Run, *arguments: str, **settings: str) -> list[dict[str, Any]]:
    done = run("--json", "companies", *arguments, **settings)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _refused(done: CompletedProcess[str]) -> str:
    """The one line on stderr of a command that did nothing."""
    assert done.returncode == 1, done.stdout
    [line] = done.stderr.splitlines()
    return line


async def _has_schema(probe: CompanyProbe) -> bool:
    return bool(await probe.value("SELECT to_regnamespace($1)", probe.schema))


@pytest.mark.timeout(240)
@pytest.mark.rule("FLT-9", "FLT-11")
async def test_a_forgotten_company_is_gone_and_its_next_event_begins_anew(
    run: Run, start: Start, fleet: CompanyProbe
) -> None:
    worker = start("*")
    await fleet.publish("v1.chats.upsert", builders.chat())
    await comes_to(True, lambda: _has_schema(fleet))
    await comes_to(1, lambda: _count(fleet, "chats"))
    await comes_to(
        [("fleet", True, {"least": 0, "most": 0})],
        lambda: _services(run),
    )
    [seen] = command_json(run, fleet.company[:6] + "*")
    assert (seen["schema"], seen["exhausted"]) == (fleet.tenant.schema, 0)
    assert seen["bytes"] > 100_000

    shown = run("companies-forget", fleet.company, "--drop-data")
    assert fleet.tenant.schema in shown.stdout
    assert "rows in all" in shown.stdout
    assert "--yes" in _refused(shown)
    assert "no consumer of its own" in _refused(run("companies-forget", fleet.company, "--yes"))
    assert await _count(fleet, "chats") == 1

    dropped = run("companies-forget", fleet.company, "--drop-data", "--yes")
    assert dropped.returncode == 0, dropped.stderr
    assert "makes its schema anew" in dropped.stderr
    assert not await _has_schema(fleet)
    await comes_true(lambda: "its schema was dropped" in worker.log.read_text())
    assert not await _has_schema(fleet)

    await fleet.publish("v1.chats.upsert", builders.chat())
    await comes_to(1, lambda: _count(fleet, "chats"))

    # With an event in hand before the worker knows.
    assert run("companies-forget", fleet.company, "--drop-data", "--yes").returncode == 0
    await fleet.publish("v1.chats.upsert", builders.chat())
    await comes_to(1, lambda: _count(fleet, "chats"))
    assert worker.running


async def _count(probe: CompanyProbe, table: str) -> int:
    try:
        return await probe.count(table)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return 0


async def _services(run: Run) -> list[tuple[str, bool, Any]]:
    return [(each["served_by"], each["is_served"], each["lag"]) for each in command_json(run)]


@pytest.mark.timeout(240)
@pytest.mark.rule("FLT-6", "FLT-11")
async def test_companies_that_wait_are_listed_first_and_served_once_they_are_provisioned(
    run: Run, start: Start, fleet: CompanyProbe
) -> None:
    start("*", COMPANY_PROVISION="existing")
    assert run("companies-provision", "Quiet", "Quiet", COMPANY_PROVISION="existing").returncode == 0
    await fleet.publish("v1.chats.upsert", builders.chat())

    listed = _listed(run, COMPANY_PROVISION="existing")
    assert list(listed) == [fleet.company, "Quiet"]
    waits = listed[fleet.company]
    assert (waits["served_by"], waits["is_served"]) == ("waits for companies-provision", False)
    assert "companies-provision" in run("companies", COMPANY_PROVISION="existing").stdout

    wrong = run("companies-provision", "a b", fleet.company, "qUIET", COMPANY_PROVISION="existing")
    assert fleet.tenant.schema in wrong.stdout
    line = _refused(wrong)
    assert "'a b'" in line
    assert "'Quiet', which differs only in case" in line

    await fleet.holds("chats", 1)
    assert "COMPANY_EXCLUDE" in run("companies-provision", "Quiet", COMPANY_EXCLUDE="Q*").stderr
    excluded = _listed(run, "Q*", COMPANY_EXCLUDE="Q*")
    assert excluded["Quiet"]["served_by"] == "excluded"


@pytest.mark.timeout(240)
@pytest.mark.rule("FLT-9", "FLT-10")
async def test_a_company_with_its_own_worker_is_forgotten_only_when_that_has_stopped(
    run: Run, start: Start, fleet: CompanyProbe
) -> None:
    worker = start(fleet.company)
    await fleet.publish("v1.chats.upsert", builders.chat())
    await fleet.holds("chats", 1)
    await fleet.settled()

    excluded = {"COMPANY_EXCLUDE": fleet.company}
    [seen] = command_json(run, **excluded)
    assert (seen["served_by"], seen["lag"]) == ("excluded, own worker", {"least": 0, "most": 0})
    assert "somebody pulls from it now" in _refused(run("companies-forget", fleet.company, "--yes"))

    before = run("topology")
    assert f"take over from wa_realtime_{fleet.company} at sequence 2" in before.stdout
    assert "consumer wa_fleet_realtime: not there yet" in before.stdout
    assert f"served by the fleet, and still by others: {fleet.company}" in before.stdout
    assert f"left out by COMPANY_ALLOW and COMPANY_EXCLUDE, or by their names: {fleet.company}" in (
        run("topology", **excluded).stdout
    )
    assert run("topology", "--apply").returncode == 0
    kept = run("topology", "--drop-old")
    assert f"wa_realtime_{fleet.company} is kept: somebody pulls" in kept.stdout
    assert await fleet.consumer()

    assert worker.stop() == 0
    assert "delete the old durable" not in run("topology", "--drop-old", **excluded).stdout
    forgotten = run("companies-forget", fleet.company, "--yes")
    assert forgotten.returncode == 0, forgotten.stderr
    assert len(forgotten.stdout.splitlines()) == 3
    with pytest.raises(NotFoundError):
        await fleet.consumer()
    assert await fleet.count("chats") == 1
    assert "nobody pulls" in run("companies").stdout


@pytest.mark.timeout(120)
async def test_exhausted_events_of_all_companies_of_a_fleet_are_handled_with_one_command(
    run: Run, fleet: CompanyProbe
) -> None:
    companies = [fleet.company, "Acme", "Unseen"]
    assert run("companies-provision", *companies).returncode == 0
    for company in companies[:2]:
        probe = CompanyProbe(Tenant(company), fleet.nc, fleet.database)
        await probe.execute(
            "INSERT INTO {schema}.exhausted_events (created_at, company_id, source_subject, last_error,"
            f" dlq_payload, resolved, notes) VALUES (now(), '{company}', 'v1.x', 'boom', '{{}}', false, '')"
        )
    listed = run("exhausted")
    assert {line.split()[1] for line in listed.stdout.splitlines()[1:]} == set(companies[:2])
    assert [line.split()[1] for line in run("exhausted", "--company", "Acme").stdout.splitlines()[1:]] == [
        "Acme"
    ]
    assert "'Nobody' is not a company" in _refused(run("exhausted", "--company", "Nobody"))
    assert "add --company" in _refused(run("exhausted-show", "1"))
    assert "boom" in run("exhausted-show", "1", "--company", "Acme").stdout
    done = run("exhausted-discard", "1", "--company", "Acme", "--reason", "known", "--yes")
    assert done.stdout.strip() == "Acme 1 discarded"
    assert _listed(run, "--no-lag")[fleet.company]["exhausted"] == 1
    assert _listed(run, "--no-lag")["Acme"]["exhausted"] == 0


@pytest.mark.timeout(300)
@pytest.mark.rule("FLT-1", "FLT-9")
async def test_nothing_is_lost_or_doubled_when_a_company_moves_out_of_a_fleet_and_back_while_events_come(
    run: Run, start: Start, fleet: CompanyProbe
) -> None:
    async def stored(first: int) -> None:
        payloads = [builders.message(message_id=f"M{number}") for number in range(first, first + 20)]
        await fleet.publish_many("v1.messages.upsert", payloads)
        await fleet.holds("messages", first + 20)

    shared = start("*")
    await fleet.publish("v1.chats.upsert", builders.chat())
    await comes_to(1, lambda: _count(fleet, "chats"))
    await stored(0)
    own = start(fleet.company)
    await stored(20)
    assert shared.stop() == 0
    # Between the two of them only its own worker serves the company.
    await stored(40)
    excluding = start("*", COMPANY_EXCLUDE=fleet.company)
    await stored(60)
    await comes_true(lambda: excluding.scrape().value("daisi_fleet_refused_events_total") >= 20)
    assert excluding.stop() == 0
    start("*")
    await fleet.settled()
    assert own.stop() == 0
    await stored(80)

    forgotten = run("companies-forget", fleet.company, "--yes")
    assert forgotten.returncode == 0, forgotten.stderr
    [seen] = command_json(run)
    assert (seen["served_by"], seen["is_served"]) == ("fleet", True)
    assert await fleet.count("message_keys") == 100
    assert await fleet.letters() == 0
