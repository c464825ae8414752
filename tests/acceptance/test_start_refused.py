"""What a server refuses at the start is waited out, told by name, and holds up nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import asyncpg
import nats
import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamSource

from events.subjects import REALTIME
from tables.queries import quoted
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
from tests.nats_servers import ConfigurableNats, reload
from tests.programs import command

SUBJECTS = [f"{base}.*" for base in REALTIME]


def account(max_streams: int) -> str:
    """A server whose only account may have so many streams."""
    limits = f"max_streams: {max_streams}"
    return f'accounts {{ A {{ jetstream {{ {limits} }}, users: [{{user: "a", password: "b"}}] }} }}'


@pytest.fixture
def server() -> Iterator[ConfigurableNats]:
    """An empty NATS of the test's own."""
    with ConfigurableNats() as server:
        yield server


@pytest.fixture
async def client(server: ConfigurableNats) -> AsyncIterator[Client]:
    client = await nats.connect(server.url)
    yield client
    await client.close()


@pytest.fixture
async def pair(client: Client, database_dsn: str) -> AsyncIterator[tuple[CompanyProbe, CompanyProbe]]:
    """Two companies with a database of their own; nobody serves them yet."""
    async with AsyncExitStack() as stack:
        names = [f"{name}{uuid4().hex[:6]}" for name in ("One", "Two")]
        one, two = [await stack.enter_async_context(visited(name, client, database_dsn)) for name in names]
        yield one, two


class Start:
    """Starts a worker for two companies; what the pair's servers are is known."""

    def __init__(
        self, launch: Launch, server: ConfigurableNats, dsn: str, pair: tuple[CompanyProbe, CompanyProbe]
    ) -> None:
        self._launch = launch
        self._server = server
        self._dsn = dsn
        self._companies = [probe.company for probe in pair]

    def __call__(self, *, ready: bool = False, **settings: str) -> Worker:
        return self._launch(
            *self._companies, ready=ready, nats_url=self._server.url, postgres_dsn=self._dsn, also=settings
        )


@pytest.fixture
def start(
    launch: Launch, server: ConfigurableNats, database_dsn: str, pair: tuple[CompanyProbe, CompanyProbe]
) -> Start:
    return Start(launch, server, database_dsn, pair)


def details(worker: Worker) -> dict[str, str]:
    """What /ready names, without the time; nothing while nobody answers."""
    assert worker.running, worker.written()
    status, text = worker.page("/ready")
    found: dict[str, str] = json.loads(text)["details"] if status else {}
    return {part: why for part, why in found.items() if part != "timestamp"}


async def reason(worker: Worker, part: str, *words: str) -> str:
    """What /ready says of a part, once it has these words."""

    told = ""

    def has_come() -> bool:
        nonlocal told
        told = details(worker).get(part, "")
        return bool(told) and all(word in told for word in words)

    try:
        await comes_true(has_come)
    except AssertionError:
        raise AssertionError(f"{part}: {told!r}, {details(worker)}") from None
    return told


async def stores(probe: CompanyProbe) -> None:
    """A new real-time event of this company gets its row."""

    async def made() -> bool:
        return bool(await probe.database.fetchval("SELECT to_regclass($1)", f"{probe.schema}.chats"))

    await comes_to(True, made)
    before = await probe.count("chats")
    await probe.publish("v1.chats.upsert", builders.chat(chat_id=uuid4().hex))
    await probe.holds("chats", before + 1)


def logged(worker: Worker, *words: str) -> list[str]:
    """The warnings with these words."""
    lines = [line["msg"] for line in worker.lines() if line["level"] == "warn"]
    return [line for line in lines if all(word in line for word in words)]


async def wait_ready(worker: Worker) -> None:
    await comes_true(lambda: worker.page("/ready")[0] == 200)


@pytest.mark.rule("RUN-6")
async def test_a_refused_stream_is_waited_for_and_the_others_are_served(
    launch: Launch, company: str, database_dsn: str
) -> None:
    with ConfigurableNats(settings=account(2)) as server:
        url = server.url.replace("//", "//a:b@")
        worker = launch(company, ready=False, nats_url=url, postgres_dsn=database_dsn)
        part = f"stream {DLQ_STREAM}"
        assert "(10027)" in await reason(worker, part, "max_streams of the account")
        assert part in await reason(worker, f"dlq {company}", "waits for")
        assert worker.page("/health")[0] == 200

        client = await nats.connect(url)
        async with visited(company, client, database_dsn) as probe:
            await stores(probe)
            await comes_true(lambda: set(details(worker)) == {part, f"dlq {company}"})
            assert len(logged(worker, part, "max_streams")) == 1
            reload(server, account(3))
            await wait_ready(worker)
        assert any(line["msg"] == "consumers are running" for line in worker.lines())
        await client.close()


