"""The settings of a session, and checks for a connection pooler between us and the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Final

from tables.queries import load, quoted

if TYPE_CHECKING:
    from tables.connection.hosts import HostConnection
    from tables.connection.pool import Connection

logger = logging.getLogger(__name__)

# Below the shortest ack wait (30 s), so that a statement ends before its events are delivered again.
STATEMENT_TIMEOUT: Final = 20.0
LOCK_TIMEOUT: Final = 10.0
SETTINGS: Final[Mapping[str, str]] = {
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
}
# Seconds for the pooler to find a second connection to the server.
_SECOND: Final = 3.0


async def warn_of_missing(connection: Connection) -> None:
    """Log the statements that give the role the settings which a pooler does not pass on."""
    rows = await connection.fetch(load("session", "")["settings"], list(SETTINGS))
    found = {row["name"]: row["setting"].lower() for row in rows}
    missing = {
        name: value for name, value in SETTINGS.items() if found.get(name) not in (None, value.lower())
    }
    if missing:
        user = quoted(await connection.fetchval("SELECT session_user"))
        lines = [f"ALTER ROLE {user} SET {name} = '{value}'" for name, value in missing.items()]
        logger.warning("POSTGRES_DSN: sessions lack settings; a pooler hides them? Run: %s", "; ".join(lines))


async def is_pooled(connection: HostConnection) -> bool:
    """Whether a pooler answers for the server: its process is another one than the connection was told at its start."""
    async with connection.transaction():
        return bool(await connection.fetchval(load("session", "")["pid"]) != connection.get_server_pid())


async def are_shared(first: HostConnection, second: HostConnection) -> bool:
    """Whether a pooler gives the server process of `first` to `second` between two transactions."""
    pid = load("session", "")["pid"]
    async with first.transaction():
        home = await first.fetchval(pid)
    async with second.transaction():
        return bool(await second.fetchval(pid) == home)


async def require_prepared(session: Callable[[], AbstractAsyncContextManager[HostConnection]]) -> None:
    """Raises `Unavailable` if a pooler forgets prepared statements between transactions."""
    pid = load("session", "")["pid"]
    async with session() as first, session() as second:
        async with first.transaction():
            home = await first.fetchval(pid)
        await second.execute("BEGIN")
        if await second.fetchval(pid) != home:
            # Each has a server process of its own: sessions are not shared.
            return
        # The process that knows the first one's statement is taken: another one gets it. If the pooler has no second
        # connection, the first statement that fails shows whether it keeps them.
        with suppress(TimeoutError):
            async with asyncio.timeout(_SECOND):
                await first.fetchval(pid)
