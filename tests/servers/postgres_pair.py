"""A PostgreSQL primary with a streaming standby, and their fail-over."""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import AsyncExitStack
from typing import Any, Final, Self

import asyncpg

from testkit.servers import PostgresServer, ServerError

# The standby's application_name.
STANDBY: Final = "standby"
_PATIENCE: Final = 30.0
_POLL: Final = 0.05


class PostgresNode(PostgresServer):
    """A primary, or with a `source` a standby of that server. Both survive `stop`, `kill` and `start`."""

    def __init__(self, source: PostgresServer | None = None, settings: dict[str, str] | None = None) -> None:
        super().__init__(settings=settings)
        self._source = source

    def follow(self, source: PostgresServer, *, afresh: bool) -> None:
        """Be a standby of this server from the next start on. Only while stopped.

        `afresh`: with a new copy of its data.
        """
        self._source = source
        if afresh:
            shutil.rmtree(self._data, ignore_errors=True)
        elif self._data.exists():
            (self._data / "standby.signal").touch()

    async def promote(self) -> None:
        """Become a primary that waits for no standby."""
        self._source = None
        self._settings |= {"primary_conninfo": "", "synchronous_standby_names": ""}
        await fetch_value(self.dsn, "SELECT pg_promote(true, 30)")

    async def wait_for(self, standby: str) -> None:
        """Let commits wait for the standby of this name ("": for none)."""
        self._settings["synchronous_standby_names"] = standby
        self._configure()
        await fetch_value(self.dsn, "SELECT pg_reload_conf()")

    def _configure(self) -> None:
        if self._source is not None:
            primary = f"host=127.0.0.1 port={self._source.port} user=postgres application_name={STANDBY}"
            self._settings |= {"primary_conninfo": primary, "synchronous_standby_names": ""}
        super()._configure()

    def _init(self) -> None:
        if self._source is None:
            super()._init()
            return
        options = ["-D", str(self._data), "-d", self._source.dsn, "-X", "stream", "-c", "fast", "--no-sync"]
        self._run("pg_basebackup", *options)
        (self._data / "standby.signal").touch()


class PostgresPair(AsyncExitStack):
    """Two nodes, one of them the primary; in an `async with` statement the standby is in step on entry.

    `synchronous`: a commit is answered once the standby has it, as long as there is one.
    """

    def __init__(self, settings: dict[str, str] | None = None, *, synchronous: bool) -> None:
        super().__init__()
        self.nodes = [PostgresNode(settings=settings), PostgresNode(settings=settings)]
        self.primary, self.standby = self.nodes
        self._synchronous = synchronous

    async def __aenter__(self) -> Self:
        for node in self.nodes:
            self.callback(node.close)
        try:
            await asyncio.to_thread(self.primary.start)
            await self.rejoin(afresh=True)
        except BaseException:
            await self.aclose()
            raise
        return self

    @property
    def port(self) -> int:
        """Where the current primary listens."""
        return self.primary.port

    def dsn_of(self, database: str) -> str:
        """Where clients connect to a database of the current primary."""
        return self.primary.dsn_of(database)

    def dsn_of_both(self, database: str) -> str:
        """Both hosts, always in the same order: clients take the one that they can write to."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://postgres@{hosts}/{database}?target_session_attrs=read-write"

    async def promote(self) -> None:
        """Make the standby the primary; the old primary must be down or hang."""
        await self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    async def rejoin(self, *, afresh: bool) -> None:
        """Start the node that is down as a standby of the primary. Raises `ServerError`.

        `afresh`: after a crash it may hold what the new primary never got, so it gets a new copy.
        """
        self.standby.follow(self.primary, afresh=afresh)
        await asyncio.to_thread(self.standby.start)
        await self.primary.wait_for(STANDBY if self._synchronous else "")
        await self.wait_in_step()

    async def wait_in_step(self) -> None:
        """Return when the standby streams, as a synchronous one if it is one. Raises `ServerError`."""
        wanted = "sync" if self._synchronous else "async"
        deadline = time.monotonic() + _PATIENCE
        states = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = $1"
        while not await fetch_value(self.primary.dsn, states, wanted):
            if time.monotonic() > deadline:
                raise ServerError(f"the standby is not in step after {_PATIENCE:g} s")
            await asyncio.sleep(_POLL)


async def fetch_value(dsn: str, statement: str, *arguments: object) -> Any:
    """The first value of a statement, run on a connection of its own."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return await connection.fetchval(statement, *arguments)
    finally:
        await connection.close(timeout=5)
