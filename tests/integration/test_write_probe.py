"""A probe against a real server: what it leaves behind (nothing), needs, and finds out."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from agents.batch_writer import BatchWriter
from agents.decode import decode
from agents.event_writer import EventSink
from agents.received_event import ReceivedEvent
from events import errors
from events.subjects import Tenant
from tables import write_probe
from tables.attribution import Incoming
from tables.connection import hosts
from tables.connection.pool import Database
from tables.connection.session import SETTINGS
from tables.errors import DataError, QueryTimeout, StorageError, Unavailable
from tables.last_writer_wins import EventStamp, Version
from tables.mutations import Mutation
from tables.schema.migrations import migrate
from tables.tenant import TenantTables
from tables.write_probe import Like
from testkit.servers import PostgresServer
from tests import builders
from tests.unit.fakes import LIMITS, STORED_NS, FakeDelivery, RecordingMeter

_TABLES = (
    "messages",
    "message_keys",
    "chats",
    "chat_steps",
    "contacts",
    "agents",
    "onboarding_log",
    "post_scan_jobs",
)
_EVENTS = (
    "v1.messages.upsert",
    "v1.messages.update",
    "v1.chats.upsert",
    "v1.chats.update",
    "v1.contacts.upsert",
    "v1.contacts.update",
    "v1.connection.update",
)


def _writes(company: str, event_type: str, sequence: int = 1, **fields: Any) -> list[Mutation]:
    payload = builders.BUILDERS[event_type](company_id=company, **fields)
    metadata = f'{{"stream":"s","stream_sequence":{sequence}}}'
    return _decoded(company, event_type, payload, sequence, metadata)


def _decoded(company: str, event_type: str, payload: Any, sequence: int, metadata: str) -> list[Mutation]:
    delivery = FakeDelivery(event_type, payload)
    stamp = EventStamp(Version(STORED_NS, sequence), metadata)
    event = ReceivedEvent(Tenant(company), delivery, LIMITS["realtime"], event_type, stamp)
    decode(event, delivery.data, itertools.count(sequence))
    assert event.error is None
    return event.writes


def _likes(company: str) -> Iterator[Like]:
    for event_type in _EVENTS:
        yield from _writes(company, event_type)
    last = {**builders.history_chats(), "is_last_batch": True, "agent_id": "a"}
    yield _decoded(builders.COMPANY, "v1.history.chats", last, 1, "{}")[-1]
    yield Incoming("a", "62811", "m", 1, "a_62811", "62811@s.whatsapp.net", None, EventStamp(None, "{}"))


async def _rows(database: Database, schema: str) -> dict[str, int]:
    async with database.connection() as connection:
        return {
            table: await connection.fetchval(f'SELECT count(*) FROM "{schema}".{table}') for table in _TABLES
        }


def _tables(database: Database, schema: str) -> TenantTables:
    return TenantTables(database, schema, lambda *_: None)


async def test_a_probe_of_each_kind_is_stored_and_nobody_ever_sees_it(
    database: Database, schema: str, company: str
) -> None:
    probe = _tables(database, schema).probe
    for like in _likes(company):
        async with database.connection() as connection:
            before = await connection.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        await probe.store(like, company)
        async with database.connection() as connection:
            after = await connection.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        # The row that is rolled back, and the write that is committed.
        assert after - before >= 2
    assert set((await _rows(database, schema)).values()) == {0}


@pytest.mark.parametrize("table", ["messages", "chats", "contacts", "agents", "onboarding_log"])
async def test_a_probe_finds_out_which_kind_of_write_is_refused(
    database: Database, schema: str, company: str, table: str
) -> None:
    probe = _tables(database, schema).probe
    async with database.connection() as connection:
        await connection.execute(
            f"""CREATE FUNCTION public.broken() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'broken'; END $$;
            CREATE TRIGGER broken BEFORE UPDATE OR INSERT ON "{schema}".{table}
            FOR EACH ROW EXECUTE FUNCTION public.broken()"""
        )
    refused, told = set(), set()
    for like in _likes(company):
        try:
            await probe.store(like, company)
        except StorageError as error:
            refused.add(write_probe.kind_of(like))
            told.add(error.in_full())
    expected = {"contacts", "onboarding_log"} if table == "contacts" else {table}
    assert {kind[0] if isinstance(kind, tuple) else kind for kind in refused} == expected
    assert told == {"SQLSTATE P0001: broken"}


async def test_a_trigger_on_updates_alone_is_found_too(database: Database, schema: str, company: str) -> None:
    async with database.connection() as connection:
        await connection.execute(
            f"""CREATE FUNCTION public.broken() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'broken'; END $$;
            CREATE TRIGGER broken BEFORE UPDATE ON "{schema}".messages
            FOR EACH ROW EXECUTE FUNCTION public.broken()"""
        )
    [write] = _writes(company, "v1.messages.update")
    with pytest.raises(StorageError):
        await _tables(database, schema).probe.store(write, company)


@pytest.fixture
async def role(database: Database, database_dsn: str, schema: str) -> AsyncIterator[str]:
    """The DSN of a role that may read and write the tables, and nothing else."""
    name = f"writer_{schema}"
    async with database.connection() as connection:
        await connection.execute(
            f"""CREATE ROLE "{name}" LOGIN; GRANT USAGE ON SCHEMA "{schema}" TO "{name}";
            GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO "{name}";
            GRANT USAGE ON ALL SEQUENCES IN SCHEMA "{schema}" TO "{name}" """
        )
    yield database_dsn.replace("postgres@", f"{name}@")
    async with database.connection() as connection:
        await connection.execute(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"')


async def test_a_probe_needs_no_right_that_events_do_not_need(role: str, schema: str, company: str) -> None:
    database = Database(role, size=1)
    await database.open()
    try:
        for like in _likes(company):
            await _tables(database, schema).probe.store(like, company)
    finally:
        await database.close()


async def test_a_probe_without_the_right_to_its_commit_rests_on_the_row(
    database: Database, role: str, schema: str, company: str
) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text, boolean) FROM PUBLIC"
        )
    writer = Database(role, size=1)
    await writer.open()
    try:
        for like in _likes(company):
            await _tables(writer, schema).probe.store(like, company)
    finally:
        await writer.close()


async def test_a_right_that_was_revoked_is_an_outage(
    database: Database, role: str, schema: str, company: str
) -> None:
    async with database.connection() as connection:
        name = role.partition("//")[2].partition("@")[0]
        await connection.execute(f'REVOKE INSERT ON "{schema}".chats FROM "{name}"')
    writer = Database(role, size=1)
    await writer.open()
    try:
        [write] = _writes(company, "v1.chats.upsert")
        with pytest.raises(Unavailable, match="42501"):
            await _tables(writer, schema).probe.store(write, company)
    finally:
        await writer.close()


@pytest.mark.parametrize("event_type", ["v1.chats.upsert", "v1.contacts.upsert", "v1.messages.upsert"])
async def test_an_event_whose_row_alone_is_locked_times_out_and_no_outage_is_told(
    database: Database,
    database_dsn: str,
    schema: str,
    company: str,
    event_type: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosts, "SETTINGS", {**SETTINGS, "lock_timeout": "100"})
    hasty = Database(database_dsn)
    await hasty.open()
    tables = _tables(hasty, schema)
    health = RecordingMeter()
    writer = BatchWriter("storing", health)
    try:
        await writer.store(_writes(company, event_type), EventSink(company, tables))
        async with database.transaction() as connection:
            await connection.execute(f'SELECT FROM "{schema}".{event_type.split(".")[1]} FOR UPDATE')
            [write] = _writes(company, event_type, 2)
            sink = EventSink(company, tables)
            await writer.store([write], sink)
    finally:
        await hasty.close()
    assert isinstance(sink.errors[write.ref], errors.TimedOut)
    assert not [call for call in health.of("paused") if "test row" in call[2]]


@pytest.mark.parametrize("event_type", ["v1.chats.upsert", "v1.connection.update"])
async def test_an_event_whose_whole_table_is_locked_is_not_blamed_and_is_stored_afterwards(
    database: Database,
    database_dsn: str,
    schema: str,
    company: str,
    event_type: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosts, "SETTINGS", {**SETTINGS, "lock_timeout": "100"})
    hasty = Database(database_dsn)
    await hasty.open()
    tables = _tables(hasty, schema)
    tables.probe = write_probe.WriteProbe(hasty, schema, limit=0.1)
    told = asyncio.Event()

    class Listener(RecordingMeter):
        def paused(self, waiter: str, reason: str) -> None:
            if "test row" in reason:
                told.set()

    [write] = _writes(company, event_type)
    sink = EventSink(company, tables)
    table = "chats" if "chats" in event_type else "agents"
    try:
        async with database.transaction() as connection:
            await connection.execute(f'LOCK TABLE "{schema}".{table}')
            writer = BatchWriter("storing", Listener())
            storing = asyncio.create_task(writer.store([write], sink))
            async with asyncio.timeout(30):
                await told.wait()
        async with asyncio.timeout(30):
            await storing
    finally:
        await hasty.close()
    assert sink.errors == {}
    assert (await _rows(database, schema))[table] == 1


async def test_what_refuses_every_commit_is_found_although_a_constraint_refuses_the_probes_row(
    database: Database, schema: str, company: str
) -> None:
    """A constraint is checked before a transaction gets its id, which is what the server refuses near wraparound."""
    async with database.connection() as connection:
        await connection.execute(
            f"""ALTER TABLE "{schema}".agents ADD CONSTRAINT ours CHECK (agent_id NOT LIKE 'daisi-write-probe%')"""
        )
    probe = _tables(database, schema).probe
    [write] = _writes(company, "v1.connection.update")
    with pytest.raises(DataError, match="constraint ours"):
        await probe.store(write, company)
    probe._sql = {
        **probe._sql,
        "commit": "DO $$ BEGIN RAISE EXCEPTION 'no ids left' USING ERRCODE = '54000'; END $$",
    }
    with pytest.raises(DataError, match="54000"):
        await probe.store(write, company)


async def _ghost(dsn: str, standby: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()


@pytest.fixture
def lonely() -> Iterator[PostgresServer]:
    """A server of the test's own."""
    with PostgresServer() as server:
        yield server


