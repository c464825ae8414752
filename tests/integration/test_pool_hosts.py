"""Several hosts in one connection text: each has its own time limit, and a host that hangs is left."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tables.connection import hosts, pool
from tables.connection.pool import Database
from tables.errors import StorageError, Unavailable
from testkit.servers import PostgresServer, free_port
from tests.servers.postgres_pair import PostgresNode


@pytest.fixture(scope="module")
def frozen_later() -> Iterator[PostgresServer]:
    """A server of this module's own, which tests freeze and let go on."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a host that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextlib.asynccontextmanager
async def opened(dsn: str, size: int = 5) -> AsyncIterator[Database]:
    database = Database(dsn, size=size)
    try:
        await database.open()
        yield database
    finally:
        await database.close()


async def port_of(database: Database) -> int:
    async with database.connection() as connection:
        return int(await connection.fetchval("SELECT inet_server_port()"))


def both(first: int, second: PostgresServer, query: str = "") -> str:
    return f"postgresql://postgres@127.0.0.1:{first},127.0.0.1:{second.port}/postgres{query}"


@pytest.mark.parametrize(
    "text", ["postgres://postgres@:{}/postgres", "user=postgres dbname=postgres port={}"]
)
async def test_a_port_without_a_host_is_the_port_that_is_asked(
    text: str, postgres_server: PostgresServer
) -> None:
    async with opened(text.format(postgres_server.port)) as database:
        assert await port_of(database) == postgres_server.port


async def test_a_host_that_hangs_does_not_keep_the_next_from_being_tried(
    silent: int, postgres_server: PostgresServer
) -> None:
    async with opened(both(silent, postgres_server, "?connect_timeout=1")) as database:
        assert await port_of(database) == postgres_server.port


async def test_the_host_that_worked_last_is_tried_first(silent: int, postgres_server: PostgresServer) -> None:
    async with opened(both(silent, postgres_server, "?connect_timeout=1")) as database:
        async with contextlib.AsyncExitStack() as stack:
            started = time.monotonic()
            for _ in range(5):
                await stack.enter_async_context(database.connection())
        assert time.monotonic() - started < 1, "the host that hangs was tried again"


async def test_every_host_is_named_when_none_takes_a_connection(silent: int) -> None:
    closed = free_port()
    dsn = f"postgresql://postgres@127.0.0.1:{silent},127.0.0.1:{closed}/postgres?connect_timeout=1"
    with pytest.raises(Unavailable, match=f"127.0.0.1:{silent}: no answer .* 127.0.0.1:{closed}: "):
        await Database(dsn).open()


