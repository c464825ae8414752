"""The rows that a set of events must leave behind, in whatever order they were handled (VER-9)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cmp_to_key
from typing import Any, NamedTuple

from testkit.items import Item, Table
from testkit.traffic import Publication

_NS: int = 1_000_000_000
_CLOCK_STEP: int = 10 * _NS


@dataclass(frozen=True, slots=True)
class Version:
    """JetStream's store time in ns (a history item: its own time), the sequence, and the incarnation of the stream.

    The incarnation is when the stream was made, in microseconds; 0 if it is not known. Time and sequence alone say
    which event it is.
    """

    ns: int
    sequence: int
    incarnation: int = field(default=0, compare=False)

    def newer_than(self, other: Version) -> bool:
        """By sequence in one incarnation and within ten seconds, otherwise by time."""
        mine, theirs = (self.ns, self.sequence), (other.ns, other.sequence)
        if 0 < self.incarnation == other.incarnation and abs(self.ns - other.ns) <= _CLOCK_STEP:
            mine, theirs = mine[::-1], theirs[::-1]
        return mine > theirs


class Published(NamedTuple):
    """A publication as JetStream stored it."""

    publication: Publication
    version: Version

    @property
    def name(self) -> str:
        """What it is called in reports: never by its payload."""
        return f"{self.publication.subject} sequence {self.version.sequence}"

    def version_of(self, item: Item) -> Version:
        """The version of one of its items."""
        if item.seconds is None:
            return self.version
        return Version(max(0, min(item.seconds * _NS, self.version.ns)), self.version.sequence)


@cmp_to_key
def in_order(first: Published, second: Published) -> int:
    """A key to sort by: the oldest version first."""
    return first.version.newer_than(second.version) - second.version.newer_than(first.version)


@dataclass(slots=True)
class Expected:
    """What one row must hold: per column the newest value."""

    newest: Version = Version(-1, -1)
    columns: dict[str, tuple[Any, Version]] = field(default_factory=dict)
    steps: set[Version] = field(default_factory=set)

    def add(self, version: Version, item: Item) -> None:
        """Fold in an item; of two with the same version the later one counts."""
        if version.newer_than(self.newest):
            self.newest = version
        if item.step:
            self.steps.add(version)
        for column, value in item.values.items():
            if column == "conversation_timestamp":
                value = max(value, self.columns.get(column, (value, version))[0])
            elif column in self.columns and self.columns[column][1].newer_than(version):
                continue
            self.columns[column] = (value, version)

    def values(self) -> dict[str, Any]:
        """The value of each column that an event fed."""
        values = {column: value for column, (value, _) in self.columns.items()}
        if "unread_count" in values or self.steps:
            counted, since = self.columns.get("unread_count", (0, Version(-1, -1)))
            values["unread_count"] = counted + sum(step.newer_than(since) for step in self.steps)
        return values


class First(NamedTuple):
    """The incoming message that onboards a phone: the one with the lowest version."""

    version: Version
    message_id: str


@dataclass(slots=True)
class Model:
    """The rows that must be there, by table and key; the first message of each phone, by contact key."""

    rows: dict[Table, dict[str, Expected]] = field(
        default_factory=lambda: {"messages": {}, "chats": {}, "contacts": {}, "agents": {}}
    )
    first_messages: dict[str, First] = field(default_factory=dict)

    def add(self, version: Version, item: Item) -> None:
        """Fold in an item that is stored."""
        self.rows[item.table].setdefault(item.key, Expected()).add(version, item)
        if item.onboards:
            contact = f"{item.values['agent_id']} {item.onboards}"
            known = self.first_messages.get(contact)
            if known is None or known.version.newer_than(version):
                self.first_messages[contact] = First(version, item.key)


def model(stored: Iterable[tuple[Version, Item]]) -> Model:
    """The model of these items."""
    made = Model()
    for version, item in stored:
        made.add(version, item)
    return made
