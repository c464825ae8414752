"""Indexes for adopted tables that have rows, built concurrently and outside any migration."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from tables.connection.session import are_shared
from tables.errors import QueryTimeout, translated
from tables.queries import load
from tables.schema.advisory_locks import PATIENCE, execute_briefly

if TYPE_CHECKING:
    from tables.connection.pool import Connection, Database

logger = logging.getLogger(__name__)

# Seconds between two log lines about a build.
_LOG_EVERY: Final = 10.0
# Seconds of trying for the short locks that a partitioned table's index needs.
_TRIED_FOR: Final = 10.0
# Milliseconds that a build which is not required waits for transactions older than itself.
_OLD_TRANSACTIONS: Final = 60_000


_SHARED_SESSIONS: Final = (
    "a pooler in transaction mode is in between, where no time limit can be lifted for a build; "
    "run the command migrate with a POSTGRES_DSN of the server itself"
)


class Wanted(NamedTuple):
    """An index that a migration noted because its table had rows."""

    name: str
    table_name: str
    keys: str
    is_unique: bool


async def wanted(database: Database, schema: str, *, required: bool = False) -> list[Wanted]:
    """The indexes not built yet; with `required` those without which nothing can be stored, the unique ones."""
    sql = load("indexes", schema)
    async with database.connection() as connection:
        if not await connection.fetchval(sql["has_wanted"], schema):
            return []
        rows = await connection.fetch(sql["wanted"], required)
    return [Wanted(**dict(row)) for row in rows]


async def build(database: Database, schema: str, *, required: bool = False) -> list[str]:
    """Build what is wanted, one after the other; returns the names. What an interrupted build left is built anew.

    Takes two connections beside the pool. Writers are not held up. Raises `QueryTimeout` while another worker builds,
    or if a transaction older than the build does not end, otherwise `StorageError`; the next call goes on.
    """
    todo = await wanted(database, schema, required=required)
    if not todo:
        return []
    async with database.session() as keeper, database.session() as worker:
        # A pooler that shares sessions would lift the limits for others, and might build in another session.
        shared = await are_shared(keeper, worker)
        await _lock(keeper, schema)
        if not shared:
            lock_timeout = 0 if required else _OLD_TRANSACTIONS
            await worker.execute(load("indexes", "")["lift_limits"], str(lock_timeout))
        with _explained(shared):
            for index in todo:
                await _Build(database, schema, index, worker).run()
    return [index.name for index in todo]


@contextmanager
def _explained(shared: bool) -> Iterator[None]:
    """Say in a `QueryTimeout` of the server that the session's limits could not be lifted, if it is `shared`."""
    try:
        with translated():
            yield
    except QueryTimeout as error:
        if not shared or error.sqlstate is None:
            raise
        raise QueryTimeout(f"{error}: {_SHARED_SESSIONS}", error.sqlstate) from error


async def _lock(keeper: Connection, schema: str) -> None:
    sql = load("indexes", schema)
    # Ends with the connection.
    await keeper.execute("BEGIN")
    if not await keeper.fetchval(sql["try_lock"], f"daisi indexes {schema}"):
        raise QueryTimeout(f"another worker builds the indexes of {schema}")
    # Last, and without arguments: a statement that was prepared keeps its snapshot, for which the build would wait.
    await keeper.execute(sql["stay_idle"])


class _Build:
    """One index, on its table or on each of its partitions."""

    def __init__(self, database: Database, schema: str, index: Wanted, worker: Connection) -> None:
        self._database = database
        self._schema = schema
        self._index = index
        self._worker = worker
        self._sql = load("indexes", schema)

    async def run(self) -> None:
        partitions = await self._worker.fetch(
            self._sql["partitions"], self._schema, self._index.table_name, self._index.name
        )
        if partitions:
            # The parent's index, of no partition yet, takes a moment; the last of them makes it valid.
            parent = await self._create("IF NOT EXISTS", self._index.name, self._index.table_name, "ONLY")
            await self._briefly(self._index.name, parent)
        for number, row in enumerate(partitions, 1):
            if not row["attached"]:
                logger.info("index %s: partition %d of %d", self._index.name, number, len(partitions))
                await self._attach(row["relname"])
        if not partitions:
            await self._concurrently(self._index.table_name, self._index.name)
        async with self._database.connection() as connection:
            await connection.execute(self._sql["built"], self._index.name)
        logger.info("index %s of %s is built", self._index.name, self._schema)

    async def _attach(self, partition: str) -> None:
        name = _partition_index(partition, self._index.name)
        await self._concurrently(partition, name)
        await self._briefly(
            name, await self._worker.fetchval(self._sql["write_attach"], self._schema, self._index.name, name)
        )

    async def _briefly(self, name: str, statement: str) -> None:
        await execute_briefly(self._database, self._schema, f"index {name}", statement, within=_TRIED_FOR)

    async def _concurrently(self, table: str, name: str) -> None:
        state = await self._worker.fetchrow(self._sql["state"], self._schema, name)
        if state is not None and state["builder"] is not None:
            raise QueryTimeout(f"index {name} of {self._schema} is being built by process {state['builder']}")
        if state is not None and not state["indisvalid"]:
            logger.info("index %s of %s was left unfinished: built anew", name, self._schema)
            statement = await self._worker.fetchval(self._sql["write_drop"], self._schema, name)
            await self._execute(name, statement)
        await self._execute(name, await self._create("CONCURRENTLY IF NOT EXISTS", name, table))

    async def _execute(self, name: str, statement: str) -> None:
        """Run a statement that may take hours, and log how far it is and whom it waits for."""
        pid = self._worker.get_server_pid()
        running: Awaitable[str] = self._worker.execute(statement, timeout=PATIENCE)
        task = asyncio.ensure_future(running)
        try:
            while not (await asyncio.wait({task}, timeout=_LOG_EVERY))[0]:
                async with self._database.connection() as connection:
                    progress = await connection.fetchval(self._sql["progress"], pid)
                logger.info("index %s of %s: %s", name, self._schema, progress or "under way")
            await task
        finally:
            task.cancel()

    async def _create(self, how: str, name: str, table: str, only: str = "") -> str:
        unique, keys = self._index.is_unique, self._index.keys
        statement: str = await self._worker.fetchval(
            self._sql["write_create"], unique, how, name, only, self._schema, table, keys
        )
        return statement


def _partition_index(partition: str, index: str) -> str:
    """A name of its own, in the 63 bytes of one, for an index of a partition."""
    suffix = hashlib.sha256(f"{partition} {index}".encode()).hexdigest()[:8]
    return f"{partition.encode()[:45].decode(errors='ignore')}_{suffix}_idx"
