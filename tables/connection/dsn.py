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
    session: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def target_session_attrs(self) -> str:
        """Which servers are taken; with several hosts only one that takes writes, if nothing else is said."""
        return self.session or ("read-write" if len(self.hosts) > 1 else "any")

    @property
    def files(self) -> Mapping[str, str]:
        """The files that must be there, by parameter."""
        names = ("sslcert", "sslkey", "sslrootcert", "sslcrl")
        found = {name: self.driver[name] for name in names if self.driver.get(name)}
        return {name: file for name, file in found.items() if file != parameters.SYSTEM}


def parse(text: str) -> Dsn:
    """Parse a URL (`postgres://...`) or keyword/value text (`host=... user=...`).

    Raises `DsnError`, whose text names the parameter and what is expected, and shows no value.
    """
    values = _known(pairs_of(text))
    driver, notes = parameters.tls(values)
    settings, ignored = parameters.server_settings(values)
    return Dsn(
        hosts=_hosts(values),
        user=values.get("user") or None,
        password=values.get("password") or None,
        database=values.get("dbname") or values.get("database") or None,
        driver=driver,
        settings=settings,
        connect_timeout=_seconds(values.get("connect_timeout")),
        session=parameters.session(values),
        notes=(*notes, *parameters.ignored_note(ignored)),
    )


def _known(pairs: list[Pair]) -> dict[str, str]:
    """The last value of each parameter. A name that may be a piece of a secret is not shown."""
    values: dict[str, str] = {}
    for before, pair in zip([None, *pairs], pairs, strict=False):
        name = pair.name.lower()
        if not parameters.is_known(name):
            if before is not None and before.name.lower() in parameters.SECRETS:
                raise DsnError(
                    f"has something behind {before.name.lower()} that is no parameter: "
                    "expected %26 for a & in a URL, or quotes around a value with blanks"
                )
            raise DsnError(f"has the parameter {parameters.shown(pair.name)}, which is not supported")
        values[name] = pair.value
    return values


def _hosts(values: Mapping[str, str]) -> tuple[Host, ...]:
    names = _addresses(values)
    ports = [_port(port) for port in values.get("port", "").split(",")]
    if len(ports) == 1:
        ports *= max(1, len(names))
    if len(ports) != max(1, len(names)):
        raise DsnError("has another number of ports than of hosts: expected one port, or one for each host")
    return tuple(Host(name or "localhost", port) for name, port in zip(names, ports, strict=False))


def _addresses(values: Mapping[str, str]) -> list[str]:
    names = values.get("host", "").split(",") if values.get("host") else []
    addresses = values.get("hostaddr", "").split(",") if values.get("hostaddr") else []
    if not addresses:
        return names
    if values.get("sslmode") == "verify-full" and names != addresses:
        raise DsnError(
            "has hostaddr beside sslmode verify-full: expected the host's name only, for its certificate"
        )
    return addresses


def _port(text: str) -> int:
    if not text:
        return DEFAULT_PORT
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536):
        raise DsnError("has a port that is no number from 1 to 65535")
    return int(text)


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise DsnError("has a connect_timeout that is no number of seconds: expected for example 10")
    return min(float(text[:9]), _LONGEST_CONNECT) or None
