"""Where the tables differ from the rows that the oracle asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

from testkit.evidence import Evidence, Row, parse_version
from testkit.items import Table
from testkit.oracle import Expected, ExpectedRow, Version

Kind = Literal["lost", "doubled", "wrong", "needless"]
_NOTHING: Final = ("", None, False, 0)
_EPOCH: Final = 719_163  # 1970-01-01 as an ordinal


class Problem(NamedTuple):
    """What is not as it must be. The text names events by subject and sequence; only `detail` has keys and values."""

    kind: Kind
    text: str
    detail: str = ""


def differences(company: str, expected: Expected, evidence: Evidence) -> Iterator[Problem]:
    """Each way in which the rows differ."""
    for table, rows in evidence.rows.items():
        wanted = expected.rows[table]
        for key in rows.keys() - wanted.keys():
            text = f"{company}: a row of {table} belongs to no event that is stored"
            yield Problem("wrong", text, f"{table} {key}")
        for key, row in wanted.items():
            name, found = _name(company, row), rows.get(key, [])
            if len(found) != 1:
                yield _miscounted(name, table, key, found)
                continue
            for what, there, due, right in _checks(table, key, row, found[0], evidence):
                if not right:
                    text = f"{name}, or one before it on its row: {what}"
                    yield Problem("wrong", text, f"{key} {there!r} for {due!r}")
    yield from _of_onboarding(company, expected, evidence)


def _name(company: str, row: ExpectedRow) -> str:
    fact = row.last or row.first
    return f"{company}: adopted" if fact is None else fact.event.name


def _miscounted(name: str, table: str, key: str, found: Sequence[Row]) -> Problem:
    kind: Kind = "doubled" if found else "lost"
    return Problem(kind, f"{name}: {len(found)} rows of {table} instead of one", f"{table} {key}")


def _checks(
    table: Table, key: str, wanted: ExpectedRow, found: Row, evidence: Evidence
) -> Iterator[tuple[str, object, object, bool]]:
    """What is said if it is not so, what is there, what is due, and whether that is right."""
    columns = found.columns
    for column, value in wanted.values().items():
        there = columns.get(column)
        yield f"{table}.{column} is not the newest value", there, value, there == value
    for column, choices in wanted.fixed.items():
        yield f"{table}.{column} is of no event", columns[column], choices, columns[column] in choices
    for column, (value, version) in wanted.newest.items():
        text = found.version_of(column)
        right = value in _NOTHING or _is(text, version)
        yield f"{table}.{column} has another version", text, version, right
    if table == "contacts":
        tags = sorted(tag.strip() for tag in columns["tags"].split(",") if tag.strip())
        yield "contacts.tags are not those of the campaigns", tags, wanted.tags, tags == sorted(wanted.tags)
        return
    last = wanted.last and wanted.last.version
    text = (columns["last_metadata"] or {}).get("version")
    yield f"the row of {table} has another version", text, wanted.last, _is(text, last)
    if table == "chats":
        steps = evidence.steps.get(key, set())
        yield "chat_steps are not the open ones", steps, wanted.open_steps, steps == wanted.open_steps
    if table == "messages":
        date, kept = columns["message_date"], evidence.message_keys.get(key)
        day = (columns["message_timestamp"], date.toordinal() - _EPOCH)
        free = not wanted.days or bool(wanted.closed)
        yield "messages has another time or day", day, wanted.days, free or day in wanted.days
        yield "message_keys has another day", kept, date, not last or kept == date


def _of_onboarding(company: str, expected: Expected, evidence: Evidence) -> Iterator[Problem]:
    firsts = {key: row.first for key, row in expected.rows["contacts"].items() if row.first is not None}
    for key in evidence.onboarded.keys() - firsts.keys():
        text = f"{company}: a row of onboarding_log belongs to no event that is stored"
        yield Problem("wrong", text, key)
    for key, first in firsts.items():
        logs = evidence.onboarded.get(key, [])
        if len(logs) != 1:
            yield _miscounted(first.event.name, "onboarding_log", key, logs)
            continue
        wanted = (first.item.key, first.sent_at)
        found = (logs[0].columns["message_id"], logs[0].columns["timestamp"])
        version = logs[0].version_of("")
        if found != wanted or not _is(version, first.version):
            text = f"{first.event.name}: onboarding_log does not name it as the first message"
            yield Problem("wrong", text, f"{key} {found}, {version} for {wanted}, {first.version}")


def _is(text: Any, version: Version | None) -> bool:
    """Whether this is the version as it is written; a worker may not know the incarnation of the stream."""
    if version is None:
        return text is None
    found = parse_version(text)
    return found == version and found.incarnation in (0, version.incarnation)
