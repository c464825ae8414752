"""The rows that a set of events must leave behind, read anew from the specification.

It shares no code with the processor, and knows nothing of batches, replicas, repeats or dead letters: a set of events
has one outcome, in whatever order they are handled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cmp_to_key
from typing import Any, Final, NamedTuple

from testkit.items import EMPTY, FIXED, HISTORY, NEWEST, Item, Payload, Table, contact_key
from testkit.traffic import Publication

NS: Final = 1_000_000_000
_CLOCK_STEP: Final = 10 * NS
_DAY: Final = 86_400
_INT32_MAX: Final = 2**31 - 1
_LAST_SECOND: Final = 7_258_118_400  # 2200-01-01

_OWN_TIME: Final = {
    "v1.messages.upsert": "message_timestamp",
    "v1.chats.upsert": "conversation_timestamp",
}


@dataclass(frozen=True, slots=True)
class Version:
    """JetStream's store time in ns (a history item: its own time), the sequence, and the incarnation of the stream.

    The incarnation is when the stream was made, in microseconds; 0 if it is not known, and for history items. Time and
    sequence alone identify the event.
    """

    ns: int
    sequence: int
    incarnation: int = field(default=0, compare=False)

    def after(self, other: Version) -> bool:
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
        if self.publication.event_type not in HISTORY or item.refused:
            return self.version
        own = max(0, _seconds(item.payload.get(_OWN_TIME.get(item.type, "")))) * NS
        return Version(min(own, self.version.ns), self.version.sequence)


class Fact(NamedTuple):
    """An item with the version of its values."""

    item: Item
    version: Version
    event: Published

    @property
    def history(self) -> bool:
        """Whether it comes from a history batch."""
        return self.event.publication.event_type in HISTORY

    @property
    def onboards(self) -> str:
        """The cleaned phone of the contact that it makes, if it does; else empty."""
        return "" if self.history else self.item.onboards

    @property
    def sent_at(self) -> int:
        """When its message was sent, in Unix seconds; 0 if it does not say."""
        return _seconds(self.item.payload.get("message_timestamp"))


@cmp_to_key
def by_age(first: Published | Fact, second: Published | Fact) -> int:
    """A key to sort by: the oldest version first."""
    return first.version.after(second.version) - second.version.after(first.version)


@dataclass
class ExpectedRow:
    """What one row must hold.

    `newest` has columns that follow the newest event, with the version of the value (None: written without one);
    `fixed` the values between which the order of arrival decides; `unversioned` what follows other rules. `days`
    are pairs of message_timestamp and day since 1970; `closed` columns take nothing from history. Of a contact, `first`
    is the message that onboards it.
    """

    last: Fact | None = None
    newest: dict[str, tuple[Any, Version | None]] = field(default_factory=dict)
    fixed: dict[str, list[Any]] = field(default_factory=dict)
    unversioned: Payload = field(default_factory=dict)
    days: set[tuple[int, int]] = field(default_factory=set)
    steps: set[Version] = field(default_factory=set)
    closed: frozenset[str] = frozenset()
    tags: set[str] = field(default_factory=set)
    first: Fact | None = None

    @property
    def open_steps(self) -> set[Version]:
        """The unread messages that no newer absolute count has overtaken."""
        _, since = self.newest.get("unread_count", (0, None))
        return {step for step in self.steps if since is None or step.after(since)}

    def values(self) -> Payload:
        """The columns that have exactly one right value."""
        found = self.unversioned | {column: value for column, (value, _) in self.newest.items()}
        if "unread_count" in found or self.steps:
            found["unread_count"] = min(_INT32_MAX, found.get("unread_count", 0) + len(self.open_steps))
        return found

    def apply(self, fact: Fact) -> None:
        """Take the values of a fact; facts come in the order of their versions."""
        self.last = fact
        item, payload = fact.item, fact.item.payload
        for column in NEWEST[item.type]:
            if payload.get(column) not in (None, ""):
                self._set(column, payload[column], fact)
        for column in FIXED.get(item.type, ()):
            if payload.get(column):
                self.fixed.setdefault(column, []).append(payload[column])
        if item.type == "v1.chats.upsert":
            self.fixed.setdefault("is_group", []).append(bool(payload.get("is_group")))
        if item.table == "chats":
            self._count(fact)
        elif item.type == "v1.messages.upsert":
            sent_at = fact.sent_at
            known = 0 < sent_at < _LAST_SECOND
            self.days.add((sent_at, (sent_at if known else fact.event.version.ns // NS) // _DAY))

    def onboard(self, fact: Fact) -> None:
        """Take an incoming message of the contact; these come in the order of their versions."""
        payload = fact.item.payload
        if self.first is None:
            self.first = fact
            self.unversioned |= {
                "first_message_id": payload["message_id"],
                "first_message_timestamp": fact.sent_at,
            }
        self.fixed.setdefault("phone_number", []).append(fact.onboards)
        self.fixed["chat_id"].append(None if payload["jid"].endswith("@g.us") else payload["chat_id"])
        campaign = payload.get("campaign") or {}
        if not campaign.get("is_campaign"):
            if not self.unversioned["origin"]:
                self.unversioned["origin"] = "DirectChat"
                self.tags.add("Onboarded")
            return
        self.tags |= {tag.strip() for tag in (campaign.get("tags") or "").split(",") if tag.strip()}
        if campaign.get("assigned_to"):
            self.newest["assigned_to"] = (campaign["assigned_to"], fact.version)
        self.unversioned["origin"] = self.unversioned["origin"] or campaign.get("origin") or ""

    def _set(self, column: str, value: Any, fact: Fact) -> None:
        if not (fact.history and column in self.closed):
            self.newest[column] = (value, fact.version)

    def _count(self, fact: Fact) -> None:
        payload = fact.item.payload
        talked_at = _seconds(payload.get("conversation_timestamp"))
        self.unversioned["conversation_timestamp"] = max(
            talked_at, self.unversioned["conversation_timestamp"]
        )
        number = payload.get("unread_count") or 0
        if fact.item.type == "v1.chats.update" and number == 1:
            self.steps.add(fact.version)
        else:
            self._set("unread_count", max(0, number), fact)


@dataclass
class Expected:
    """All rows by table and key, and the updates that never find their row."""

    rows: dict[Table, dict[str, ExpectedRow]] = field(
        default_factory=lambda: {"messages": {}, "chats": {}, "contacts": {}, "agents": {}}
    )
    orphans: list[Fact] = field(default_factory=list)

    def make(self, table: Table, key: str) -> ExpectedRow:
        """The row, which is there from now on."""
        if (row := self.rows[table].get(key)) is None:
            row = self.rows[table][key] = ExpectedRow(unversioned=dict(EMPTY[table]))
            if table == "contacts":
                agent, _, phone = key.rpartition(" ")
                row.fixed["chat_id"] = [None, f"{agent}_{phone.replace('-', '')}"]
        return row


def facts(events: Iterable[Published]) -> list[Fact]:
    """What the items of these events say; the refused ones say nothing, but count."""
    return [Fact(item, event.version_of(item), event) for event in events for item in event.publication.items]


def expected(stored: Iterable[Fact], before: Expected | None = None) -> Expected:
    """The rows that these facts must leave; refused ones leave none. `before`: rows that were there already."""
    sound = [fact for fact in stored if not fact.item.refused]
    of_row = _in_order(((fact.item.table, fact.item.key), fact) for fact in sound)
    incoming = [fact for fact in sound if fact.onboards]
    of_contact = _in_order(
        (("contacts", contact_key(fact.item.payload["agent_id"], fact.onboards)), fact) for fact in incoming
    )
    result = deepcopy(before) if before else Expected()
    # A row is there as soon as something makes it, whatever comes first.
    for (table, key), about in of_row.items():
        if table == "agents" or any(fact.item.type.endswith(".upsert") for fact in about):
            result.make(table, key)
    for (table, key), about in of_contact.items():
        contact = result.make(table, key)
        for fact in about:
            contact.onboard(fact)
    for (table, key), about in of_row.items():
        if (found := result.rows[table].get(key)) is None:
            result.orphans += about
        else:
            for fact in about:
                found.apply(fact)
    return result


def _in_order(named: Iterable[tuple[tuple[Table, str], Fact]]) -> dict[tuple[Table, str], list[Fact]]:
    """The facts of each row, the oldest first."""
    groups: defaultdict[tuple[Table, str], list[Fact]] = defaultdict(list)
    for row, fact in named:
        groups[row].append(fact)
    # Versions have a total order among the events of a row only. It is stable: of equal ones the later one counts.
    return {row: sorted(about, key=by_age) for row, about in groups.items()}


def _seconds(value: Any) -> int:
    """A timestamp in seconds; milliseconds are divided."""
    number = int(value or 0)
    return number // 1000 if number >= 100_000_000_000 else number
