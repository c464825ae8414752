"""What PostgreSQL refuses to everybody is an outage, whatever its code; what it refuses to one event is its own."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

import asyncpg
import nats
import pytest

from testkit.servers import NatsServer, PostgresServer
from testkit.worker import Worker
from tests import builders
from tests.acceptance.company_probe import CompanyProbe, comes_true
from tests.acceptance.conftest import Launch, visited
from tests.servers.proxy import Proxy

_COUNT: Final = 20
_MESSAGES: Final = "v1.messages.upsert"
_CHATS: Final = "v1.chats.upsert"
_FAILED: Final = "message_event_service_events_failed_total"


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Retries at once: an event that is blamed by mistake is a dead letter within a tenth of a second."""
    return {"NATS_REALTIME_NAKBASEDELAY": "10ms", "NATS_DLQBASEDELAYMINUTES": "0.001"}


def _event(event_type: str, number: int) -> builders.Payload:
    if event_type == _MESSAGES:
        return builders.message(message_id=f"M{number}", flow="OUT")
    if event_type == _CHATS:
        return builders.chat(chat_id=f"C{number}")
    phone = f"62814{number:07}"
    if event_type == "v1.contacts.upsert":
        return builders.contact(phone_number=phone, chat_id=f"a_{phone}")
    return builders.connection(agent_id=f"A{number}")


async def _tells(worker: Worker, text: str, within: float = 30.0) -> None:
    """Wait until /ready is 503 and says this: both in one answer, for it may change from one try to the next."""
    deadline = time.monotonic() + within
    while True:
        status, body = await asyncio.to_thread(worker.page, "/ready")
        if status == 503 and text in json.loads(body)["details"].get("postgres", ""):
            return
        assert time.monotonic() < deadline, body
        await asyncio.sleep(0.05)


async def _blames_nobody(probe: CompanyProbe) -> None:
    assert await probe.letters() == 0
    assert await probe.count("exhausted_events") == 0


class Fault(NamedTuple):
    """What an operator or a server does to everybody, how it is undone, and what `/ready` says of it."""

    event_type: str
    breaks: str
    mends: str
    says: str


def _trigger(table: str, sqlstate: str, text: str) -> tuple[str, str]:
    return (
        f"""CREATE FUNCTION {{schema}}.broken() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION '{text}' USING ERRCODE = '{sqlstate}'; END $$;
        CREATE TRIGGER broken BEFORE INSERT OR UPDATE ON {{schema}}.{table}
        FOR EACH ROW EXECUTE FUNCTION {{schema}}.broken()""",
        f"DROP TRIGGER broken ON {{schema}}.{table}; DROP FUNCTION {{schema}}.broken()",
    )


_WRAPAROUND: Final = "database is not accepting commands to avoid wraparound data loss"
_FAULTS: Final = {
    "a sequence at its end": Fault(
        _MESSAGES,
        "ALTER SEQUENCE {schema}.messages_id_seq MAXVALUE 2; SELECT setval('{schema}.messages_id_seq', 2)",
        "ALTER SEQUENCE {schema}.messages_id_seq NO MAXVALUE",
        "messages_id_seq",
    ),
    "another sequence at its end": Fault(
        _CHATS,
        "ALTER SEQUENCE {schema}.chats_id_seq MAXVALUE 2; SELECT setval('{schema}.chats_id_seq', 2)",
        "ALTER SEQUENCE {schema}.chats_id_seq NO MAXVALUE",
        "chats_id_seq",
    ),
    "wraparound": Fault(_MESSAGES, *_trigger("messages", "54000", _WRAPAROUND), _WRAPAROUND),
    "internal errors": Fault(_CHATS, *_trigger("chats", "XX000", "no such luck"), "XX000"),
    "corrupted data": Fault("v1.contacts.upsert", *_trigger("contacts", "XX001", "bad page"), "XX001"),
    "a broken trigger": Fault(
        _MESSAGES, *_trigger("messages", "P0001", "of the operator"), "of the operator"
    ),
    "a trigger that finds all data bad": Fault(
        "v1.connection.update", *_trigger("agents", "22000", "no account is good"), "no account is good"
    ),
    "a full disk": Fault(_CHATS, *_trigger("chats", "53100", "disk full"), "53100"),
    "a pooler without prepared statements": Fault(
        _CHATS, *_trigger("chats", "26000", "prepared statement does not exist"), "pgbouncer 1.21"
    ),
    "a constraint that nothing fulfils": Fault(
        _CHATS,
        "ALTER TABLE {schema}.chats ADD CONSTRAINT broken CHECK (length(chat_id) < 2) NOT VALID",
        "ALTER TABLE {schema}.chats DROP CONSTRAINT broken",
        "constraint broken",
    ),
    "a column that has another name": Fault(
        _MESSAGES,
        "ALTER TABLE {schema}.messages RENAME COLUMN message_text TO text",
        "ALTER TABLE {schema}.messages RENAME COLUMN text TO message_text",
        "message_text",
    ),
    "no partition for the month": Fault(
        _MESSAGES,
        """DO $$ DECLARE part regclass; BEGIN
        FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = '{schema}.messages'::regclass LOOP
            EXECUTE format('DROP TABLE %s', part);
        END LOOP; END $$""",
        "CREATE TABLE {schema}.messages_again PARTITION OF {schema}.messages DEFAULT",
        "no partition of relation",
    ),
}


