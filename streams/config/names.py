"""Forms of text that name something: streams, subjects, companies, servers, addresses."""

from __future__ import annotations

import ipaddress
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import tables.connection.dsn
from events.subjects import ALL_COMPANIES, EVENT_TYPES, Tenant, company_problem
from streams.config.scalars import Form, shown


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(","))


def _repeated(items: Sequence[str]) -> str | None:
    return next((item for item, count in Counter(items).items() if count > 1), None)


def _nats_name(text: str) -> str:
    if not re.fullmatch(r"[^\s.*>/\\\x00-\x1f]{1,128}", text):
        raise ValueError(
            f"{shown(text)} is not a NATS name: expected 1 to 128 characters other than blanks and . * > / \\"
        )
    return text


def _base_subject(text: str) -> str:
    if not re.fullmatch(r"[^\s.*>/\\]+(\.[^\s.*>/\\]+)*", text) or len(text) > 128:
        raise ValueError(f"{shown(text)} is not a base subject: expected words joined by dots, no wildcards")
    if any(f"{event}.".startswith(f"{text}.") or text.startswith(f"{event}.") for event in EVENT_TYPES):
        raise ValueError(f"{shown(text)} would mix dead letters with events: expected a subject of its own")
    return text


def subjects(known: tuple[str, ...]) -> Form[tuple[str, ...]]:
    """Some of the `known` base subjects, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        items = _items(text)
        for item in items:
            if item not in known:
                raise ValueError(f"{shown(item)} is not known: expected some of {', '.join(known)}")
        if _repeated(items) is not None:
            raise ValueError("names a subject twice: expected each once")
        return items

    return Form("list", parse)


def _companies(text: str) -> tuple[Tenant, ...]:
    if text.strip() == ALL_COMPANIES:
        return ()
    names = _items(text)
    for company in names:
        if problem := company_problem(company):
            raise ValueError(f"{problem}: expected one company, several separated by commas, or * for all")
    if twice := _repeated(names):
        raise ValueError(f"names {twice!r} twice: expected each company once")
    tenants = tuple(map(Tenant, names))
    # Companies that differ only in case would share a schema.
    schemas = Counter(tenant.schema for tenant in tenants)
    if shared := [repr(tenant.company) for tenant in tenants if schemas[tenant.schema] > 1]:
        raise ValueError(
            f"{', '.join(shared)} differ only in case: expected companies with schemas of their own"
        )
    return tenants


def _patterns(text: str) -> tuple[str, ...]:
    patterns = _items(text) if text else ()
    for pattern in patterns:
        if not pattern or any(char.isspace() or char in "./\\>" for char in pattern):
            raise ValueError(
                f"{shown(pattern)} is no pattern of companies: expected names with * and ?, separated by commas"
            )
    return patterns


def _dsn(text: str) -> str:
    # Errors show no part of the text: it carries a password.
    for name, file in tables.connection.dsn.parse(text).files.items():
        if not os.access(file, os.R_OK):
            raise ValueError(f"has a {name} that cannot be read: expected a file of this machine")
    return text


def _servers(text: str) -> tuple[str, ...]:
    urls = _items(text)
    # The error shows no URL: they may carry passwords.
    if not all(map(_is_server, urls)):
        raise ValueError("is not a NATS URL: expected nats://host:port, several separated by commas")
    return urls


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        return bool(parts.hostname and parts.port != 0) and parts.scheme in {"nats", "tls", "ws", "wss"}
    except ValueError:
        return False


def _addresses(text: str) -> tuple[str, ...]:
    found = [_address(item) for item in _items(text)]
    names = tuple(map(str, found))
    if twice := _repeated(names):
        raise ValueError(f"names {twice} twice: expected each address once")
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
            f"{shown(text)} is not an IP address: expected for example 127.0.0.1, or 0.0.0.0,::"
        ) from None


# The name of a stream, or the prefix of a durable's.
NATS_NAME: Final = Form("text", _nats_name)
# The subject of the dead letters without the company, apart from the events' subjects.
BASE_SUBJECT: Final = Form("text", _base_subject)
COMPANIES: Final = Form("list", _companies)
# Names of companies in which `*` and `?` stand for any characters.
COMPANY_PATTERNS: Final = Form("list", _patterns)
# A connection URL or keyword/value text of PostgreSQL.
DSN: Final = Form("URL", _dsn)
# URLs of NATS servers, separated by commas.
SERVERS: Final = Form("URLs", _servers)
# IP addresses to listen on, separated by commas.
ADDRESSES: Final = Form("list", _addresses)
