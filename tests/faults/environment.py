"""What a fault is injected into: a company with a worker, servers, proxies and load."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import uuid4

import asyncpg
import nats
from nats.aio.client import Client
from nats.js import JetStreamContext

from events.subjects import Tenant
from streams.config.credentials import ANONYMOUS
from streams.jetstream.client import NatsClient
from testkit.oracle import Published, Version
from testkit.servers import NatsServer, PostgresServer
from testkit.worker import Worker
from tests.acceptance.conftest import Launch
from tests.faults.fault import Fault
from tests.faults.load import Load
from tests.nats_servers import ConfigurableNats
from tests.servers.postgres_pair import PostgresPair
from tests.servers.proxy import Proxy

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
# Seconds for an answer of the JetStream API.
_API: Final = 5.0
# So many messages stored show that events flow again.
_MORE: Final = 20
Database = PostgresServer | PostgresPair  # one server, or whichever of two is the primary


def postgres() -> PostgresServer:
    """A server that several runs may share: each has a database of its own."""
    return PostgresServer(settings=dict(SETTINGS_OF_POSTGRES))


class Environment:
    """Once `opened`: servers up, worker ready (unless the fault is `cold`), nothing published.

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

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """See the class."""
        async with self._stack:
            await self._open()
            yield self

    async def _open(self) -> None:
        async with self.admin("postgres") as admin:
            await admin.execute(f"CREATE DATABASE {self._database}")
        self._stack.push_async_callback(self._drop)
        self.client = await connected(await self._open_servers())
        self._stack.push_async_callback(self.client.close)
        await self._prepare()
        self.launcher = Launch(self._folder, *self._urls())
        self._stack.callback(self.launcher.kill_all)
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
        self.nats = self._stack.enter_context(ConfigurableNats(settings=EVERYBODY))
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
        return dict(self.fault.settings)

    def launch(self) -> Worker:
        """Start one more worker; does not wait until it is ready."""
        worker = self.launcher(self.company, ready=False, also={**SETTINGS, **self._settings()})
        self.workers.append(worker)
        return worker

    def expect_end(self, worker: Worker) -> None:
        """The end of this worker is part of the fault."""
        self.workers.remove(worker)

    @asynccontextmanager
    async def admin(self, database: str = "") -> AsyncIterator[Connection]:
        """A connection of an operator to the run's database, or to another one."""
        connection = await asyncpg.connect(self.database.dsn_of(database or self._database), timeout=10)
        try:
            yield connection
        finally:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                await connection.close(timeout=5)

    async def api(self, subject: str, body: object = None, within: float = _API) -> dict[str, Any]:
        """An answer of the JetStream API, errors too. Raises `nats.errors.Error`."""
        payload = b"" if body is None else json.dumps(body).encode()
        answer = await self.client.request(f"$JS.API.{subject}", payload, timeout=within)
        reply: dict[str, Any] = json.loads(answer.data)
        return reply

    async def change_stream(self, stream: str, changes: Mapping[str, object]) -> dict[str, Any]:
        """Change the configuration of a stream; what it was. Raises `nats.errors.Error`."""
        before: dict[str, Any] = (await self.api(f"STREAM.INFO.{stream}"))["config"]
        answer = await self.api(f"STREAM.UPDATE.{stream}", {**before, **changes}, 2 * _API)
        assert "error" not in answer, answer["error"]
        return before

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

    async def dead_letter_server(self) -> NatsServer:
        """The server that takes dead letters."""
        return self.nats

    def as_told(self, published: Iterable[Published]) -> list[Published]:
        """The events with the versions that the worker was told."""
        return list(published)

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

    async def goes_on(self, what: str, within: float) -> None:
        """Wait until messages that are published from now on are stored; a problem if that takes too long."""
        known = len(self.load.messages())

        async def stored() -> bool:
            ids = self.load.messages()[known : known + _MORE]
            return len(ids) == _MORE and await self.all_stored(ids)

        await self.until(what, stored, within)

    async def _drop(self) -> None:
        async with self.admin("postgres") as admin:
            await admin.execute(f"DROP DATABASE {self._database} WITH (FORCE)")


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
