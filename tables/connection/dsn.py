"""Connection strings of PostgreSQL: a URL or keyword/value text, with the parameters of libpq, Go and hosters.

Errors never show a value, because the text carries a password.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tables.connection import dsn_parameters as parameters
from tables.connection.dsn_parameters import DsnError
from tables.connection.dsn_text import Pair, pairs_of

__all__ = ["Dsn", "DsnError", "Host", "parse"]

DEFAULT_PORT: Final = 5432
# libpq takes 0 for "no limit"; a host that never answers must not keep the next one from being tried.
_LONGEST_CONNECT: Final = 600.0


@dataclass(frozen=True, slots=True)
class Host:
    """One server: a name, an address or the folder of a Unix socket."""

    name: str
    port: int

    def __str__(self) -> str:
        return self.name if self.name.startswith("/") else f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class Dsn:
    """A parsed connection string.

    `hosts` is empty where the text names none (the driver then asks PGHOST and the usual sockets). `driver` holds what
    is handed to the driver in a query of its own (TLS, Kerberos), `settings` the settings of
    a session. `connect_timeout` is seconds for one host, None if not given. `notes` are sentences for the operator.
    """

    hosts: tuple[Host, ...] = ()
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
    driver: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    connect_timeout: float | None = None
    target_session_attrs: str = "any"
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> Mapping[str, str]:
        """The files that must be there, by parameter."""
        names = ("sslcert", "sslkey", "sslrootcert", "sslcrl")
        given = {name: self.driver[name] for name in names if name in self.driver}
        return {name: file for name, file in given.items() if file != parameters.SYSTEM}


def parse(text: str) -> Dsn:
    """Parse a URL (`postgres://...`) or keyword/value text (`host=... user=...`).

    Raises `DsnError`, whose text names the parameter and what is expected, and shows no value.
    """
    values = _known(pairs_of(text))
    driver, notes = parameters.tls(values)
    settings, ignored = parameters.server_settings(values)
    hosts = _hosts(values)
    return Dsn(
        hosts=hosts,
        user=values.get("user") or None,
        password=values.get("password") or None,
        database=values.get("dbname") or values.get("database") or None,
        driver=driver,
        settings=settings,
        connect_timeout=_seconds(values.get("connect_timeout") or "0"),
        # Of several hosts only one that takes writes is wanted, if nothing else is said.
        target_session_attrs=values.get("target_session_attrs") or ("read-write" if hosts[1:] else "any"),
        notes=(*notes, *ignored),
    )


def _known(pairs: list[Pair]) -> dict[str, str]:
    """The last value of each parameter. A name that may be a piece of a secret is not shown."""
    values: dict[str, str] = {}
    before = ""
    for name, value in pairs:
        known = name.lower()
        if known not in parameters.PARAMETERS:
            if before in parameters.SECRETS:
                raise DsnError(
                    f"has something behind {before} that is no parameter: "
                    "expected %26 for a & in a URL, or quotes around a value with blanks"
                )
            raise DsnError(f"has the parameter {parameters.shown(name)}, which is not supported")
        values[known] = value
        before = known
    return {name: parameters.kept(name, value) for name, value in values.items()}


def _hosts(values: Mapping[str, str]) -> tuple[Host, ...]:
    named, address = values.get("host", ""), values.get("hostaddr", "")
    names = (address or named).split(",")
    ports = [_port(port) for port in values.get("port", "").split(",")]
    if len(ports) == 1:
        ports *= len(names)
    if len(ports) != len(names):
        raise DsnError("has another number of ports than of hosts: expected one port, or one for each host")
    if address not in ("", named) and values.get("sslmode") == "verify-full":
        raise DsnError(
            "has hostaddr beside sslmode verify-full: expected the host's name only, for its certificate"
        )
    if names == [""]:
        return ()
    return tuple(Host(name or "localhost", port) for name, port in zip(names, ports, strict=True))


def _port(text: str) -> int:
    if not text:
        return DEFAULT_PORT
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536):
        raise DsnError("has a port that is no number from 1 to 65535")
    return int(text)


def _seconds(text: str) -> float | None:
    if not (text.isascii() and text.isdigit()):
        raise DsnError("has a connect_timeout that is no number of seconds: expected for example 10")
    return min(float(text[:9]), _LONGEST_CONNECT) or None