async def _fill(client: Client, stream: str, count: int) -> list[str]:
    """Durables of somebody else."""
    js = client.jetstream()
    names = [f"foreign{number}" for number in range(count)]
    # Many at once, but the last ones alone: at once the server counts them against no limit.
    for start in range(0, count, 50):
        configs = [ConsumerConfig(durable_name=name, mem_storage=True) for name in names[start : start + 50]]
        await asyncio.gather(*(js.add_consumer(stream, config) for config in configs))
    return names


async def test_a_company_whose_consumer_is_refused_is_reported_and_the_other_is_served(
    client: Client, pair: tuple[CompanyProbe, CompanyProbe], start: Start
) -> None:
    one, two = pair
    js = client.jetstream()
    await js.add_stream(name=REALTIME_STREAM, subjects=SUBJECTS)
    await js.add_consumer(
        REALTIME_STREAM,
        ConsumerConfig(
            durable_name=f"wa_realtime_{one.company}",
            filter_subjects=[one.tenant.subject(base) for base in REALTIME],
            max_ack_pending=-1,
        ),
    )
    [foreign, *_] = await _fill(client, REALTIME_STREAM, 999)
    worker = start()
    part = f"realtime {two.company}"
    told = await reason(worker, part, "(10026)", f"wa_realtime_{two.company}", REALTIME_STREAM)
    assert f"nats stream edit {REALTIME_STREAM} --max-consumers" in told
    await comes_true(lambda: set(details(worker)) == {part})
    await stores(one)
    assert len(logged(worker, part, "(10026)")) == 1

    await js.delete_consumer(REALTIME_STREAM, foreign)
    await wait_ready(worker)
    await stores(two)


async def test_streams_that_we_make_have_room_for_more_consumers_than_the_servers_default(
    client: Client, pair: tuple[CompanyProbe, CompanyProbe], start: Start
) -> None:
    start(ready=True, NATS_STREAM_MAXCONSUMERS="1100")
    info = await client.jetstream().stream_info(HISTORY_STREAM)
    assert info.config.max_consumers == 1100
    await _fill(client, HISTORY_STREAM, 1010)
    assert (await client.jetstream().stream_info(HISTORY_STREAM)).state.consumer_count == 1012


async def test_a_push_consumer_of_our_name_holds_up_its_company_only(
    client: Client, pair: tuple[CompanyProbe, CompanyProbe], start: Start
) -> None:
    one, two = pair
    js = client.jetstream()
    await js.add_stream(name=REALTIME_STREAM, subjects=SUBJECTS)
    name = f"wa_realtime_{two.company}"
    await js.add_consumer(REALTIME_STREAM, ConsumerConfig(durable_name=name, deliver_subject="_INBOX.nobody"))
    worker = start()
    told = await reason(worker, f"realtime {two.company}", name, "push consumer")
    assert f"nats consumer rm {REALTIME_STREAM} {name}" in told
    await stores(one)
    await js.delete_consumer(REALTIME_STREAM, name)
    await wait_ready(worker)
    await stores(two)


async def test_subjects_of_somebody_elses_stream_hold_up_one_stream_only(
    client: Client, pair: tuple[CompanyProbe, CompanyProbe], start: Start
) -> None:
    one, _ = pair
    js = client.jetstream()
    await js.add_stream(name="somebody", subjects=["v1.history.>"])
    worker = start()
    await reason(worker, f"stream {HISTORY_STREAM}", "(10065)", "NATS_HISTORICAL_STREAM")
    assert f"stream {HISTORY_STREAM}" in await reason(worker, f"historical {one.company}", "waits for")
    await stores(one)
    await js.delete_stream("somebody")
    await wait_ready(worker)


async def test_a_schema_that_cannot_be_made_holds_up_its_company_only(
    pair: tuple[CompanyProbe, CompanyProbe], start: Start
) -> None:
    one, two = pair
    start(ready=True).stop()
    await two.execute("ALTER TABLE {schema}.chats RENAME COLUMN push_name TO nick")
    await two.execute("ALTER TABLE {schema}.contacts RENAME COLUMN origin TO source")
    worker = start(DATABASE_POSTGRESAUTOMIGRATE="false")
    told = await reason(worker, f"company {two.company}", two.tenant.schema)
    assert "push_name" in told
    assert "origin" in told
    await stores(one)
    await two.execute("ALTER TABLE {schema}.chats RENAME COLUMN nick TO push_name")
    await two.execute("ALTER TABLE {schema}.contacts RENAME COLUMN source TO origin")
    await wait_ready(worker)
    await stores(two)


