"""A PostgreSQL primary with a streaming standby, and what becomes of the two in a fail-over."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from types import TracebackType
from typing import Any, Final, Self

import asyncpg

from testkit.servers import PostgresServer, ServerError

_PATIENCE: Final = 30.0
_POLL: Final = 0.05
_APPLICATION: Final = "standby"


class PostgresNode(PostgresServer):
    """A primary, or with a `source` a standby of that node. Both survive `stop`, `kill` and `start`."""

    def __init__(self, settings: dict[str, str]) -> None:
        super().__init__(settings=settings)
        self.source: PostgresNode | None = None

    def stands_by(self, source: PostgresNode, *, afresh: bool) -> None:
        """Follow this node from the next start on; `afresh`: with a new copy of its data. Only while it is down."""
        self.source = source
        if afresh:
            shutil.rmtree(self._data, ignore_errors=True)
        elif self._data.exists():
            (self._data / "standby.signal").touch()

    def leads(self) -> None:
        """Follow nobody any more: it was promoted."""
        self.source = None

    def set(self, **settings: str) -> None:
        """Change settings for the next start or reload."""
        self._settings |= settings

    def write_settings(self) -> None:
        """Write what `set` changed, for a reload of the running server."""
        self._configure()

    def _configure(self) -> None:
        if self.source is not None:
            line = f"host=127.0.0.1 port={self.source.port} user=postgres application_name={_APPLICATION}"
            self._settings |= {"primary_conninfo": line, "synchronous_standby_names": ""}
        super()._configure()

    def _init(self) -> None:
        if self.source is None:
            super()._init()
            return
        copy = [str(self._programs / "pg_basebackup"), "-h", "127.0.0.1", "-p", str(self.source.port)]
        copy += ["-U", "postgres", "-D", str(self._data), "-X", "stream", "-c", "fast", "--no-sync"]
        done = subprocess.run(
            copy,
            capture_output=True,
            text=True,
            cwd="/",
            user=self._account.uid if self._account else None,
            group=self._account.gid if self._account else None,
            extra_groups=[] if self._account else None,
            check=False,
        )
        if done.returncode != 0:
            raise ServerError(f"pg_basebackup failed: {done.stderr.strip()[-300:]}")
        (self._data / "standby.signal").touch()

    def _ready(self) -> bool:
        # A standby says so in other words: "standby" once it takes readers.
        try:
            lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() in ("ready", "standby")


class PostgresPair:
    """Two nodes, one of them the primary; in an `async with` statement the standby is in step on entry.

    `synchronous`: a commit is answered once the standby has it, as long as there is one.
    """

    def __init__(self, settings: dict[str, str], *, synchronous: bool) -> None:
        self.nodes = [PostgresNode(dict(settings)), PostgresNode(dict(settings))]
        self.primary, self.standby = self.nodes
        self._synchronous = synchronous

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.primary.start)
            self.standby.stands_by(self.primary, afresh=True)
            await self._begin_standby()
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._close)

    @property
    def port(self) -> int:
        """Where the primary of now listens."""
        return self.primary.port

    def dsn_of(self, database: str) -> str:
        """Where clients connect to a database of the primary of now."""
        return self.primary.dsn_of(database)

    def dsn_of_both(self, database: str) -> str:
        """Both hosts, always in the same order: clients take the one that they can write to."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://postgres@{hosts}/{database}?target_session_attrs=read-write"

    async def promote(self) -> None:
        """The standby becomes the primary, which waits for no standby; the old primary must be down or hang."""
        self.standby.leads()
        self.standby.set(primary_conninfo="", synchronous_standby_names="")
        await _run(self.standby, "SELECT pg_promote(true, 30)")
        self.primary, self.standby = self.standby, self.primary

    async def rejoin(self, *, afresh: bool) -> None:
        """Start the old primary, which must be down, as a standby of the new one. Raises `ServerError`.

        `afresh`: after a crash it may hold what the new primary never got, so it gets a new copy.
        """
        self.standby.stands_by(self.primary, afresh=afresh)
        await self._begin_standby()

    async def _begin_standby(self) -> None:
        await asyncio.to_thread(self.standby.start)
        names = _APPLICATION if self._synchronous else ""
        self.primary.set(synchronous_standby_names=names)
        self.primary.write_settings()
        await _run(self.primary, "SELECT pg_reload_conf()")
        await self.wait_in_step()

    async def wait_in_step(self) -> None:
        """Return when the standby streams, as a synchronous one if it is one. Raises `ServerError`."""
        wanted = "sync" if self._synchronous else "async"
        deadline = time.monotonic() + _PATIENCE
        states = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = $1"
        while not await _run(self.primary, states, wanted):
            if time.monotonic() > deadline:
                raise ServerError(f"the standby is not in step after {_PATIENCE:g} s")
            await asyncio.sleep(_POLL)

    def _close(self) -> None:
        for node in self.nodes:
            node.close()


async def _run(node: PostgresNode, statement: str, *arguments: object) -> Any:
    connection = await asyncpg.connect(node.dsn, timeout=10)
    try:
        return await connection.fetchval(statement, *arguments)
    finally:
        await connection.close(timeout=5)
