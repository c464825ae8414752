"""The connections of one worker: a small pool, shared by all its tenants."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakSet

import asyncpg

from tables.connection.dsn import Host, parse
from tables.connection.home_slots import HomeSlots
from tables.connection.hosts import ONLY_HOST_TIMEOUT, Connector, HostConnection
from tables.connection.session import is_pooled, require_prepared, warn_of_missing
from tables.errors import POOLED, READ_ONLY, QueryTimeout, StorageError, Unavailable, connecting, translated

if TYPE_CHECKING:
    from asyncpg.transaction import Transaction

    Proxy = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Connection = Proxy | asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]

logger = logging.getLogger(__name__)

ACQUIRE_TIMEOUT: Final = 10.0
# After this a server that does not answer loses the connection.
RELEASE_TIMEOUT: Final = 2.0
# With the rest of a close it stays below the 2.5 s that a part of the worker has for its stop.
CLOSE_TIMEOUT: Final = 1.5
# Seconds of use after which another connection checks the host, and between two such checks.
SUSPECT_AFTER: Final = 5.0
# Seconds after which a loan goes back to the driver's pool, which closes connections that are worn out.
LOAN_SECONDS: Final = 60.0


async def _keep_session(_: object) -> None:
    """Nothing to reset: every statement runs in a transaction, and settings are local to it."""


class _Loan(NamedTuple):
    """A connection of a driver's pool: its proxy, which is useless once it has been given back, and itself."""

    pool: Pool
    proxy: Proxy
    itself: HostConnection
    since: float  # `time.monotonic()`