async def test_a_right_that_is_missing_in_postgresql_holds_up_its_company_only(
    pair: tuple[CompanyProbe, CompanyProbe],
    start: Start,
    launch: Launch,
    server: ConfigurableNats,
    database_dsn: str,
) -> None:
    one, two = pair
    role = f"writer_{uuid4().hex[:8]}"
    await one.execute(f"CREATE ROLE {role} LOGIN")
    await one.execute(f"CREATE SCHEMA {one.schema} AUTHORIZATION {role}")
    worker = launch(
        one.company,
        two.company,
        ready=False,
        nats_url=server.url,
        postgres_dsn=database_dsn.replace("postgres@", f"{role}@"),
    )
    await reason(worker, f"company {two.company}", two.tenant.schema, "42501", "permission denied")
    await stores(one)
    await two.execute(f"CREATE SCHEMA {quoted(two.tenant.schema)} AUTHORIZATION {role}")
    await wait_ready(worker)
    await stores(two)


async def _upstream(client: Client) -> None:
    """Where the events are published in these tests."""
    await client.jetstream().add_stream(name="hub", subjects=SUBJECTS)


async def _publish(probe: CompanyProbe, count: int) -> None:
    for _ in range(count):
        body = builders.body(probe.of_us(builders.chat(chat_id=uuid4().hex)))
        await probe.js.publish(probe.tenant.subject("v1.chats.upsert"), body)


@pytest.mark.parametrize("kind", ["mirror", "sources"])
async def test_a_stream_that_is_fed_by_others_is_used_as_it_is(
    client: Client, pair: tuple[CompanyProbe, CompanyProbe], start: Start, kind: str
) -> None:
    one, two = pair
    await _upstream(client)
    feed: dict[str, Any] = (
        {"mirror": StreamSource(name="hub")} if kind == "mirror" else {"sources": [StreamSource(name="hub")]}
    )
    await client.jetstream().add_stream(name=REALTIME_STREAM, **feed)
    worker = start(ready=True)
    for probe in (one, two):
        await _publish(probe, 3)
        await probe.holds("chats", 3)
    assert len(logged(worker, REALTIME_STREAM, "used as it is", "v1.chats.upsert.*")) == 1
    assert not (await client.jetstream().stream_info(REALTIME_STREAM)).config.subjects


async def test_a_sealed_stream_is_read_and_said_to_take_nothing(
    client: Client, pair: tuple[CompanyProbe, CompanyProbe], start: Start
) -> None:
    one, _ = pair
    js = client.jetstream()
    await js.add_stream(name=REALTIME_STREAM, subjects=["v1.chats.*.*"])
    await _publish(one, 3)
    config = (await js.stream_info(REALTIME_STREAM)).config
    config.sealed = True
    await js.update_stream(config)
    worker = start(ready=True)
    await one.holds("chats", 3)
    assert len(logged(worker, REALTIME_STREAM, "sealed")) == 1


async def test_a_workqueue_is_read_and_another_ones_consumer_on_it_is_named_as_the_obstacle(
    client: Client, pair: tuple[CompanyProbe, CompanyProbe], start: Start
) -> None:
    one, two = pair
    js = client.jetstream()
    await js.add_stream(name=REALTIME_STREAM, subjects=SUBJECTS, retention=RetentionPolicy.WORK_QUEUE)
    theirs = ConsumerConfig(durable_name="theirs", filter_subject=two.tenant.subject("v1.chats.upsert"))
    await js.add_consumer(REALTIME_STREAM, theirs)
    worker = start()
    await reason(worker, f"realtime {two.company}", "(10100)", "workqueue")
    await stores(one)
    await js.delete_consumer(REALTIME_STREAM, "theirs")
    await wait_ready(worker)
    assert len(logged(worker, REALTIME_STREAM, "retention is workqueue")) == 1


async def test_more_replicas_than_nodes_are_waited_for_and_never_made_fewer(
    client: Client, start: Start, pair: tuple[CompanyProbe, CompanyProbe]
) -> None:
    worker = start(NATS_STREAM_REPLICAS="3")
    for stream in (REALTIME_STREAM, HISTORY_STREAM, DLQ_STREAM):
        await reason(worker, f"stream {stream}", "(10074)", "NATS_STREAM_REPLICAS")
    assert (await client.jetstream().account_info()).streams == 0
    assert worker.running


