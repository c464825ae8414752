"""Opening one connection to the right one of several PostgreSQL hosts, each with its own time limit."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import asyncpg

from tables.connection import dsn_parameters
from tables.connection.dsn import Dsn, Host
from tables.connection.session import SETTINGS, STATEMENT_TIMEOUT
from tables.errors import READ_ONLY, StorageError, Unavailable, connecting, translate, translated

if TYPE_CHECKING:
    _Base = asyncpg.Connection[asyncpg.Record]
else:
    _Base = asyncpg.Connection

logger = logging.getLogger(__name__)

# Seconds for one host, if the DSN has no connect_timeout: short where there is another host to turn to.
ONLY_HOST_TIMEOUT: Final = 9.0
EACH_HOST_TIMEOUT: Final = 4.0
# A company that is busy has some 13 statements, at 80 KB of the server's process each: room for 1,000 companies that
# have their homes on ten connections. Beyond it the server would plan each of them again at every event.
_STATEMENT_CACHE: Final = 1500
_REFUSED_PARAMETER: Final = "unsupported startup parameter"
# Every pooler takes these at the start of a session.
_TAKEN_BY_POOLERS: Final = ("application_name", "timezone")


class HostConnection(_Base):
    """A connection that knows its host (None: the driver's default)."""

    host: Host | None = None

    @property
    def itself(self) -> HostConnection:
        """The connection behind the pool's proxy, usable also when that has been given back."""
        return self


class Connector:
    """Opens connections: the host that worked last comes first, and no host keeps the next from being tried."""

    def __init__(self, dsn: Dsn) -> None:
        self._dsn = dsn
        self._settings = {"application_name": "daisi-wa-events-processor", **dsn.settings, **SETTINGS}
        self._hosts: list[Host | None] = [*dsn.hosts] or [None]
        # Whether there is another host to turn to.
        self.several = len(self._hosts) > 1
        # Seconds within which a host has to take a connection, and that trying all of them may take.
        self.limit = dsn.connect_timeout or (EACH_HOST_TIMEOUT if self.several else ONLY_HOST_TIMEOUT)
        self.longest = self.limit * len(self._hosts)

    def avoid(self, host: Host | None) -> None:
        """Try this host last from now on."""
        self._hosts.remove(host)
        self._hosts.append(host)

    async def connect(self) -> HostConnection:
        """A connection to the first host that takes one. Raises `Unavailable`, whatever the reason."""
        failures: list[tuple[Host | None, StorageError]] = []
        for host in list(self._hosts):
            try:
                connection = await self._open(host)
            except Exception as error:
                failures.append((host, self._failure(host, error)))
                continue
            self._hosts.remove(host)
            self._hosts.insert(0, host)
            return connection
        raise _together(failures)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[HostConnection]:
        """A connection of its own, closed on leaving."""
        with connecting():
            connection = await self.connect()
        try:
            with translated():
                yield connection
        finally:
            connection.terminate()

    async def answers(self, host: Host | None) -> bool:
        """Whether the host answers a new connection within the limit, be it with an error."""
        try:
            connection = await self._open(host)
        except (OSError, TimeoutError, asyncpg.TargetServerAttributeNotMatched):
            return False
        except Exception:
            return True
        connection.terminate()
        return True

    async def _open(self, host: Host | None) -> HostConnection:
        try:
            return await self._open_with(host, self._settings)
        except asyncpg.ProtocolViolationError as error:
            taken = {name: self._settings[name] for name in _TAKEN_BY_POOLERS}
            if taken == self._settings or _REFUSED_PARAMETER not in str(error):
                raise
        self._settings = taken
        logger.warning(
            "POSTGRES_DSN: a connection pooler refuses our start-up parameters; connecting without them"
        )
        return await self._open_with(host, taken)

    async def _open_with(self, host: Host | None, settings: dict[str, str]) -> HostConnection:
        wanted: Any = self._dsn.target_session_attrs
        connection = await asyncpg.connect(
            host=host.name or None if host else None,
            port=host.port if host else None,
            user=self._dsn.user,
            password=self._dsn.password,
            database=self._dsn.database,
            target_session_attrs=wanted,
            server_settings=settings,
            timeout=self.limit,
            command_timeout=STATEMENT_TIMEOUT + 5,
            statement_cache_size=_STATEMENT_CACHE,
            max_cached_statement_lifetime=0,
            connection_class=HostConnection,
            **_driver(self._dsn),
        )
        connection.host = host
        return connection

    def _failure(self, host: Host | None, error: Exception) -> StorageError:
        if isinstance(error, TimeoutError):
            return Unavailable(f"no answer from {host or 'the server'} within {self.limit:g} s")
        if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
            wanted = self._dsn.target_session_attrs
            return Unavailable(f"the server is a read-only standby, {wanted} is wanted", READ_ONLY)
        if (ours := translate(error)) is None:
            raise error
        return ours


def _driver(dsn: Dsn) -> dict[str, Any]:
    """What the driver takes in a query of a URL only, and the authorities of the system, which it cannot."""
    given = dict(dsn.driver)
    if given.get("sslrootcert") != dsn_parameters.SYSTEM:
        return {"dsn": f"postgresql://?{urlencode(given, quote_via=quote)}"} if given else {}
    context = ssl.create_default_context()
    if oldest := given.get("ssl_min_protocol_version"):
        context.minimum_version = _tls_version(oldest)
    if newest := given.get("ssl_max_protocol_version"):
        context.maximum_version = _tls_version(newest)
    if "sslcrl" in given:
        context.load_verify_locations(given["sslcrl"])
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if "sslcert" in given:
        context.load_cert_chain(given["sslcert"], given.get("sslkey"), given.get("sslpassword", ""))
    direct = given.get("sslnegotiation") == "direct"
    return {"ssl": context, "direct_tls": direct, "passfile": given.get("passfile")}


def _tls_version(name: str) -> ssl.TLSVersion:
    """Of its name in a DSN, such as `TLSv1.2`."""
    return ssl.TLSVersion[name.replace(".", "_")]


def _together(failures: Sequence[tuple[Host | None, StorageError]]) -> Unavailable:
    """One error for all hosts: an answer of a server says more than silence."""
    states = [error.sqlstate for _, error in failures if error.sqlstate]
    several = len(failures) > 1
    text = "; ".join(f"{host}: {error.in_full()}" if several else error.in_full() for host, error in failures)
    return Unavailable(text, min(states, key=lambda state: state == READ_ONLY, default=None))
