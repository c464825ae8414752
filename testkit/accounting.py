"""Whether every published event, and every item of a history batch, has come to exactly one final place.

The places: a row of no older version, a waiting dead letter, or a row of exhausted_events. Rows must moreover
hold the newest values, and every phone that wrote must have one contact and one onboarding_log row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from events.subjects import EVENT_TYPES, HISTORICAL
from testkit.final_places import Evidence, Given, Row, batch_items, comparable
from testkit.items import Item, Table
from testkit.oracle import Expected, Model, Published, Version
from testkit.traffic import Publication

STORED: Final = "stored"
WAITING: Final = "waiting"
EXHAUSTED: Final = "exhausted"
MISSING: Final = "missing"
_COLUMNS: Final = ("published", "repeats", "items", STORED, WAITING, EXHAUSTED, MISSING)
_SHOWN_PROBLEMS: Final = 10


@dataclass(slots=True)
class Report:
    """The table by event type, and everything that is not as it must be, by subject and sequence."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in EVENT_TYPES})
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything is accounted for."""
        return not self.problems

    def text(self) -> str:
        """The table and the first problems, for people."""
        rows = [*self.counts.items(), ("total", sum(self.counts.values(), Counter()))]
        lines = [_line("event type", _COLUMNS)]
        lines += [_line(name, [counts[column] for column in _COLUMNS]) for name, counts in rows]
        lines += ["", *(f"NOT ACCOUNTED FOR: {problem}" for problem in self.problems[:_SHOWN_PROBLEMS])]
        if len(self.problems) > _SHOWN_PROBLEMS:
            lines.append(f"... and {len(self.problems) - _SHOWN_PROBLEMS} more")
        if self.ok:
            lines.append("Every event and every history item has exactly one final place.")
        return "\n".join(lines)


def _line(name: str, cells: Sequence[object]) -> str:
    return f"{name:<24}" + "".join(f"{cell!s:>11}" for cell in cells)


@dataclass(slots=True)
class _Letters:
    """The dead letters, or the exhausted events, by the event that they carry."""

    by_version: dict[Version, list[Given]]

    @classmethod
    def of(cls, given: Sequence[Given]) -> _Letters:
        found: dict[Version, list[Given]] = {}
        for one in given:
            found.setdefault(one.version, []).append(one)
        return cls(found)

    def has(self, published: Published, item: Item) -> bool:
        """Whether one of them carries this item."""
        given = self.by_version.get(published.version, ())
        event_type = published.publication.event_type
        if event_type not in HISTORICAL or _whole(published):
            return bool(given)
        return any(_carries(one, published.publication, item) for one in given)


def _whole(published: Published) -> bool:
    """Whether a history event was refused as a whole: then it has one item, and that has no text."""
    items = published.publication.items
    return len(items) == 1 and items[0].refused and not items[0].text


def _carries(given: Given, batch: Publication, item: Item) -> bool:
    held = batch_items(given.body, batch.event_type.rpartition(".")[2])
    if item.refused:
        return comparable(json.loads(item.text)) in held
    # A batch may hold a good and a broken item of the same chat: only what is left over can be the good one.
    broken = Counter(comparable(json.loads(one.text)) for one in batch.items if one.refused)
    return any(_names(json.loads(text), item) for text in held - broken)


def _names(payload: object, item: Item) -> bool:
    if not isinstance(payload, dict):
        return False
    if item.table == "contacts":
        return f"{payload.get('agent_id')} {payload.get('phone_number')}" == item.key
    return item.key in (payload.get("message_id"), payload.get("chat_id"))


class Accounting:
    """The account of one company. `published`: its events as JetStream stored them."""

    def __init__(self, company: str, published: Sequence[Published], evidence: Evidence) -> None:
        self._company = company
        self._published = published
        self._evidence = evidence
        self._letters = _Letters.of(evidence.letters)
        self._exhausted = _Letters.of(evidence.exhausted)
        self._model = Model()
        self._latest: dict[tuple[Table, str], Published] = {}
        self._waiting: set[Version] = set()

    def add_to(self, report: Report) -> None:
        """Write this company's part of the report."""
        for published in self._published:
            counts = report.counts[published.publication.event_type]
            for index, item in enumerate(published.publication.items):
                place, problem = self._place(published, item)
                counts["items"] += 1
                counts[place] += 1
                if problem:
                    report.problems.append(f"{_name(published, index)}: {problem}")
        report.problems += self._wrong_rows()
        report.problems += self._wrong_onboarding()
        report.problems += self._wrong_queue()

    def _place(self, published: Published, item: Item) -> tuple[str, str]:
        waiting, exhausted = self._letters.has(published, item), self._exhausted.has(published, item)
        stored = self._stored(published, item)
        if item.refused and stored:
            return MISSING, "can never be stored, but there is a row"
        if stored and exhausted:
            return MISSING, "has a row and is in exhausted_events as well"
        if stored:
            self._model.add(published.version_of(item), item)
            self._latest[item.table, item.key] = published
            return STORED, ""
        if exhausted:
            return EXHAUSTED, ""
        if waiting:
            self._waiting.add(published.version)
            return WAITING, ""
        return MISSING, "has neither a row of its version or newer, nor a dead letter, nor an exhausted row"

    def _stored(self, published: Published, item: Item) -> bool:
        rows = self._evidence.rows[item.table].get(item.key, ())
        if item.refused:
            return bool(item.key and rows)
        return not all(published.version_of(item).newer_than(row.newest) for row in rows)

    def _wrong_rows(self) -> Iterator[str]:
        for table, rows in self._evidence.rows.items():
            expected = self._model.rows[table]
            for key, found in rows.items():
                if key not in expected:
                    if table != "contacts" or key not in self._model.first_messages:
                        yield f"{self._company}: a row of {table} belongs to no event that is stored"
                    continue
                last = self._latest[table, key].name
                if len(found) > 1:
                    yield f"{last}: {len(found)} rows of {table} instead of one"
                for column in _differing(expected[key], found[0]):
                    yield f"{last}, or one before it on its row: {table}.{column} is not the newest value"

    def _wrong_onboarding(self) -> Iterator[str]:
        for contact, first in self._model.first_messages.items():
            name = f"v1.messages.upsert.{self._company} sequence {first.version.sequence}"
            contacts = self._evidence.rows["contacts"].get(contact, [])
            logged = self._evidence.onboarded.get(contact, [])
            if len(contacts) != 1:
                yield f"{name}: its phone has {len(contacts)} contacts instead of one"
            elif contacts[0].columns["first_message_id"] != first.message_id:
                yield f"{name}: its contact does not name it as the first message"
            if len(logged) != 1:
                yield f"{name}: its phone has {len(logged)} rows of onboarding_log instead of one"
            elif logged != [first.message_id]:
                yield f"{name}: onboarding_log does not name it as the first message"

    def _wrong_queue(self) -> Iterator[str]:
        backlog = self._evidence.backlog
        if backlog.lag:
            yield (
                f"{self._company}: the consumers have {backlog.pending} events pending and "
                f"{backlog.unacknowledged} unacknowledged"
            )
        if backlog.waiting != len(self._waiting):
            yield (
                f"{self._company}: {backlog.waiting} dead letters wait in the consumer, but "
                f"{len(self._waiting)} events need one{self._doubtful()}"
            )

    def _doubtful(self) -> str:
        """The letters of events that have come to another place as well."""
        doubtful = [
            published.name
            for published in self._published
            if published.version in self._letters.by_version and published.version not in self._waiting
        ]
        return f"; in two places perhaps: {', '.join(doubtful[:3])}" if doubtful else ""


def _differing(expected: Expected, row: Row) -> Iterator[str]:
    for column, value in expected.values().items():
        if row.columns.get(column) != value:
            yield column


def _name(published: Published, index: int) -> str:
    many = len(published.publication.items) > 1
    return f"{published.name}{f' item {index}' if many else ''}"
