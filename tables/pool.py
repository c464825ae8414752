"""The connections of one worker: a small pool, shared by all its tenants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import asyncpg

from tables.errors import READ_ONLY, Unavailable, connecting, translated

if TYPE_CHECKING:
    Lent = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]

# Below the shortest ack wait (30 s), so that a statement ends before its events are delivered again.
STATEMENT_TIMEOUT: Final = 20.0
LOCK_TIMEOUT: Final = 10.0
ACQUIRE_TIMEOUT: Final = 10.0
CLOSE_SECONDS: Final = 1.0
# Each tenant has some dozens of statements; asyncpg's default of 100 would thrash with a few tenants.
STATEMENT_CACHE: Final = 1000


async def _keep_session(_: object) -> None:
    """Nothing to reset: every statement runs in a transaction, and settings are local to it."""


class Database:
    """Opens, lends and closes connections; errors leave it as `tables.errors`."""

    def __init__(self, dsn: str, *, size: int = 10) -> None:
        self._dsn = dsn
        self._size = size
        self._pool: Pool | None = None

    async def open(self) -> None:
        """Connect. Raises `Unavailable` when no server answers; may be called again."""
        with connecting():
            self._pool = await asyncpg.create_pool(
                self._dsn,
                min_size=1,
                max_size=self._size,
                reset=_keep_session,
                statement_cache_size=STATEMENT_CACHE,
                max_cached_statement_lifetime=0,
                command_timeout=STATEMENT_TIMEOUT + 5,
                timeout=ACQUIRE_TIMEOUT,
                server_settings={
                    "application_name": "daisi-wa-events-processor",
                    "statement_timeout": str(int(STATEMENT_TIMEOUT * 1000)),
                    "lock_timeout": str(int(LOCK_TIMEOUT * 1000)),
                    "idle_in_transaction_session_timeout": "30000",
                    "jit": "off",
                    # Every statement takes whole batches through arrays, so no plan is better for one than for another.
                    # Five plans of each, on each connection, for each tenant and 100 partitions cost a quarter of the
                    # speed of updates.
                    "plan_cache_mode": "force_generic_plan",
                    "enable_seqscan": "off",
                    "timezone": "UTC",
                },
            )

    async def close(self) -> None:
        """Give every connection back; safe before `open` and when repeated."""
        pool, self._pool = self._pool, None
        if pool is not None:
            # Cut off by then: a server that does not answer would hold the worker's stop up. Terminates by itself.
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await pool.close()

    @property
    def pool(self) -> Pool:
        """The pool. Raises `Unavailable` before `open`."""
        if self._pool is None:
            raise Unavailable("not connected yet")
        return self._pool

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection, outside any transaction."""
        pool = self.pool
        connection = await self._acquire(pool)
        try:
            with translated():
                yield connection
        except Unavailable as error:
            if error.sqlstate == READ_ONLY:
                # After a fail-over this session leads to the old primary for ever (field case C8).
                connection.terminate()
            raise
        finally:
            with translated():
                await pool.release(connection)

    @staticmethod
    async def _acquire(pool: Pool) -> Lent:
        with connecting():
            return await pool.acquire(timeout=ACQUIRE_TIMEOUT)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction: committed on leaving, rolled back on an exception."""
        async with self.connection() as connection:
            with translated():
                async with connection.transaction():
                    yield connection

    async def ping(self) -> None:
        """Raises `StorageError` unless the server answers and takes writes."""
        async with self.connection() as connection:
            if await connection.fetchval("SELECT pg_is_in_recovery()"):
                raise Unavailable("the server is a read-only standby")
