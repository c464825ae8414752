"""One environment variable: how it is declared, and how its text becomes a value (contract 7).

Each parser takes text and returns a value, or raises `ValueError` with what is wrong and what is expected.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import tables.connection.dsn
from events.subjects import EVENT_TYPES, Tenant, company_problem

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+")
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_YEAR: Final = 366 * 86400.0
_LEVELS: Final = {"debug": "debug", "info": "info", "warn": "warn", "warning": "warn", "error": "error"}
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable.

    `default` is None when it must be set; the aliases are read when the name itself is not set.
    """

    name: str
    meaning: str
    default: str | None
    parse: Callable[[str], Any]
    aliases: tuple[str, ...] = ()

    def read(self, environ: Mapping[str, str]) -> Any:
        """The value. Raises `ValueError` with what is wrong; an empty variable counts as not set."""
        given = (environ.get(name, "").strip() for name in (self.name, *self.aliases))
        text = next(filter(None, given), self.default)
        if text is None:
            raise ValueError(f"is not set: expected the {self.meaning}")
        return self.parse(text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def replicas(text: str) -> int:
    """Copies of a stream: 1, 3 or 5; 0 for `auto`."""
    allowed = {"auto": 0, "1": 1, "3": 3, "5": 5}
    if text.lower() not in allowed:
        raise ValueError(f"{_shown(text)} is not allowed: expected auto, 1, 3 or 5")
    return allowed[text.lower()]


def boolean(text: str) -> bool:
    """True or false."""
    if text.lower() not in _BOOLEANS:
        raise ValueError(f"{_shown(text)} is not a boolean: expected true, false, 1 or 0")
    return _BOOLEANS[text.lower()]


def number(lowest: int, highest: int = 2**31 - 1, *, also: int | None = None) -> Callable[[str], int]:
    """An integer between two bounds, both allowed; `also` is allowed besides."""
    allowed = f"expected an integer from {lowest} to {highest}" + ("" if also is None else f", or {also}")

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None
        if value is None or (not lowest <= value <= highest and value != also):
            raise ValueError(f"{_shown(text)} is not allowed: {allowed}")
        return value

    return parse


def minutes(text: str) -> float:
    """Minutes, decimals allowed (design 7)."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or float(text) * 60 > _YEAR:
        raise ValueError(f"{_shown(text)} is not a number of minutes: expected for example 5 or 0.5")
    return float(text)


def duration(lowest: float = 0.0) -> Callable[[str], float]:
    """A duration such as `1m30s`, in seconds, at least `lowest`; a bare number is an error."""

    def parse(text: str) -> float:
        if not _DURATION.fullmatch(text):
            raise ValueError(
                f"{_shown(text)} is not a duration: expected numbers with units, such as 500ms, 1s, 1m30s, 1h"
            )
        seconds = sum(float(amount) * _UNITS[unit] for amount, unit in _DURATION_PART.findall(text))
        if not lowest <= seconds <= _YEAR:
            raise ValueError(f"{_shown(text)} is out of range: expected {lowest:g}s to {_YEAR / 3600:g}h")
        return seconds

    return parse


def level(text: str) -> str:
    """A log level; what is none of them is `info`."""
    return _LEVELS.get(text.lower(), "info")


def nats_name(text: str) -> str:
    """The name of a stream, or the beginning of a durable's."""
    if not re.fullmatch(r"[^\s.*>/\\\x00-\x1f]{1,128}", text):
        raise ValueError(
            f"{_shown(text)} is not a NATS name: expected 1 to 128 characters other than blanks and . * > / \\"
        )
    return text


def base_subject(text: str) -> str:
    """The subject of the dead letters, without the company; apart from the events' subjects."""
    if not re.fullmatch(r"[^\s.*>/\\]+(\.[^\s.*>/\\]+)*", text) or len(text) > 128:
        raise ValueError(f"{_shown(text)} is not a base subject: expected words joined by dots, no wildcards")
    if any(f"{event}.".startswith(f"{text}.") or text.startswith(f"{event}.") for event in EVENT_TYPES):
        raise ValueError(f"{_shown(text)} would mix dead letters with events: expected a subject of its own")
    return text


def subjects(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """Some of the `known` base subjects, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        items = tuple(item.strip() for item in text.split(","))
        strange = [item for item in items if item not in known]
        if strange:
            raise ValueError(f"{_shown(strange[0])} is not known: expected some of {', '.join(known)}")
        if len(set(items)) < len(items):
            raise ValueError("names a subject twice: expected each once")
        return items

    return parse


def companies(text: str) -> tuple[Tenant, ...]:
    """The tenants of one worker. Two that differ only in case would share a schema (C19)."""
    names = [item.strip() for item in text.split(",")]
    for company in names:
        if problem := company_problem(company):
            raise ValueError(f"{problem}: expected one company, or several separated by commas")
    found = tuple(map(Tenant, names))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"names {twice[0]!r} twice: expected each company once")
    schemas = Counter(tenant.schema for tenant in found)
    if shared := [repr(tenant.company) for tenant in found if schemas[tenant.schema] > 1]:
        raise ValueError(
            f"{', '.join(shared)} differ only in case: expected companies with schemas of their own"
        )
    return found


def dsn(text: str) -> str:
    """A connection URL or keyword/value text of PostgreSQL; errors show no value of it: it carries a password."""
    for name, file in tables.connection.dsn.parse(text).files.items():
        if not os.access(file, os.R_OK):
            raise ValueError(f"has a {name} that cannot be read: expected a file of this machine")
    return text


def servers(text: str) -> tuple[str, ...]:
    """URLs of NATS servers; errors say nothing of them, because they may carry passwords."""
    urls = tuple(item.strip() for item in text.split(","))
    if not all(map(_is_server, urls)):
        raise ValueError("is not a NATS URL: expected nats://host:port, several separated by commas")
    return urls


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        return bool(parts.hostname and parts.port != 0) and parts.scheme in {"nats", "tls", "ws", "wss"}
    except ValueError:
        return False


def addresses(text: str) -> tuple[str, ...]:
    """IP addresses to listen on, separated by commas."""
    found = [_address(item.strip()) for item in text.split(",")]
    names = tuple(map(str, found))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"names {twice[0]} twice: expected each address once")
    for address in found:
        everywhere = "0.0.0.0" if address.version == 4 else "::"
        if everywhere in names and str(address) != everywhere:
            raise ValueError(
                f"names {address} beside {everywhere}, which is all of them: expected one of both"
            )
    return names


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(
            f"{_shown(text)} is not an IP address: expected for example 127.0.0.1, or 0.0.0.0,::"
        ) from None


def optional(parse: Callable[[str], str]) -> Callable[[str], str | None]:
    """What `parse` makes of the text; None when there is none."""
    return lambda text: parse(text) if text else None


COUNT: Final = number(1)
PORT: Final = number(0, 65535)
# Beyond a hundred years JetStream's nanoseconds overflow.
DAYS: Final = number(0, 36500)
