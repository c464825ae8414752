"""Connection strings of PostgreSQL: a URL or keyword/value text, with the parameters of libpq, Go and hosters.

Errors never show a value, because the text carries a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from tables.connection import dsn_parameters as parameters
from tables.connection.dsn_parameters import DsnError, pieces

__all__ = ["Dsn", "DsnError", "Host", "parse"]

DEFAULT_PORT: Final = 5432
# libpq takes 0 for "no limit"; a host that never answers must not keep the next one from being tried.
_LONGEST_CONNECT: Final = 600.0
_SCHEME: Final = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.\-]*:/")
# A raw @ behind the hosts is what is left of a password with a raw / or so.
_URL: Final = re.compile(
    r"postgres(?:ql)?://(?:(?P<user>[^/:]*)(?::(?P<password>[^/]*))?@)?(?P<hosts>[^/?#@]*)"
    r"(?:/(?P<dbname>[^?#@]*))?(?:\?(?P<query>[^@]*))?"
)
_HOST: Final = re.compile(r"(?P<name>\[[^\]\[/]*\]|[^:\[\]@\s]*)(?::(?P<port>[0-9]*))?")
_PAIR: Final = re.compile(
    r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=\s*+(?:'((?:[^'\\]|\\.)*)'(?=\s|$)|((?!')(?:[^\s\\]|\\.)*))", re.DOTALL
)
_BAD_URL: Final = (
    "is not a connection URL: expected postgres://user:password@host:port/database, with %2F for a / and so on, "
    "or text such as host=... user=... password=... dbname=..."
)
_BAD_TEXT: Final = (
    "is neither a connection URL nor text such as host=... user=... password='...' dbname=...: "
    "expected name=value pairs, with quotes around a value with blanks"
)
# Go and Python write a blank as + here; elsewhere + is itself, as libpq has it.
_PLUS_IS_BLANK: Final = {"options", "application_name", "search_path"}

Pair = tuple[str, str]  # a parameter's name and value


@dataclass(frozen=True, slots=True)
class Host:
    """One server: a name, an address or the folder of a Unix socket; without a name where the driver looks for it."""

    name: str
    port: int

    def __str__(self) -> str:
        return self.name if self.name.startswith("/") else f"{self.name or 'localhost'}:{self.port}"


@dataclass(frozen=True, slots=True)
class Dsn:
    """A parsed connection string.

    `hosts` is empty where the text names none (the driver then asks PGHOST and the usual sockets); a port alone is a
    host without a name. `driver` holds what is handed to the driver in a query of its own (TLS, Kerberos),
    `settings` the settings of a session. `connect_timeout` is seconds for one host, None if not given. `notes` are
    sentences for the operator.
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
    values = _known(list(_pairs(text)))
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
        return (Host("", ports[0]),) if values.get("port") else ()
    return tuple(Host(name or "localhost", port) for name, port in zip(names, ports, strict=True))


def _port(text: str) -> int:
    if not text:
        return DEFAULT_PORT
    digits = text.lstrip("0")
    if not (text.isascii() and text.isdigit() and len(digits) <= 5 and 0 < int(digits or "0") < 65536):
        raise DsnError("has a port that is no number from 1 to 65535")
    return int(digits)


def _seconds(text: str) -> float | None:
    if not (text.isascii() and text.isdigit()):
        raise DsnError("has a connect_timeout that is no number of seconds: expected for example 10")
    return min(float(text[:9]), _LONGEST_CONNECT) or None


def _pairs(text: str) -> Iterator[Pair]:
    """The parameters in their order; those before the query of a URL come first. Raises `DsnError`."""
    return _of_url(text) if _SCHEME.match(text) else _of_text(text.strip())


def _of_url(text: str) -> Iterator[Pair]:
    url = _URL.fullmatch(text)
    if url is None:
        raise DsnError(_BAD_URL)
    for name in ("password", "user", "dbname"):
        if url[name]:
            yield name, _decoded(url[name])
    yield from _of_hosts(url["hosts"])
    yield from _of_query(url["query"] or "")


def _of_hosts(text: str) -> Iterator[Pair]:
    names, ports = [], []
    for item in text.split(","):
        found = _HOST.fullmatch(unquote(item))
        if found is None:
            raise DsnError(_BAD_URL)
        names.append(found["name"].strip("[]"))
        ports.append(found["port"] or "")
    if any(names):
        yield "host", ",".join(names)
    if any(ports):
        yield "port", ",".join(ports)


def _of_query(query: str) -> Iterator[Pair]:
    for item in filter(None, query.split("&")):
        name, equals, value = item.partition("=")
        if not equals:
            raise DsnError(
                "has a parameter without a value: expected name=value, with %26 for a & in a value"
            )
        if name.lower() in _PLUS_IS_BLANK:
            value = value.replace("+", " ")
        yield _decoded(name), _decoded(value)


def _decoded(text: str) -> str:
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise DsnError("has %-signs that are no UTF-8: expected %25 for a % itself") from None
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise DsnError("has a % that begins no %-sign: expected %25 for a % itself")
    if "\0" in plain:
        raise DsnError("has a zero byte: expected text")
    return plain


def _of_text(text: str) -> Iterator[Pair]:
    if "\0" in text:
        raise DsnError(_BAD_TEXT)
    for pair in pieces(_PAIR, text, _BAD_TEXT):
        name, quoted, plain = pair.groups()
        yield name, re.sub(r"\\(.)", r"\1", plain if quoted is None else quoted, flags=re.DOTALL)