class Database:
    """Opens, lends and closes connections; errors leave it as `tables.errors`.

    With several hosts, one that no longer answers is left within some ten seconds: all its connections are dropped.
    """

    def __init__(self, dsn: str, *, size: int = 10) -> None:
        """Raises `DsnError` if the text is none that can be used."""
        self._dsn = parse(dsn)
        self._size = size
        self._connector = Connector(self._dsn)
        # One connection each: the driver's pool does not let us choose among several.
        self._pools: Sequence[Pool] = ()
        self._slots = HomeSlots(size)
        # Loans that nobody uses, by slot. The driver's pool takes a task, three timers and some turns of the event loop
        # for each loan: a tenth of the time of small batches in a profile.
        self._spare: dict[int, _Loan] = {}
        self._known: WeakSet[HostConnection] = WeakSet()
        self._lent: dict[HostConnection, float] = {}
        self._trials: dict[Host | None, asyncio.Task[None]] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect. Raises `Unavailable` when no server answers or a pooler is in the way; may be called again."""
        self._pools = await self._make_pools()
        try:
            async with self.connection() as connection:
                await warn_of_missing(connection)
        except BaseException:
            pools, self._pools = self._pools, ()
            self._spare.clear()
            for pool in pools:
                pool.terminate()
            raise
        for note in self._dsn.notes:
            logger.warning("%s", note)
        if self._connector.several and self._watcher is None:
            self._watcher = asyncio.ensure_future(self._watch())

    async def close(self) -> None:
        """Give every connection back, within some seconds; safe before `open` and when repeated."""
        pools, self._pools = self._pools, ()
        spare, self._spare = list(self._spare.values()), {}
        tasks = [task for task in (self._watcher, *self._trials.values()) if task is not None]
        self._watcher = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not pools:
            return
        closing = asyncio.ensure_future(_close(pools, spare))
        done, _ = await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT)
        if not done:
            for pool in pools:
                pool.terminate()
            closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)

    @asynccontextmanager
    async def connection(self, home: str | None = None) -> AsyncIterator[Connection]:
        """A connection, outside any transaction. Raises `Unavailable` before `open`.

        `home` is the schema whose statements are run: it gets the connection that has their plans, if that is idle.
        """
        # Every host has its own time; what goes beyond that of one comes on top.
        limit = ACQUIRE_TIMEOUT + max(0.0, self._connector.longest - ONLY_HOST_TIMEOUT)
        deadline = time.monotonic() + limit
        slot = self._slots.take_at_once(home)
        if slot is None:
            with connecting():
                async with asyncio.timeout(limit):
                    slot = await self._slots.take(home)
        try:
            loan = await self._borrow(slot, deadline)
            self._lent[loan.itself] = time.monotonic()
            kept = False
            try:
                with translated():
                    yield loan.proxy
                kept = self._keep(slot, loan)
            except StorageError as error:
                self._judge(loan.itself, error)
                raise
            finally:
                self._lent.pop(loan.itself, None)
                if not kept:
                    await _give_back(loan)
        finally:
            self._slots.put_back(slot)

    async def _borrow(self, slot: int, deadline: float) -> _Loan:
        """The connection of a slot. Raises `Unavailable`."""
        loan = self._spare.pop(slot, None)
        if loan is not None:
            if not loan.itself.is_closed():
                return loan
            await _give_back(loan)
        if not self._pools:
            raise Unavailable("not connected yet")
        pool = self._pools[slot]
        with connecting():
            proxy: Any = await pool.acquire(timeout=deadline - time.monotonic())
        return _Loan(pool, proxy, proxy.itself, time.monotonic())

    def _keep(self, slot: int, loan: _Loan) -> bool:
        """Keep a loan for the next one who has the slot; False if it has to go back to the driver's pool."""
        if (
            not self._pools
            or loan.pool is not self._pools[slot]
            or loan.itself.is_closed()
            or loan.itself.is_in_transaction()
            or time.monotonic() - loan.since > LOAN_SECONDS
        ):
            return False
        self._spare[slot] = loan
        return True

    @asynccontextmanager
    async def transaction(self, home: str | None = None, *, commit: bool = True) -> AsyncIterator[Connection]:
        """A connection in a transaction: committed on leaving, rolled back on an exception and without `commit`.

        `home` as for `connection`.
        """
        async with self.connection(home) as connection:
            with translated():
                transaction = connection.transaction()
                try:
                    # Within: a beginning that is cut short leaves a session that nobody may be lent.
                    await transaction.start()
                    yield connection
                except BaseException as error:
                    await _roll_back(connection, transaction, error)
                    raise
                await (transaction.commit() if commit else transaction.rollback())

    def session(self) -> AbstractAsyncContextManager[HostConnection]:
        """A connection beside the pool, for work that takes minutes; closed on leaving."""
        return self._connector.session()

    async def ping(self) -> None:
        """Raises `StorageError` unless the server answers and takes writes."""
        async with self.connection() as connection:
            if await connection.fetchval("SELECT pg_is_in_recovery()"):
                raise Unavailable("the server is a read-only standby", READ_ONLY)

    async def _make_pools(self) -> list[Pool]:
        pools: list[Pool] = []
        with connecting():
            for number in range(self._size):
                pool = await asyncpg.create_pool(
                    connect=self._connect,
                    connection_class=HostConnection,
                    # None is kept open for its own sake: the driver would do that with stack traces in our log.
                    min_size=0,
                    init_size=0 if number else 1,
                    max_size=1,
                    reset=_keep_session,
                )
                pools.append(pool)
        return pools

    async def _connect(self, *_: object, **__: object) -> HostConnection:
        connection = await self._connector.connect()
        try:
            # A pooler may have been put in between, or changed, since the last one was opened.
            if await is_pooled(connection):
                await require_prepared(self._connector.session)
        except BaseException:
            connection.terminate()
            raise
        self._known.add(connection)
        return connection

    def _judge(self, connection: HostConnection, error: StorageError) -> None:
        """Drop a connection that is useless after this error, and check its host."""
        # The server's own limit is shorter: it does not even say that time is up.
        is_silent = isinstance(error, QueryTimeout) and error.sqlstate is None
        # After a fail-over a session leads to the old primary for ever; what is taken for prepared is not.
        if is_silent or error.sqlstate in (READ_ONLY, *POOLED):
            connection.terminate()
        if is_silent:
            self._try_host(connection.host)
        elif error.sqlstate == READ_ONLY and self._connector.several:
            self._leave(connection.host)

    def _try_host(self, host: Host | None) -> None:
        if host not in self._trials:
            task = self._trials[host] = asyncio.ensure_future(self._trial(host))
            task.add_done_callback(lambda _: self._trials.pop(host, None))

    async def _trial(self, host: Host | None) -> None:
        if not await self._connector.answers(host):
            logger.warning(
                "PostgreSQL on %s does not answer: its connections are dropped", host or "the host"
            )
            self._leave(host)

    def _leave(self, host: Host | None) -> None:
        self._connector.avoid(host)
        for connection in [each for each in self._known if each.host == host]:
            connection.terminate()

    async def _watch(self) -> None:
        """Check the hosts of connections that are in use for long: a frozen server keeps them open and is silent."""
        while True:
            await asyncio.sleep(SUSPECT_AFTER / 5)
            now = time.monotonic()
            for connection, since in list(self._lent.items()):
                if now - since > SUSPECT_AFTER:
                    self._lent[connection] = now
                    self._try_host(connection.host)


async def _give_back(loan: _Loan) -> None:
    with translated(), suppress(TimeoutError):
        await loan.pool.release(loan.proxy, timeout=RELEASE_TIMEOUT)


async def _close(pools: Sequence[Pool], spare: Sequence[_Loan]) -> None:
    await asyncio.gather(*map(_give_back, spare))
    await asyncio.gather(*(pool.close() for pool in pools))


async def _roll_back(connection: Connection, transaction: Transaction, error: BaseException) -> None:
    """Undo what was done, or drop the connection, which undoes it too, if the server does not answer."""
    with suppress(Exception):
        if not isinstance(error, TimeoutError):
            async with asyncio.timeout(RELEASE_TIMEOUT):
                await transaction.rollback()
            return
    with suppress(asyncpg.InterfaceError):
        connection.terminate()