@pytest.mark.rule("DBE-2")
@pytest.mark.parametrize("fault", _FAULTS.values(), ids=_FAULTS)
async def test_what_is_refused_to_everybody_is_an_outage_and_makes_no_dead_letter(
    shared: Worker, served: CompanyProbe, fault: Fault
) -> None:
    await served.execute(fault.breaks)
    await served.publish_many(
        fault.event_type, [_event(fault.event_type, number) for number in range(_COUNT)]
    )
    await _tells(shared, fault.says)
    await _tells(shared, f"storing {served.company}")
    await _blames_nobody(served)
    await served.execute(fault.mends)
    await served.settled()
    await _blames_nobody(served)
    assert await served.deliveries() == _COUNT
    assert shared.scrape().value(_FAILED, company_id=served.company) == 0
    shared.wait_ready()


@pytest.mark.parametrize("sqlstate", ["P0001", "54000", "22000"])
async def test_an_onboarding_that_is_refused_to_everybody_is_an_outage(
    shared: Worker, served: CompanyProbe, sqlstate: str
) -> None:
    breaks, mends = _trigger("onboarding_log", sqlstate, "no log today")
    await served.execute(breaks)
    messages = [
        builders.message(message_id=f"M{number}", from_phone=f"62814{number:07}") for number in range(_COUNT)
    ]
    await served.publish_many(_MESSAGES, messages)
    refused = f"a test row is not stored either: SQLSTATE {sqlstate}: no log today"
    await _tells(shared, f"{refused} (onboarding {served.company})")
    await served.execute(mends)
    await served.settled()
    await served.holds("onboarding_log", _COUNT)
    await _blames_nobody(served)


async def test_one_event_that_is_refused_among_many_is_a_dead_letter_at_once(
    shared: Worker, served: CompanyProbe
) -> None:
    """And none of its neighbours waits for it: no probe is refused, so nothing pauses."""
    bad = builders.body(served.of_us(builders.message(flow="OUT", message_obj={"n": 0})))
    for number in range(_COUNT):
        await served.publish(_MESSAGES, _event(_MESSAGES, number))
        if number == _COUNT // 2:
            await served.publish(_MESSAGES, bad.replace(b": 0}", b": 1e400000}"))
    await served.settled()
    assert await served.letters() == 1
    assert await served.count("messages") == _COUNT
    assert not [line for line in shared.lines() if f"storing {served.company} waits" in line["msg"]]


async def test_a_bad_event_is_given_up_where_the_operators_constraints_take_no_test_row(
    shared: Worker, served: CompanyProbe
) -> None:
    """Refused for different reasons: the test row clears nobody, and the stream is not held up for ever."""
    await served.execute("ALTER TABLE {schema}.chats ADD CHECK (chat_id LIKE 'C%' OR chat_id LIKE 'bad%')")
    await served.trip("chats", "NEW.chat_id = 'bad'", "22001")
    await served.publish(_CHATS, builders.chat(chat_id="bad"))
    await served.publish(_CHATS, builders.chat(chat_id="C1"))
    await served.settled()
    assert await served.count("chats") == 1
    assert await served.letters() == 1


async def test_an_event_of_an_unknown_agent_is_given_up_where_a_foreign_key_asks_for_agents(
    shared: Worker, served: CompanyProbe
) -> None:
    await served.publish("v1.connection.update", builders.connection(agent_id="known"))
    await served.holds("agents", 1)
    await served.execute(
        "ALTER TABLE {schema}.chats ADD FOREIGN KEY (agent_id) REFERENCES {schema}.agents (agent_id)"
    )
    await served.publish(_CHATS, builders.chat(chat_id="bad", agent_id="unknown"))
    await served.publish(_CHATS, builders.chat(chat_id="good", agent_id="known"))
    await served.settled()
    assert await served.count("chats") == 1
    assert await served.letters() == 1


@pytest.mark.rule("DBE-5")
async def test_many_different_events_refused_in_a_row_do_not_empty_the_stream_into_dead_letters(
    shared: Worker, served: CompanyProbe
) -> None:
    """What passes our checks and is refused one after the other is a wrong deployment: it goes slowly, and is told."""
    await served.trip("chats", "NEW.chat_id LIKE 'bad%'", "22001")
    await served.publish_many(_CHATS, [builders.chat(chat_id=f"bad{number}") for number in range(200)])
    await _tells(shared, "different events in a row were refused by PostgreSQL: SQLSTATE 22001")
    assert await served.letters() < 10
    await served.untrip("chats")
    await served.settled(within=60)
    assert await served.letters() < 10
    shared.wait_ready()


