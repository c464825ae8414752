"""What a fault is injected into: a company with a worker, servers, proxies and load."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self
from uuid import uuid4

import asyncpg
import nats
from nats.aio.client import Client
from nats.js import JetStreamContext

from events.subjects import Tenant
from streams.config.credentials import ANONYMOUS
from streams.jetstream.client import NatsClient
from testkit.evidence import Evidence
from testkit.oracle import Published, Version
from testkit.proxy import Proxy
from testkit.servers import NatsServer, PostgresServer
from testkit.worker import Worker
from tests.faults.fault import Fault
from tests.faults.load import Load

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

# So that no run waits long for what takes minutes by default; the dead letters' delays stay long.
SETTINGS: Final = {
    "NATS_REALTIME_ACKWAIT": "2s",
    "NATS_HISTORICAL_ACKWAIT": "2s",
    "NATS_DLQACKWAIT": "2s",
    "NATS_REALTIME_NAKBASEDELAY": "200ms",
    "NATS_HISTORICAL_NAKBASEDELAY": "200ms",
}
# Everybody is a user from the start, so that a right can be taken away without a restart.
EVERYBODY: Final = "authorization { users: [ { user: any, password: any } ] }\nno_auth_user: any\n"
MOST_CONNECTIONS: Final = 40
SETTINGS_OF_POSTGRES: Final = {"max_connections": str(MOST_CONNECTIONS)}
_PATIENCE: Final = 60.0


def postgres() -> PostgresServer:
    """A server that several runs may share: each has a database of its own."""
    return PostgresServer(settings=dict(SETTINGS_OF_POSTGRES))


class Database(Protocol):
    """A PostgreSQL server, or whoever is the primary of several."""

    @property
    def port(self) -> int:
        """Where it listens."""

    def dsn_of(self, database: str) -> str:
        """Where clients connect to one of its databases."""


class Environment:
    """In an `async with` statement: servers up, worker ready (unless the fault is `cold`), nothing published.

    `short`: as in the tests, where an outage takes a second.
    """

    def __init__(
        self, fault: Fault, database: Database, folder: Path, *, seed: int, short: bool = False
    ) -> None:
        self.fault = fault
        self.short = short
        self.rng = random.Random(seed)
        self.company = f"Kopi{uuid4().hex[:12].upper()}nusa"
        self.tenant = Tenant(self.company)
        self.database = database
        self.workers: list[Worker] = []
        self.problems: list[str] = []
        self.doubtful: frozenset[Version] = frozenset()
        self.undelivered: frozenset[Version] = frozenset()
        self.delivered_before = 0
        self._seed = seed
        self._folder = folder
        self._database = f"run_{uuid4().hex}"
        self._stack = AsyncExitStack()

    @property
    def postgres(self) -> PostgresServer:
        """The one PostgreSQL server of a run without a standby."""
        assert isinstance(self.database, PostgresServer)
        return self.database

    @property
    def dsn(self) -> str:
        """The run's own database, past any proxy."""
        return self.database.dsn_of(self._database)

    @property
    def js(self) -> JetStreamContext:
        """JetStream, past any proxy."""
        return self.client.jetstream()

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _open(self) -> None:
        async with self.admin("postgres") as admin:
            await admin.execute(f"CREATE DATABASE {self._database}")
        self._stack.push_async_callback(self._drop)
        self.client = await connected(await self._open_servers())
        self._stack.push_async_callback(self.client.close)
        await self._prepare()
        self._stack.callback(self._kill_all)
        self.launch()
        if not self.fault.cold:
            await asyncio.to_thread(self.workers[0].wait_ready)
        self.load = Load(
            self.client,
            self.company,
            seed=self._seed,
            rate=self.fault.rate,
            without=self.fault.without,
            often=self.fault.often,
        )

    async def _open_servers(self) -> list[str]:
        """Start what the run has for itself; the URLs of NATS for the load."""
        self.nats = self._stack.enter_context(NatsServer(settings=EVERYBODY))
        self.nats_proxy = await self._stack.enter_async_context(Proxy(self.nats.port))
        self.postgres_proxy = await self._stack.enter_async_context(Proxy(self.database.port))
        return [self.nats.url]

    async def _prepare(self) -> None:
        """Make what the worker has to find."""

    def _urls(self) -> tuple[str, str]:
        """Where the worker finds NATS and PostgreSQL."""
        if not self.fault.proxies:
            return self.nats.url, self.dsn
        dsn = f"postgresql://postgres@127.0.0.1:{self.postgres_proxy.port}/{self._database}"
        return f"nats://127.0.0.1:{self.nats_proxy.port}", dsn

    def _settings(self) -> dict[str, str]:
        return {**SETTINGS, **self.fault.settings}

    def launch(self) -> Worker:
        """Start one more worker; does not wait until it is ready."""
        url, dsn = self._urls()
        log = self._folder / f"{self.company}-{len(list(self._folder.glob('*.log')))}.log"
        worker = Worker([self.company], nats_url=url, postgres_dsn=dsn, log=log, **self._settings())
        worker.start()
        self.workers.append(worker)
        return worker

    def expect_end(self, worker: Worker) -> None:
        """The end of this worker is part of the fault."""
        self.workers.remove(worker)

    def admin(self, database: str = "") -> Admin:
        """A connection of an operator to the run's database, or to another one."""
        return Admin(self.database.dsn_of(database or self._database))

    async def rounds(self, most: int) -> AsyncIterator[None]:
        """Once, or in the full form several times with pauses between: the last one ends with its healing."""
        for number in range(1 if self.short else most):
            if number:
                await self.pause(0.1, 2.0)
            yield

    async def pause(self, least: float, most: float) -> None:
        """Let a moment pass, some seconds long."""
        await asyncio.sleep(self.rng.uniform(least, most))

    def outage(self, full: tuple[float, float], short: tuple[float, float]) -> float:
        """How long this fault takes, in seconds."""
        return self.rng.uniform(*(short if self.short else full))

    async def server_of_letters(self) -> NatsServer:
        """The server that takes dead letters."""
        return self.nats

    def put_right(self, evidence: Evidence, published: Sequence[Published]) -> None:
        """Take out of the evidence what the fault itself put in."""

    def complain(self, problem: str) -> None:
        """Something that the comparison of events does not see is not as it must be."""
        self.problems.append(problem)

    async def until(self, what: str, ask: Callable[[], Awaitable[object]], within: float = _PATIENCE) -> bool:
        """Wait until `ask` is true; a problem if that takes too long. Servers may be away meanwhile."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, nats.errors.Error, OSError):
                if await ask():
                    return True
            await asyncio.sleep(0.03)
        self.complain(f"not after {within:g} s: {what}")
        return False

    async def until_told(self, part: str, within: float = 20.0) -> None:
        """Wait until /ready of the first worker names this part as its problem."""

        async def told() -> bool:
            status, text = await asyncio.to_thread(self.workers[0].page, "/ready")
            return status == 503 and part in text

        await self.until(f"/ready tells of {part}", told, within)

    async def all_stored(self, ids: list[str]) -> bool:
        """Whether these messages are stored."""
        statement = f'SELECT count(*) FROM "{self.tenant.schema}".message_keys WHERE message_id = ANY($1)'
        async with self.admin() as database:
            return bool(await database.fetchval(statement, ids) == len(set(ids)))

    def _kill_all(self) -> None:
        for worker in self.workers:
            worker.kill()

    async def _drop(self) -> None:
        async with self.admin("postgres") as admin:
            await admin.execute(f"DROP DATABASE {self._database} WITH (FORCE)")


class Admin:
    """An operator's connection, for an `async with` statement."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    async def __aenter__(self) -> Connection:
        self._connection = await asyncpg.connect(self._dsn, timeout=10)
        return self._connection

    async def __aexit__(self, *_: Any) -> None:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            await self._connection.close(timeout=5)


async def connected(urls: list[str]) -> Client:
    """A client that never gives up."""

    async def ignore(_: Exception) -> None:
        """Errors come back from the calls that meet them."""

    # nats-py's own leaves sockets of failed tries open, which fails whichever test runs when they are noticed.
    client = NatsClient(ANONYMOUS, urls)
    options: dict[str, Any] = {
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.1,
        "connect_timeout": 5,
        "error_cb": ignore,
    }
    await client.connect(urls, **options)
    return client
