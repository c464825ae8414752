"""Opening one connection to the right one of several PostgreSQL hosts, each with its own time limit."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import asyncpg

from tables.connection import dsn_parameters
from tables.connection.dsn import Dsn, Host
from tables.errors import READ_ONLY, StorageError, Unavailable, translate

if TYPE_CHECKING:
    _Base = asyncpg.Connection[asyncpg.Record]
else:
    _Base = asyncpg.Connection

logger = logging.getLogger(__name__)

# Seconds for one host, if the DSN has no connect_timeout: short where there is another host to turn to.
ONLY_HOST_TIMEOUT: Final = 9.0
EACH_HOST_TIMEOUT: Final = 4.0
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

    def __init__(self, dsn: Dsn, settings: Mapping[str, str], **options: Any) -> None:
        """`settings` are those of the session, `options` the driver's."""
        self._dsn = dsn
        self._settings = {**dsn.settings, **settings}
        self._options = options
        self._hosts: list[Host | None] = [*dsn.hosts] or [None]
        self._bare = False

    @property
    def several(self) -> bool:
        """Whether there is another host to turn to."""
        return len(self._hosts) > 1

    @property
    def limit(self) -> float:
        """Seconds within which a host has to take a connection."""
        default = EACH_HOST_TIMEOUT if self.several else ONLY_HOST_TIMEOUT
        return self._dsn.connect_timeout or default

    @property
    def longest(self) -> float:
        """Seconds that trying all hosts may take."""
        return self.limit * len(self._hosts)

    def avoid(self, host: Host | None) -> None:
        """Try this host last from now on."""
        self._hosts.remove(host)
        self._hosts.append(host)

    async def connect(self, **options: Any) -> HostConnection:
        """A connection to the first host that takes one. Raises `Unavailable`, whatever the reason."""
        failures: list[tuple[Host | None, StorageError]] = []
        for host in list(self._hosts):
            try:
                connection = await self._open(host, options)
            except Exception as error:
                failures.append((host, self._error(host, error)))
                continue
            self._hosts.remove(host)
            self._hosts.insert(0, host)
            return connection
        raise _together(failures)

    async def answers(self, host: Host | None) -> bool:
        """Whether the host answers a new connection within the limit, be it with an error."""
        try:
            connection = await self._open(host, {})
        except (OSError, TimeoutError, asyncpg.TargetServerAttributeNotMatched):
            return False
        except Exception:
            return True
        connection.terminate()
        return True

    async def _open(self, host: Host | None, options: Mapping[str, Any]) -> HostConnection:
        try:
            return await self._open_with(host, options)
        except asyncpg.ProtocolViolationError as error:
            if self._bare or _REFUSED_PARAMETER not in str(error):
                raise
        self._bare = True
        logger.warning(
            "POSTGRES_DSN: a connection pooler refuses our start-up parameters; connecting without them"
        )
        return await self._open_with(host, options)

    async def _open_with(self, host: Host | None, options: Mapping[str, Any]) -> HostConnection:
        settings = self._settings
        if self._bare:
            settings = {name: settings[name] for name in _TAKEN_BY_POOLERS if name in settings}
        given: dict[str, Any] = {
            **_driver(self._dsn),
            "user": self._dsn.user,
            "password": self._dsn.password,
            "database": self._dsn.database,
            "target_session_attrs": self._dsn.target_session_attrs,
            "server_settings": settings,
            "timeout": self.limit,
            "connection_class": HostConnection,
            **self._options,
            **options,
        }
        if host is not None:
            given |= {"host": host.name, "port": host.port}
        connection: HostConnection = await asyncpg.connect(**given)
        connection.host = host
        return connection

    def _error(self, host: Host | None, error: Exception) -> StorageError:
        if isinstance(error, TimeoutError):
            return Unavailable(f"no answer from {host or 'the server'} within {self.limit:g} s")
        if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
            wanted = self._dsn.target_session_attrs
            return Unavailable(f"the server is a read-only standby, {wanted} is wanted", READ_ONLY)
        ours = translate(error)
        if ours is None:
            raise error
        if ours.sqlstate is None:
            return ours
        return Unavailable(f"cannot connect: {ours.in_full()}", ours.sqlstate)


def _driver(dsn: Dsn) -> dict[str, Any]:
    """What the driver takes in a query of a URL only, and the authorities of the system, which it cannot."""
    given = dict(dsn.driver)
    if given.get("sslrootcert") != dsn_parameters.SYSTEM:
        return {"dsn": f"postgresql://?{urlencode(given, quote_via=quote)}"} if given else {}
    context = ssl.create_default_context()
    if "sslcert" in given:
        context.load_cert_chain(given["sslcert"], given.get("sslkey"), given.get("sslpassword", ""))
    direct = given.get("sslnegotiation") == "direct"
    return {"ssl": context, "direct_tls": direct, "passfile": given.get("passfile")}


def _together(failures: Sequence[tuple[Host | None, StorageError]]) -> Unavailable:
    """One error for all hosts: an answer of a server says more than silence."""
    states = [error.sqlstate for _, error in failures if error.sqlstate]
    several = len(failures) > 1
    text = "; ".join(f"{host}: {error}" if several else str(error) for host, error in failures)
    problem = Unavailable(text, next((s for s in states if s != READ_ONLY), next(iter(states), None)))
    problem.__cause__ = failures[-1][1].__cause__
    return problem
