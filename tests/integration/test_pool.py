"""The pool against a real server: what it says when it cannot lend a connection, and which ones it gives up."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress

import asyncpg
import pytest

from agents.batch_writer import BatchWriter
from agents.decode import decode
from agents.event_writer import EventSink
from agents.received_event import ReceivedEvent
from events.subjects import Tenant
from tables.connection import pool
from tables.connection.pool import Database
from tables.errors import Unavailable
from tables.last_writer_wins import EventStamp, Version
from tables.mutations import Mutation
from tables.tenant import TenantTables
from testkit.servers import PostgresServer
from tests import builders
from tests.servers.proxy import Proxy
from tests.unit.fakes import LIMITS, STORED_NS, FakeDelivery


@pytest.mark.rule("RUN-11")
async def test_a_full_pool_is_an_outage_and_no_events_fault(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "ACQUIRE_TIMEOUT", 0.05)
    database = Database(database_dsn, size=1)
    await database.open()
    async with database.connection():
        with pytest.raises(Unavailable, match="no connection"):
            async with database.connection():
                pass
    await database.close()


async def test_a_connection_to_a_read_only_server_is_not_lent_again(database: Database) -> None:
    async with database.connection() as connection:
        first = await connection.fetchval("SELECT pg_backend_pid()")

    async def write() -> None:
        async with database.transaction() as connection:
            await connection.execute("SET TRANSACTION READ ONLY")
            await connection.execute("CREATE TABLE public.nothing ()")

    with pytest.raises(Unavailable):
        await write()
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT pg_backend_pid()") != first


async def test_the_database_cannot_be_used_before_it_is_open(database_dsn: str) -> None:
    with pytest.raises(Unavailable, match="not connected yet"):
        async with Database(database_dsn).connection():
            pass


async def test_a_connection_that_comes_back_goes_to_whoever_waits_for_one(database_dsn: str) -> None:
    database = Database(database_dsn, size=1)
    await database.open()
    async with database.connection():
        waiting = asyncio.create_task(database.ping())
        await asyncio.sleep(0)
    await waiting
    await database.close()


async def test_a_connection_that_the_server_ended_is_not_lent_again(
    database: Database, database_dsn: str
) -> None:
    async with database.connection() as connection:
        process = await connection.fetchval("SELECT pg_backend_pid()")
    administrator = await asyncpg.connect(database_dsn)
    await administrator.execute("SELECT pg_terminate_backend($1)", process)
    await administrator.close()
    [spare] = database._spare.values()
    while not spare.itself.is_closed():
        await asyncio.sleep(0.01)
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT pg_backend_pid()") != process


async def test_a_session_that_was_left_in_a_transaction_is_not_lent_in_it(database: Database) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the driver complains of it
    async with database.connection() as connection:
        await connection.execute("BEGIN")
    async with database.connection() as connection:
        assert not connection.is_in_transaction()


@pytest.mark.parametrize(("seconds", "idle"), [(60.0, 0), (0.0, 1)])
async def test_a_connection_goes_back_to_the_drivers_pool_after_a_while(
    database: Database, monkeypatch: pytest.MonkeyPatch, seconds: float, idle: int
) -> None:
    """Which closes connections that are idle or worn out."""
    monkeypatch.setattr(pool, "LOAN_SECONDS", seconds)
    await database.ping()
    assert sum(pool.get_idle_size() for pool in database._pools) == idle


async def _process(database: Database, home: str | None = None) -> int:
    async with database.connection(home) as connection:
        return int(await connection.fetchval("SELECT pg_backend_pid()"))


async def test_a_company_comes_back_to_its_connection_and_is_not_kept_waiting_for_it(
    database: Database,
) -> None:
    """There its statements are planned already."""
    homes = [f"daisi_{number}" for number in range(40)]
    first = {home: await _process(database, home) for home in homes}
    assert {home: await _process(database, home) for home in homes} == first
    assert 1 < len(set(first.values())) <= 10
    async with database.transaction(homes[0]) as connection:
        assert await connection.fetchval("SELECT pg_backend_pid()") == first[homes[0]]
        assert await _process(database, homes[0]) != first[homes[0]]
    assert await _process(database, homes[0]) == first[homes[0]]


async def test_what_belongs_to_no_company_opens_no_further_connection(database: Database) -> None:
    assert len({await _process(database) for _ in range(20)}) == 1


async def test_whoever_waits_for_a_connection_while_the_pool_closes_is_told(database_dsn: str) -> None:
    database = Database(database_dsn, size=1)
    await database.open()
    async with database.connection("daisi_kopi"):
        waiting = asyncio.create_task(_process(database, "daisi_kopi"))
        await asyncio.sleep(0)
        closing = asyncio.create_task(database.close())
        await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await waiting
    await closing


class _Calm:
    """Nobody to be told of pauses."""

    def paused(self, waiter: str, reason: str) -> None:
        raise AssertionError(f"the database was taken for gone: {reason}")

    def resumed(self, waiter: str) -> None:
        pass


async def test_a_table_that_changes_under_its_plans_is_nobodys_fault(
    database: Database, schema: str, company: str
) -> None:
    """Plans are cached for each connection, and an index is what a conflict is found by."""
    tables = TenantTables(database, schema, lambda *_: None)
    changes = (
        f'ALTER TABLE "{schema}".messages ADD COLUMN note text',
        f'ALTER TABLE "{schema}".chats ALTER COLUMN push_name TYPE varchar',
        f'ALTER TABLE "{schema}".messages ALTER COLUMN status TYPE varchar',
        f'DROP INDEX "{schema}".chats_chat_id_idx; CREATE UNIQUE INDEX ON "{schema}".chats (chat_id)',
    )
    for change in ("SELECT 1", *changes):
        async with database.connection() as connection:
            await connection.execute(change)
        writes: list[Mutation] = []
        for event_type in ("v1.messages.upsert", "v1.messages.update", "v1.chats.upsert", "v1.chats.update"):
            payload = builders.BUILDERS[event_type](company_id=company)
            delivery = FakeDelivery(event_type, payload)
            stamp = EventStamp(Version(STORED_NS, 1), "{}")
            event = ReceivedEvent(Tenant(company), delivery, LIMITS["realtime"], event_type, stamp)
            decode(event, delivery.data, itertools.count(len(writes)))
            writes += event.writes
        sink = EventSink(company, tables)
        await BatchWriter("storing", _Calm()).store(writes, sink)
        assert sink.errors == {}


async def test_a_transaction_whose_beginning_is_cancelled_leaves_no_session_in_it(
    postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As at a stop; the driver complains of such a session when it is given back."""
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    async with Proxy(postgres_server.port) as proxy:
        database = Database(f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres", size=1)
        await database.open()

        async def begin() -> None:
            async with database.transaction():
                raise AssertionError("begun through a frozen connection")

        proxy.freeze()
        beginning = asyncio.create_task(begin())
        await asyncio.sleep(0.1)
        beginning.cancel()
        await asyncio.sleep(0.1)
        proxy.heal()
        with suppress(asyncio.CancelledError):
            await beginning
        async with database.transaction() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        await database.close()
    assert complaints == []
    assert not [one for one in caplog.records if one.levelname == "ERROR"]