async def test_a_consumer_that_cannot_be_made_again_holds_up_its_company_only(
    client: Client, pair: tuple[CompanyProbe, CompanyProbe], start: Start
) -> None:
    one, two = pair
    worker = start(ready=True)
    js = client.jetstream()
    await js.add_consumer(REALTIME_STREAM, ConsumerConfig(durable_name="foreign"))
    config = (await js.stream_info(REALTIME_STREAM)).config
    config.max_consumers = 2
    await js.update_stream(config)
    await js.delete_consumer(REALTIME_STREAM, f"wa_realtime_{two.company}")
    await reason(worker, f"realtime {two.company}", "(10026)", f"wa_realtime_{two.company}")
    await comes_true(lambda: set(details(worker)) == {f"realtime {two.company}"})
    await stores(one)
    await js.delete_consumer(REALTIME_STREAM, "foreign")
    await wait_ready(worker)
    await stores(two)


async def test_dead_letters_that_cannot_be_stored_are_told_with_their_stream_and_the_servers_reason(
    client: Client, pair: tuple[CompanyProbe, CompanyProbe], start: Start
) -> None:
    one, _ = pair
    worker = start(ready=True)
    js = client.jetstream()
    config = (await js.stream_info(DLQ_STREAM)).config
    config.max_msgs, config.discard = 1, DiscardPolicy.NEW
    await js.update_stream(config)
    await js.publish("v1.dlq.Nobody", b"{}")
    for _ in range(3):
        await one.publish("v1.chats.upsert", b"no json")
    await reason(worker, f"dead letters {one.company}", DLQ_STREAM, "maximum messages exceeded")
    await stores(one)
    assert len(logged(worker, DLQ_STREAM, "maximum messages exceeded", "dead letters")) == 1
    config.max_msgs = -1
    await js.update_stream(config)
    await wait_ready(worker)


async def test_topology_shows_what_decides_over_durability_and_room_before_anything_is_changed(
    client: Client, pair: tuple[CompanyProbe, CompanyProbe], server: ConfigurableNats, database_dsn: str
) -> None:
    js = client.jetstream()
    await js.add_stream(name="hub", subjects=["v1.history.>"])
    await js.add_stream(name=HISTORY_STREAM, mirror=StreamSource(name="hub"))
    await client.request(
        f"$JS.API.STREAM.CREATE.{REALTIME_STREAM}",
        b'{"name":"%b","subjects":["v1.chats.>"],"persist_mode":"async","max_consumers":1,"storage":"file",'
        b'"retention":"limits"}' % REALTIME_STREAM.encode(),
    )
    env = environment([probe.company for probe in pair], server.url, database_dsn, NATS_STREAM_REPLICAS="3")
    shown = command("topology", env=env)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    expected = (
        (f"stream {REALTIME_STREAM} has replicas 1", "storage file", "max_consumers 1", "persist_mode async"),
        (f"stream {HISTORY_STREAM} has", "mirror of hub", "max_consumers -1 (1000 on this server)"),
        (f"stream {DLQ_STREAM} is not there",),
        (REALTIME_STREAM, "confirmed before they are written"),
        (REALTIME_STREAM, "2 more are needed", "--max-consumers"),
        (REALTIME_STREAM, "--replicas 3", "one node down stops publishing"),
        (HISTORY_STREAM, "used as it is"),
        (DLQ_STREAM, "replicas 3, max_consumers 10000"),
    )
    for words in expected:
        assert any(all(word in line for word in words) for line in lines), (words, lines)
    assert (await js.account_info()).streams == 3

    applied = command("topology", "--apply", env=env)
    assert applied.returncode == 1
    [line] = applied.stderr.splitlines()[-1:]
    assert "(10074)" in line
    assert DLQ_STREAM in line


async def test_migrate_ends_with_one_line_that_names_the_schema_that_was_refused(
    company: str, nats_url: str, database_dsn: str
) -> None:
    role = f"reader_{uuid4().hex[:8]}"
    connection = await asyncpg.connect(database_dsn)
    await connection.execute(f"CREATE ROLE {role} LOGIN")
    await connection.close()
    dsn = database_dsn.replace("postgres@", f"{role}@")
    done = command("migrate", env=environment([company], nats_url, dsn))
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"daisi_{company.lower()}" in line
    assert "42501" in line
