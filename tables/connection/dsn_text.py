"""Splits the two forms of a connection string into names and values; no error shows a value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import unquote

from tables.connection.dsn_parameters import DsnError

_SCHEME: Final = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.\-]*:/")
_OURS: Final = re.compile(r"(?:postgres|postgresql)://")
_HOST: Final = re.compile(r"(?P<name>\[[^\]\[/]*\]|[^:\[\]@\s]*)(?::(?P<port>[0-9]*))?")
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


class Pair(NamedTuple):
    """One parameter, as written."""

    name: str
    value: str


def pairs_of(text: str) -> list[Pair]:
    """The parameters in their order; those before the query of a URL come first. Raises `DsnError`."""
    if not _SCHEME.match(text):
        return list(_of_text(text))
    scheme = _OURS.match(text)
    if scheme is None:
        raise DsnError(_BAD_URL)
    return list(_of_url(text[scheme.end() :]))


def _of_url(rest: str) -> Iterator[Pair]:
    authority, path, query = _split(rest)
    login, at, hosts = authority.rpartition("@")
    user, _, password = login.partition(":")
    if at and user:
        yield Pair("user", _decoded(user))
    if password:
        yield Pair("password", _decoded(password))
    if hosts:
        yield from _of_hosts(hosts)
    if path:
        yield Pair("dbname", _decoded(path))
    yield from _of_query(query)


def _split(rest: str) -> tuple[str, str, str]:
    """Authority, path and query. A raw @ behind the authority is what is left of a password with a raw / or so."""
    before, _, after = rest.partition("/")
    login, at, hosts = before.rpartition("@")
    if "?" in hosts:
        hosts, _, query = hosts.partition("?")
        path = ""
        query = query + (f"/{after}" if after or rest.endswith("/") else "")
    else:
        path, _, query = after.partition("?")
    if "@" in path or "@" in query or "#" in path or "#" in hosts:
        raise DsnError(_BAD_URL)
    return f"{login}{at}{hosts}", path, query


def _of_hosts(text: str) -> Iterator[Pair]:
    names, ports = [], []
    for item in text.split(","):
        found = _HOST.fullmatch(unquote(item))
        if found is None:
            raise DsnError(_BAD_URL)
        names.append(found["name"].strip("[]"))
        ports.append(found["port"] or "")
    if any(names):
        yield Pair("host", ",".join(names))
    if any(ports):
        yield Pair("port", ",".join(ports))


def _of_query(query: str) -> Iterator[Pair]:
    for item in filter(None, query.split("&")):
        name, equals, value = item.partition("=")
        if not equals:
            raise DsnError(
                "has a parameter without a value: expected name=value, with %26 for a & in a value"
            )
        if name.lower() in _PLUS_IS_BLANK:
            value = value.replace("+", " ")
        yield Pair(_decoded(name), _decoded(value))


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


_NAME: Final = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=\s*")
_VALUE: Final = re.compile(r"'((?:[^'\\]|\\.)*)'(?=\s|$)|((?!')(?:[^\s\\]|\\.)*)", re.DOTALL)


def _of_text(text: str) -> Iterator[Pair]:
    position = 0
    text = text.strip()
    while position < len(text):
        name = _NAME.match(text, position)
        value = name and _VALUE.match(text, name.end())
        if not name or not value or "\0" in text:
            raise DsnError(_BAD_TEXT)
        quoted, plain = value.groups()
        yield Pair(name[1], re.sub(r"\\(.)", r"\1", plain if quoted is None else quoted, flags=re.DOTALL))
        position = value.end()
