"""Splits the two forms of a connection string into names and values; no error shows a value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from tables.connection.dsn_parameters import DsnError, pieces

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


def pairs_of(text: str) -> list[Pair]:
    """The parameters in their order; those before the query of a URL come first. Raises `DsnError`."""
    return list(_of_url(text) if _SCHEME.match(text) else _of_text(text.strip()))


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