async def test_a_host_that_freezes_under_a_statement_is_left_and_no_other_connection_stays(
    frozen_later: PostgresServer, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SUSPECT_AFTER", 0.5)
    async with opened(both(frozen_later.port, postgres_server, "?connect_timeout=1")) as database:
        async with database.connection(), database.connection():
            assert await port_of(database) == frozen_later.port
        frozen_later.pause()
        try:
            started = time.monotonic()
            for _ in range(2):
                with pytest.raises(StorageError):
                    await asyncio.gather(port_of(database), port_of(database))
                if time.monotonic() - started > 1:
                    break
            assert await asyncio.gather(*(port_of(database) for _ in range(5))) == [postgres_server.port] * 5
        finally:
            frozen_later.resume()


async def test_a_transaction_on_a_host_that_freezes_ends_and_its_slot_comes_back(
    frozen_later: PostgresServer, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SUSPECT_AFTER", 0.5)
    async with opened(both(frozen_later.port, postgres_server, "?connect_timeout=1"), size=1) as database:

        async def write() -> None:
            async with database.transaction() as connection:
                await connection.execute("SELECT 1")
                frozen_later.pause()
                await connection.execute("SELECT 2")

        try:
            with pytest.raises(Unavailable):
                await write()
            assert await port_of(database) == postgres_server.port
        finally:
            frozen_later.resume()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_frozen_server_holds_up_neither_cancellation_nor_close(
    frozen_later: PostgresServer, cancelled: bool
) -> None:
    database = Database(frozen_later.dsn)
    await database.open()

    async def write() -> None:
        async with database.transaction() as connection:
            frozen_later.pause()
            await connection.execute("SELECT 1")

    writing = asyncio.create_task(write())
    try:
        while not frozen_later_is_asked(database):
            await asyncio.sleep(0.01)
        started = time.monotonic()
        if cancelled:
            writing.cancel()
            await asyncio.wait({writing}, timeout=15)
            assert writing.done()
        await database.close()
        assert time.monotonic() - started < pool.CLOSE_TIMEOUT + 2 * pool.RELEASE_TIMEOUT + 3
    finally:
        frozen_later.resume()
        await asyncio.gather(writing, return_exceptions=True)


def frozen_later_is_asked(database: Database) -> bool:
    return bool(database._lent)


@pytest.mark.rule("RUN-9")
async def test_a_standby_is_passed_over_and_found_when_it_is_promoted(frozen_later: PostgresServer) -> None:
    with PostgresNode(frozen_later) as standby:
        dsn = both(standby.port, frozen_later)
        async with opened(dsn) as database:
            assert await port_of(database) == frozen_later.port
            await standby.promote()
            frozen_later.kill()
            try:
                async with asyncio.timeout(20):
                    while not await moved(database, standby.port):
                        await asyncio.sleep(0.05)
            finally:
                frozen_later.start()


async def test_a_standby_alone_is_refused_where_a_primary_is_wanted(frozen_later: PostgresServer) -> None:
    with (
        PostgresNode(frozen_later) as standby,
        pytest.raises(Unavailable, match="standby, primary is wanted"),
    ):
        await Database(f"{standby.dsn}?target_session_attrs=primary").open()


async def moved(database: Database, port: int) -> bool:
    try:
        return await port_of(database) == port
    except StorageError:
        return False


async def test_the_limit_of_a_host_is_that_of_the_connection_text() -> None:
    def limit(text: str) -> float:
        return Database(text)._connector.limit

    assert limit("postgres://a,b/wa") == hosts.EACH_HOST_TIMEOUT
    assert limit("postgres://a/wa") == hosts.ONLY_HOST_TIMEOUT
    assert limit("postgres://a,b/wa?connect_timeout=7") == 7


@pytest.mark.rule("SET-6")
@pytest.mark.parametrize("query", ["sslmode=disable&connect_timeout=5", "sslmode=prefer&TimeZone=Asia/Jakarta",
                                   "channel_binding=prefer&gssencmode=disable&keepalives=1",
                                   "pool_max_conns=10&default_query_exec_mode=exec", "pgbouncer=true",
                                   "options=-c%20work_mem%3D8MB", "target_session_attrs=read-write"])  # fmt: skip
async def test_a_text_of_each_kind_connects(database_dsn: str, query: str) -> None:
    async with opened(f"{database_dsn}?{query}") as database:
        await database.ping()
        async with database.connection() as connection:
            assert await connection.fetchval("SHOW timezone") == "UTC"
            assert await connection.fetchval("SHOW work_mem") == ("8MB" if "work_mem" in query else "4MB")


async def test_keyword_text_of_go_connects(postgres_server: PostgresServer) -> None:
    text = (
        f"host=127.0.0.1 user=postgres password=x dbname=postgres port={postgres_server.port} sslmode=disable"
    )
    async with (
        opened(f"{text} TimeZone=UTC application_name=bots") as database,
        database.connection() as connection,
    ):
        assert await connection.fetchval("SHOW application_name") == "bots"


@pytest.mark.rule("DBE-1")
@pytest.mark.parametrize("state", ["XX000", "22023", "54000", "23505"])
async def test_no_event_is_to_blame_for_a_connection_that_was_not_opened(
    database_dsn: str, state: str
) -> None:
    refuse = (
        "CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$; "
        "CREATE EVENT TRIGGER refuse ON login EXECUTE FUNCTION public.refuse()"
    )
    async with opened(database_dsn) as database, database.connection() as connection:
        await connection.execute(refuse)
        with pytest.raises(Unavailable) as caught:
            async with database.connection():
                pass
        assert caught.value.sqlstate == state
        await connection.execute("DROP EVENT TRIGGER refuse")