@pytest.mark.parametrize("sqlstate", ["XX000", "22023"])
async def test_a_connection_that_is_refused_is_an_outage_whatever_the_code(
    launch: Launch, probe: CompanyProbe, postgres_server: PostgresServer, sqlstate: str
) -> None:
    async with Proxy(postgres_server.port) as way:
        dsn = postgres_server.dsn.replace(str(postgres_server.port), str(way.port))
        # The proxy is of this loop, which must not be blocked.
        worker = launch(probe.company, postgres_dsn=dsn, ready=False, NATS_REALTIME_NAKBASEDELAY="10ms")
        await comes_true(lambda: worker.page("/ready")[0] == 200)
        way.refuse(sqlstate, "no room at the inn")
        await probe.publish_many(_MESSAGES, [_event(_MESSAGES, number) for number in range(_COUNT)])
        await _tells(worker, f"cannot connect: SQLSTATE {sqlstate}: no room at the inn")
        # Each try of the worker's is a new connection.
        await comes_true(lambda: way.refused > 10)
        await _blames_nobody(probe)
        way.heal()
        await probe.settled()
        await probe.holds("messages", _COUNT)
        await _blames_nobody(probe)
        assert await probe.deliveries() == _COUNT


# Events and housekeeping may use up so many before the server refuses.
_LEFT: Final = 5000
# Where PostgreSQL stops: so many before transaction ids come round, half of all away from the oldest.
_STOPS: Final = 2**31 - 3_000_000


class WornServer(PostgresServer):
    """PostgreSQL that can be brought to the end of its transaction ids."""

    def __init__(self) -> None:
        super().__init__(settings={"track_commit_timestamp": "off", "autovacuum": "off"})

    async def wear_out(self) -> None:
        """Come back with `_LEFT` transaction ids left. A replication slot keeps vacuum from rescuing it."""
        connection = await asyncpg.connect(self.dsn)
        oldest = await connection.fetchval("SELECT min(datfrozenxid::text::bigint) FROM pg_database")
        await connection.execute("CREATE TABLE public.held ()")
        await connection.execute("SELECT pg_create_logical_replication_slot('held', 'pgoutput')")
        await connection.close()
        await asyncio.to_thread(self.stop)
        await asyncio.to_thread(self._move_to, oldest + _STOPS - _LEFT)
        await asyncio.to_thread(self.start)

    def _move_to(self, xid: int) -> None:
        account = self._account
        segment = self._data / "pg_xact" / f"{xid // 2**20:04X}"
        segment.write_bytes(bytes(2**18))
        if account:
            os.chown(segment, account.pw_uid, account.pw_gid)
        self._run("pg_resetwal", "-x", str(xid), "-D", str(self._data))

    async def use_up(self) -> None:
        """Take what is left of them."""
        connection = await asyncpg.connect(self.dsn)
        with pytest.raises(asyncpg.ProgramLimitExceededError):
            await connection.execute(
                f"""DO $$ BEGIN FOR i IN 1..{2 * _LEFT} LOOP
                    BEGIN INSERT INTO public.held DEFAULT VALUES; EXCEPTION WHEN data_exception THEN NULL; END;
                END LOOP; END $$"""
            )
        await connection.close()

    async def rescue(self) -> None:
        """What an operator does."""
        connection = await asyncpg.connect(self.dsn)
        await connection.execute("SELECT pg_drop_replication_slot('held')")
        for database in ("template1", "postgres"):
            other = await asyncpg.connect(self.dsn_of(database))
            await other.execute("VACUUM (TRUNCATE false)")  # truncating takes a transaction id
            await other.close()
        await connection.close()


@pytest.fixture
async def worn(company: str) -> AsyncIterator[tuple[CompanyProbe, NatsServer, WornServer]]:
    """The test's company on servers of its own."""
    with NatsServer() as broker, WornServer() as postgres:
        client = await nats.connect(broker.url)
        await postgres.wear_out()
        async with visited(company, client, postgres.dsn) as probe:
            yield probe, broker, postgres
        await client.close()


async def test_a_server_that_refuses_writes_for_fear_of_wraparound_makes_no_dead_letter(
    launch: Launch, worn: tuple[CompanyProbe, NatsServer, WornServer]
) -> None:
    probe, broker, postgres = worn
    quick = {"NATS_REALTIME_NAKBASEDELAY": "10ms"}
    worker = launch(probe.company, nats_url=broker.url, postgres_dsn=postgres.dsn, also=quick)
    await postgres.use_up()
    await probe.publish_many(_MESSAGES, [_event(_MESSAGES, number) for number in range(_COUNT)])
    await _tells(worker, "wraparound")
    assert await probe.letters() == 0
    await postgres.rescue()
    await probe.settled(within=60)
    await probe.holds("messages", _COUNT)
    await _blames_nobody(probe)
