"""Workers on PostgreSQL as operators run it: a standby, a pooler, a dump that takes hours, connection texts of Go."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from functools import partial

import asyncpg
import pytest

from tables.queries import quoted
from testkit.servers import PostgresServer
from testkit.worker import Worker, environment
from tests import builders
from tests.acceptance.company_probe import CompanyProbe, comes_true
from tests.acceptance.conftest import Launch, visited
from tests.programs import command, required
from tests.servers.pooler import IGNORED, KEEPS_PREPARED, Pooler, version
from tests.servers.postgres_pair import STANDBY, PostgresNode

_COUNT = 200


@pytest.fixture
async def cluster() -> AsyncIterator[tuple[PostgresNode, PostgresNode]]:
    """A primary whose commits wait for its standby."""
    with PostgresNode() as primary, PostgresNode(primary) as standby:
        await primary.wait_for(STANDBY)
        yield primary, standby


def _message(number: int) -> builders.Payload:
    phone = f"62814{number:07}"
    return builders.message(message_id=f"M{number}", from_phone=phone, chat_id=f"a_{phone}")


async def _publish(probe: CompanyProbe, numbers: range) -> None:
    for number in numbers:
        await probe.publish("v1.messages.upsert", _message(number))
        await asyncio.sleep(0.01)


def _has_processed(worker: Worker, count: int) -> bool:
    return worker.scrape().value("message_event_service_events_processed_total") > count


async def test_the_first_host_hangs_the_second_is_promoted_and_events_flow_again(
    launch: Launch, probe: CompanyProbe, cluster: tuple[PostgresNode, PostgresNode]
) -> None:
    primary, standby = cluster
    dsn = (
        f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/postgres?connect_timeout=2"
    )
    worker = launch(probe.company, postgres_dsn=dsn)
    load = asyncio.create_task(_publish(probe, range(_COUNT)))
    await comes_true(partial(_has_processed, worker, 20))
    primary.pause()
    try:
        await standby.promote()
        await load
        # Less than the 75 s that the driver's one time limit for all hosts took.
        async with visited(probe.company, probe.nc, standby.dsn) as beside:
            await beside.holds("messages", _COUNT, within=30)
            await beside.settled()
            assert await beside.letters() == 0
            assert await beside.count("exhausted_events") == 0
        worker.wait_ready()
    finally:
        primary.resume()


async def test_a_dump_that_lasts_keeps_no_replica_from_starting_and_no_event_waiting(
    launch: Launch, probe: CompanyProbe, postgres_dsn: str
) -> None:
    worker = launch(probe.company)
    await probe.publish("v1.messages.upsert", _message(0))
    await probe.holds("messages", 1)
    today = datetime.datetime.now(datetime.UTC).date()
    month = (today.replace(day=1) + datetime.timedelta(days=32)).strftime("messages_y%Ym%m")
    await probe.execute(f"ALTER TABLE {{schema}}.messages DETACH PARTITION {{schema}}.{month}")
    await probe.execute(f"DROP TABLE {{schema}}.{month}")
    dump = await asyncpg.connect(postgres_dsn)
    try:
        await dump.execute("BEGIN")
        await dump.execute(f"SELECT FROM {quoted(probe.tenant.schema)}.messages")
        # A writer of the test stands for the worker's: none of its statements may wait for two seconds.
        await probe.execute("SET lock_timeout = '2s'")
        starting = asyncio.create_task(asyncio.to_thread(launch, probe.company))
        number = 0
        while not starting.done():
            number += 1
            await probe.publish("v1.messages.upsert", _message(number))
            await probe.execute("UPDATE {schema}.messages SET to_phone = '1' WHERE message_id = 'M0'")
        await starting
        await probe.holds("messages", number + 1)
        assert worker.page("/ready")[0] == 200
        await dump.execute("COMMIT")
    finally:
        await dump.close()

    async def is_made() -> bool:
        names = await probe.database.fetchval(
            "SELECT count(*) FROM pg_tables WHERE schemaname = $1 AND tablename = $2",
            probe.tenant.schema,
            month,
        )
        return bool(names)

    await _until(is_made)
    assert await probe.letters() == 0


async def _until(ask: object) -> None:
    async with asyncio.timeout(40):
        while not await ask():  # type: ignore[operator]
            await asyncio.sleep(0.1)


async def test_an_old_pooler_in_transaction_mode_is_named_and_nothing_is_lost_by_it(
    launch: Launch, probe: CompanyProbe, postgres_server: PostgresServer
) -> None:
    required("pgbouncer")
    if version() >= KEEPS_PREPARED:
        pytest.skip("this pgbouncer keeps prepared statements")
    with Pooler(postgres_server, "pool_mode = transaction", IGNORED) as pooler:
        worker = launch(probe.company, postgres_dsn=pooler.dsn_of("postgres"), ready=False)
        await comes_true(lambda: "pooler" in worker.page("/ready")[1])
        assert worker.page("/ready")[0] == 503
        pooler.stop()
        pooler.lines = ("pool_mode = session", IGNORED)
        pooler.start()
        worker.wait_ready()
        await probe.publish_many("v1.messages.upsert", [_message(number) for number in range(50)])
        await probe.holds("messages", 50)
        await probe.settled()
        # Back again, under a worker that runs: waited out, and no event is blamed.
        pooler.stop()
        pooler.lines = ("pool_mode = transaction", IGNORED)
        pooler.start()
        await probe.publish_many("v1.messages.upsert", [_message(number) for number in range(50, 100)])
        await comes_true(lambda: worker.page("/ready")[0] == 503)
        pooler.stop()
        pooler.lines = ("pool_mode = session", IGNORED)
        pooler.start()
        await probe.holds("messages", 100)
        await probe.settled()
        assert await probe.letters() == 0
        assert await probe.count("exhausted_events") == 0


async def test_a_text_of_go_starts_and_what_is_ignored_is_told_once(
    launch: Launch, probe: CompanyProbe, postgres_server: PostgresServer
) -> None:
    text = (
        f"host=127.0.0.1 port={postgres_server.port} user=postgres password='se cret' dbname=postgres sslmode=disable "
        "TimeZone=Asia/Jakarta pool_max_conns=50 connect_timeout=10"
    )
    worker = launch(probe.company, postgres_dsn=text)
    await probe.publish("v1.messages.upsert", _message(1))
    await probe.holds("messages", 1)
    told = [line for line in worker.log.read_text().splitlines() if "pool_max_conns" in line]
    assert len(told) == 1
    assert "POSTGRES_POOL_SIZE" in told[0]
    assert "timezone" in told[0]
    assert "se cret" not in worker.log.read_text()


@pytest.mark.rule("SET-6")
@pytest.mark.parametrize("query", ["?pool_max_connections=5", "?synchronous_commit=off", "?sslmode=yes"])
def test_a_parameter_that_is_not_known_ends_the_start_and_is_named(
    nats_url: str, postgres_dsn: str, company: str, query: str
) -> None:
    done = command("worker", env=environment([company], nats_url, postgres_dsn + query))
    assert done.returncode == 1
    assert "POSTGRES_DSN" in done.stderr
    assert query[1:].partition("=")[0] in done.stderr


def test_topology_tells_of_asynchronous_standbys(nats_url: str, company: str) -> None:
    with PostgresServer() as primary, PostgresNode(primary):
        done = command("topology", env=environment([company], nats_url, primary.dsn))
    assert done.returncode == 0, done.stderr
    assert "synchronous_standby_names" in done.stdout
    away = command("topology", env=environment([company], nats_url, primary.dsn))
    assert away.returncode == 0
    assert "PostgreSQL was not asked" in away.stdout
