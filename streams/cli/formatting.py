"""Exhausted events as a person, or `faust --json`, reads them. What came from senders is shown without its controls."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from events.redaction import redacted
from streams.cli.exhausted_events import Listed

_COLUMNS: Final = ("id", "company", "subject", "tries", "when", "state", "error")
_PAYLOADS: Final = ("dlq_payload", "original_payload")
_WIDEST_ERROR: Final = 100


def table(found: Sequence[Listed]) -> str:
    """One line a row, with a heading; long errors are cut."""
    return aligned(_COLUMNS, [_values(listed) for listed in found])


def aligned(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """One line a row, with a heading; the last column is cut where it is long."""
    if not rows:
        return "none"
    lines = [tuple(columns), *(tuple(map(_line, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([*map(str.ljust, line[:-1], widths), line[-1][:_WIDEST_ERROR]]) for line in lines
    )


def size(number: int | None) -> str:
    """Bytes as a person reads them; "" for None."""
    if number is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 10_000:
            return f"{number} {unit}"
        number = round(number / 1000)
    return f"{number} TB"


def as_json(found: Sequence[Listed]) -> str:
    """The same as a list of objects, errors whole."""
    return json.dumps(
        [dict(zip(_COLUMNS, _values(listed), strict=True)) for listed in found], default=_moment
    )


def fields(row: Mapping[str, Any], *, payload: bool) -> str:
    """All of one row, a field a line; its payloads only with `payload`, below."""
    lines = [f"{name}: {_text(_moment(value))}" for name, value in row.items() if name not in _PAYLOADS]
    if payload:
        lines += [f"{name}:\n{_shown(row[name] or 'none')}" for name in _PAYLOADS]
    return "\n".join(lines)


def fields_as_json(row: Mapping[str, Any], *, payload: bool) -> str:
    """The same as one object."""
    chosen = {name: value for name, value in row.items() if name not in _PAYLOADS}
    if payload:
        chosen |= {name: None if row[name] is None else json.loads(row[name]) for name in _PAYLOADS}
    return json.dumps(chosen, default=_moment)


def _values(listed: Listed) -> tuple[object, ...]:
    row = listed.row
    state = "resolved" if row.resolved else "open"
    moment = row.given_up_at and _moment(row.given_up_at)
    error = redacted(row.last_error)
    return row.id, listed.tenant.company, row.source_subject, row.retry_count, moment, state, error


def _moment(value: object) -> object:
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return value


def _line(value: object) -> str:
    return " ".join(_shown("" if value is None else str(value)).split())


def _text(value: object) -> str:
    """A field's value; further lines of it are set in."""
    return redacted(_shown("" if value is None else str(value))).replace("\n", "\n  ")


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)
