"""Whether every published event, and every item of a history batch, has come to exactly one final place.

The places: a row of no older version, a waiting dead letter, or a row of exhausted_events. Rows must moreover be those
that the oracle asks for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from events.subjects import EVENT_TYPES
from testkit.differences import Problem, differences
from testkit.evidence import Evidence, Given
from testkit.items import HISTORY
from testkit.oracle import Expected, Fact, Published, Version, expected, facts

STORED: Final = "stored"
WAITING: Final = "waiting"
EXHAUSTED: Final = "exhausted"
MISSING: Final = "missing"
_COLUMNS: Final = ("published", "repeats", "items", STORED, WAITING, EXHAUSTED, MISSING)
_SHOWN_PROBLEMS: Final = 10


@dataclass(slots=True)
class Report:
    """The table by event type, and everything that is not as it must be."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in EVENT_TYPES})
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything is accounted for."""
        return not self.problems

    def text(self) -> str:
        """The table and the first problems, for people."""
        rows = [*self.counts.items(), ("total", sum(self.counts.values(), Counter()))]
        lines = [_line("event type", _COLUMNS)]
        lines += [_line(name, [counts[column] for column in _COLUMNS]) for name, counts in rows]
        lines += ["", *(f"NOT ACCOUNTED FOR: {problem.text}" for problem in self.problems[:_SHOWN_PROBLEMS])]
        if len(self.problems) > _SHOWN_PROBLEMS:
            lines.append(f"... and {len(self.problems) - _SHOWN_PROBLEMS} more")
        if self.ok:
            lines.append("Every event and every history item has exactly one final place.")
        return "\n".join(lines)


def _line(name: str, cells: Sequence[object]) -> str:
    return f"{name:<24}" + "".join(f"{cell!s:>11}" for cell in cells)


class _GivenUp:
    """The dead letters, or the exhausted events, by the event that they carry."""

    def __init__(self, what: str, given: Iterable[Given]) -> None:
        self._what = what
        self.by_version: dict[Version, list[Given]] = {}
        for one in given:
            self.by_version.setdefault(one.version, []).append(one)

    def has(self, fact: Fact, *, whole: bool = True) -> bool:
        """Whether one of them carries this item; `whole`: also as part of a whole batch with broken items."""
        given = self.by_version.get(fact.event.version, ())
        items = fact.event.publication.items
        if not fact.history or _is_whole(fact.event):
            return bool(given)
        carried = [found for one in given if _comparable(fact.item.payload) in (found := _items(one, fact))]
        if whole or not any(item.refused for item in items):
            return bool(carried)
        batch = Counter(_comparable(item.payload) for item in items)
        return any(found != batch for found in carried)

    def problems(self, published: dict[Version, Published]) -> Iterator[Problem]:
        """An event may have one letter and one exhausted row, however often it came; they have its payload.

        What is left of a history batch, and all of it, may be there side by side.
        """
        for version, given in self.by_version.items():
            event = published.get(version)
            if event is None:
                yield Problem("wrong", f"sequence {version.sequence}: {self._what} of no event")
                continue
            history = event.publication.event_type in HISTORY
            if len(given) > (len({one.body for one in given}) if history else 1):
                yield Problem("doubled", f"{event.name}: carried by {len(given)} {self._what}")
            if not history and any(_differ(one.body, event.publication.body) for one in given):
                yield Problem("wrong", f"{event.name}: {self._what} with another payload")


class Accounting:
    """The account of one company. `published`: its events as JetStream stored them.

    An event that can be stored may have become a dead letter all the same. `before`: rows that were there already.
    """

    def __init__(
        self,
        company: str,
        published: Sequence[Published],
        evidence: Evidence,
        *,
        before: Expected | None = None,
    ) -> None:
        self._company = company
        self._published = published
        self._by_version = {one.version: one for one in published}
        self._evidence = evidence
        self.letters = _GivenUp("dead letters", evidence.letters)
        self.exhausted = _GivenUp("exhausted rows", evidence.exhausted)
        self._before = before

    def add_to(self, report: Report) -> None:
        """Write this company's part of the report."""
        places: list[tuple[Fact, str]] = []
        for published in self._published:
            counts = report.counts[published.publication.event_type]
            for index, fact in enumerate(facts([published])):
                place, problem = self.place(fact)
                counts["items"] += 1
                counts[place] += 1
                places.append((fact, place))
                if problem:
                    which = f" item {index}" if len(published.publication.items) > 1 else ""
                    text = f"{published.name}{which}: {problem.text}"
                    report.problems.append(Problem(problem.kind, text, str(fact.item)))
        stored = [fact for fact, place in places if place == STORED]
        report.problems += differences(self._company, expected(stored, self._before), self._evidence)
        report.problems += self.letters.problems(self._by_version)
        report.problems += self.exhausted.problems(self._by_version)
        waiting = {fact.event.version for fact, place in places if place == WAITING}
        report.problems += self._wrong_queue(waiting)

    def place(self, fact: Fact) -> tuple[str, Problem | None]:
        """Where an item has ended, and what is wrong with that."""
        stored, exhausted = self._stored(fact), self.exhausted.has(fact)
        if fact.item.refused and stored:
            return MISSING, Problem("wrong", "can never be stored, but there is a row")
        if stored and self.exhausted.has(fact, whole=False):
            return MISSING, Problem("doubled", "has a row and is in exhausted_events as well")
        if stored:
            return STORED, None
        if exhausted:
            return EXHAUSTED, None
        if self.letters.has(fact):
            return WAITING, None
        text = "has neither a row of its version or newer, nor a dead letter, nor an exhausted row"
        return MISSING, Problem("lost", text)

    def _stored(self, fact: Fact) -> bool:
        rows = self._evidence.rows[fact.item.table].get(fact.item.key, ())
        if fact.item.refused:
            return bool(fact.item.key and rows)
        versions = [row.version for row in rows]
        return any(version and not fact.version.after(self._in_full(version)) for version in versions)

    def _in_full(self, version: Version) -> Version:
        """A version with its incarnation, which not every worker knows."""
        event = self._by_version.get(version)
        return version if event is None else event.version

    def _wrong_queue(self, waiting: set[Version]) -> Iterator[Problem]:
        backlog = self._evidence.backlog
        if backlog.lag:
            text = f"{backlog.pending} events pending and {backlog.unacknowledged} unacknowledged"
            yield Problem("wrong", f"{self._company}: the consumers have {text}")
        if backlog.waiting != len(waiting):
            text = f"{backlog.waiting} dead letters wait in the consumer, but {len(waiting)} events need one"
            letters = self.letters.by_version.keys() & self._by_version.keys() - waiting
            doubtful = [self._by_version[version].name for version in letters]
            text += f"; in two places perhaps: {', '.join(doubtful[:3])}" if doubtful else ""
            yield Problem("wrong", f"{self._company}: {text}")


def _is_whole(published: Published) -> bool:
    """Whether a history event was refused as a whole: then it has one item, and that has no payload."""
    items = published.publication.items
    return len(items) == 1 and items[0].refused and items[0].payload is None


def _items(given: Given, fact: Fact) -> Counter[str]:
    """The items of a history batch in a letter as comparable texts; empty for what is no batch."""
    field_name, _ = HISTORY[fact.event.publication.event_type]
    try:
        items = json.loads(given.body)[field_name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Counter()
    return Counter(map(_comparable, items)) if isinstance(items, list) else Counter()


def _comparable(item: object) -> str:
    """A JSON value as text, the same for the same value."""
    return json.dumps(item, sort_keys=True)


def _differ(one: bytes, other: bytes) -> bool:
    """Whether both are JSON, and not the same."""
    try:
        return bool(json.loads(one) != json.loads(other))
    except (ValueError, RecursionError):
        return False