@pytest.mark.parametrize("event_type", ["v1.messages.upsert", "v1.connection.update"])
async def test_one_event_alone_is_not_blamed_while_every_commit_waits_for_a_standby(
    lonely: PostgresServer, company: str, event_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`statement_timeout` does not end such a wait: the driver's limit does."""
    monkeypatch.setattr("agents.batch_writer.TIMEOUTS", 1)
    schema = Tenant(company).schema
    database = Database(lonely.dsn)
    await database.open()
    await migrate(database, schema)
    await database.close()
    # Five seconds more are the driver's limit.
    monkeypatch.setattr(hosts, "STATEMENT_TIMEOUT", 0.5)
    monkeypatch.setattr(hosts, "SETTINGS", {**SETTINGS, "statement_timeout": "500"})
    database = Database(lonely.dsn)
    await database.open()
    tables = TenantTables(database, schema, lambda *_: None)
    tables.probe = write_probe.WriteProbe(database, schema, limit=0.3)
    await _ghost(lonely.dsn, "ghost")

    class Reassembled(RecordingMeter):
        """The standby is back once a probe was refused."""

        ghost = True

        def paused(self, waiter: str, reason: str) -> None:
            self.calls.append(("paused", waiter, reason))
            if "test row" in reason:
                self.ghost = False

    health = Reassembled()
    [write] = _writes(company, event_type)
    writer = BatchWriter("storing", health, backoff=_Waits(lambda: not health.ghost, lonely.dsn))
    started = time.monotonic()
    sink = EventSink(company, tables)
    try:
        await writer.store([write], sink)
    finally:
        await database.close()
    assert sink.errors == {}
    assert any("a test row is not stored either" in reason for _, _, reason in health.of("paused"))
    assert time.monotonic() - started < 60


class _Waits:
    """A backoff that lets the standby back when it is time."""

    def __init__(self, over: Any, dsn: str) -> None:
        self._over = over
        self._dsn = dsn

    def __call__(self) -> Any:
        return self

    async def wait(self) -> None:
        if self._over():
            await _ghost(self._dsn, "")


async def test_a_probe_that_waits_for_a_standby_ends_in_time(lonely: PostgresServer, company: str) -> None:
    schema = Tenant(company).schema
    database = Database(lonely.dsn)
    await database.open()
    await migrate(database, schema)
    probe = write_probe.WriteProbe(database, schema, limit=0.3)
    await _ghost(lonely.dsn, "ghost")
    try:
        for like in _likes(company):
            with pytest.raises(QueryTimeout):
                await probe.store(like, company)
        await _ghost(lonely.dsn, "")
        await probe.store(like, company)
        assert set((await _rows(database, schema)).values()) == {0}
    finally:
        await database.close()


async def test_probes_that_wait_for_a_standby_leave_no_process_of_the_server_behind(
    lonely: PostgresServer, company: str
) -> None:
    """Such a process waits for as long as the standby is away: an hour of probes would take every connection."""
    schema = Tenant(company).schema
    database = Database(lonely.dsn)
    await database.open()
    await migrate(database, schema)
    probe = write_probe.WriteProbe(database, schema, limit=0.2)
    await _ghost(lonely.dsn, "ghost")
    try:
        for like in itertools.islice(_likes(company), 3):
            with pytest.raises(QueryTimeout):
                await probe.store(like, company)
        async with database.connection() as connection:
            left = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            )
        assert left == 0
    finally:
        await _ghost(lonely.dsn, "")
        await database.close()
