"""What the tables must hold after a set of events, read anew from the specification.

It shares no code with the processor. It knows nothing of batches, replicas, repeats or dead letters: a set of
events has one outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cmp_to_key
from typing import Any, Final, NamedTuple

from tests.properties.fields import HISTORY, KEPT, NEWEST, OBJECTS, REQUIRED

Payload = dict[str, Any]
Pair = tuple[str, str]  # agent_id, cleaned phone

NS: Final = 1_000_000_000
DAY: Final = 86_400
INT32_MAX: Final = 2**31 - 1
LAST_SECOND: Final = 7_258_118_400  # 2200-01-01


@dataclass(frozen=True)
class Version:
    """JetStream's store time, or a history item's own, in ns; the sequence; when the stream was made, in ns.

    The last is 0 where it is not known, and for history items. It is not needed to tell events apart.
    """

    ns: int
    sequence: int
    made: int = field(default=0, compare=False)

    @property
    def event(self) -> str:
        """How the parts that every version has are written."""
        return f"{self.ns}-{self.sequence}"

    def after(self, other: Version) -> bool:
        """In one stream the clocks may be ten seconds apart: then the sequence counts. Else the time."""
        mine, others = [self.ns, self.sequence], [other.ns, other.sequence]
        if self.made == other.made != 0 and abs(self.ns - other.ns) <= 10 * NS:
            mine.reverse()
            others.reverse()
        return mine > others


class Event(NamedTuple):
    """An event as JetStream stored it."""

    type: str
    version: Version
    payload: Payload


class Adopted(NamedTuple):
    """A row that the existing service left, without versions."""

    table: str
    key: str
    values: Mapping[str, Any]


class Fact(NamedTuple):
    """What one event, or one item of a history batch, says."""

    type: str
    version: Version
    history: bool
    said: Payload
    stored_ns: int


@dataclass
class Row:
    """One row: `columns` with the version of their value (None: it has none), and what other columns may hold."""

    newest: Version | None = None
    columns: dict[str, tuple[Any, Version | None]] = field(default_factory=dict)
    kept: dict[str, set[Any]] = field(default_factory=dict)
    days: set[tuple[int, int]] = field(default_factory=set)  # message_timestamp, day since 1970
    talked_at: int = 0
    steps: set[Version] = field(default_factory=set)
    closed: frozenset[str] = frozenset()  # to history: the existing service filled them

    def feed(self, fact: Fact, values: Mapping[str, Any]) -> None:
        """Take the values of a fact; facts come in the order of their versions."""
        for column, value in values.items():
            if not (fact.history and column in self.closed):
                self.columns[column] = (value, fact.version)

    @property
    def unread(self) -> int:
        """The newest absolute value and the distinct steps newer than it."""
        return min(INT32_MAX, int(self.columns["unread_count"][0]) + len(self.open_steps))

    @property
    def open_steps(self) -> set[Version]:
        """The steps that no absolute value has overtaken."""
        since = self.columns["unread_count"][1]
        return {step for step in self.steps if since is None or step.after(since)}


@dataclass
class Contact:
    """One contact. `origin` is None when nothing gave one."""

    push_name: tuple[str, Version] | None = None
    assigned_to: tuple[str, Version] | None = None
    origin: str | None = None
    tags: set[str] = field(default_factory=set)
    first: Fact | None = None
    chat_ids: set[str | None] = field(default_factory=set)
    phones: set[str] = field(default_factory=set)


@dataclass
class Expected:
    """All rows. `exhausted` has the given-up events by version, with what of their payload may be kept."""

    rows: dict[str, dict[str, Row]] = field(
        default_factory=lambda: {"messages": {}, "chats": {}, "agents": {}}
    )
    contacts: dict[Pair, Contact] = field(default_factory=dict)
    exhausted: dict[Version, list[Payload]] = field(default_factory=dict)


def expected(events: Iterable[Event], company: str, adopted: Iterable[Adopted] = ()) -> Expected:
    """The rows that these events must leave."""
    events = list(events)
    facts: list[Fact] = []
    result = Expected()
    for event in events:
        good, bad = _read(event, company)
        facts += good
        if bad:
            result.exhausted[event.version] = bad
    for row in adopted:
        result.rows[row.table][row.key] = _left_behind(row)
    facts.sort(key=_by_age)  # stable: of equal versions the later one counts
    for fact in facts:
        _make(result, fact)
    for fact in facts:
        if not _apply(result, fact):
            result.exhausted[fact.version] = [fact.said]
    _onboard(result, facts)
    return result


@cmp_to_key
def _by_age(one: Fact, other: Fact) -> int:
    return one.version.after(other.version) - other.version.after(one.version)


def _left_behind(adopted: Adopted) -> Row:
    values = dict(adopted.values)
    talked_at = values.pop("conversation_timestamp", 0)
    filled = frozenset(column for column, value in values.items() if value not in ("", None, False))
    # Zero unread messages are a value.
    closed = filled | ({"unread_count"} & values.keys())
    columns: dict[str, tuple[Any, Version | None]] = {column: (values[column], None) for column in values}
    return Row(columns=columns, talked_at=talked_at, closed=closed)


def clean(phone: str) -> str:
    return "".join(char for char in phone if char not in "+ ()")


def seconds(value: Any) -> int:
    """A timestamp; milliseconds are divided (MSG-4)."""
    number = int(value or 0)
    return number // 1000 if number >= 100_000_000_000 else number


def _read(event: Event, company: str) -> tuple[list[Fact], list[Payload]]:
    """What an event says, and the payloads that its dead letter may carry if something of it is not valid."""
    if event.type not in HISTORY:
        if not _valid(event.type, event.payload, company):
            return [], [event.payload]
        return [Fact(event.type, event.version, False, event.payload, event.version.ns)], []
    name, kind = HISTORY[event.type]
    items = event.payload.get(name) or []
    good = [item for item in items if _valid(kind, item, company)]
    bad = [item for item in items if not _valid(kind, item, company)]
    facts = [
        Fact(kind, Version(min(_own_time(kind, item), event.version.ns), event.version.sequence), True, item,
             event.version.ns)
        for item in good
    ]  # fmt: skip
    return facts, [{name: bad}, event.payload] if bad else []


def _own_time(kind: str, item: Payload) -> int:
    field_name = {"v1.messages.upsert": "message_timestamp", "v1.chats.upsert": "conversation_timestamp"}
    return max(0, seconds(item.get(field_name.get(kind, "")))) * NS


def _valid(kind: str, said: Payload, company: str) -> bool:
    return (
        all(said.get(name) for name in REQUIRED[kind])
        and said.get("company_id", company) in ("", company)
        and said.get("flow", "IN") in ("IN", "OUT")
        and (kind != "v1.contacts.update" or said.get("push_name") is not None)
    )


def _fed(fact: Fact) -> dict[str, Any]:
    """The columns that a fact really feeds: an empty text is none, `{}` and an explicit false are values."""
    return {
        column: value
        for column in NEWEST[fact.type]
        if (value := fact.said.get(column)) is not None and (column in OBJECTS or value != "")
    }


def _make(result: Expected, fact: Fact) -> None:
    """A row is there as soon as something makes it, whatever comes first."""
    said = fact.said
    match fact.type:
        case "v1.messages.upsert":
            result.rows["messages"].setdefault(said["message_id"], Row())
        case "v1.chats.upsert":
            result.rows["chats"].setdefault(said["chat_id"], Row())
        case "v1.connection.update":
            result.rows["agents"].setdefault(said["agent_id"], Row())
        case "v1.contacts.upsert":
            result.contacts.setdefault((said["agent_id"], clean(said["phone_number"])), Contact())
    if onboards(fact):
        result.contacts.setdefault((said["agent_id"], clean(said["from_phone"])), Contact())


def _apply(result: Expected, fact: Fact) -> bool:
    """Fold a fact into its row; False if there is none."""
    table = {"messages": "message_id", "chats": "chat_id", "connection": "agent_id"}
    kind = fact.type.split(".")[1]
    if kind == "contacts":
        return _name(result, fact)
    row = result.rows["agents" if kind == "connection" else kind].get(fact.said[table[kind]])
    if row is None:
        return False
    row.newest = fact.version  # facts come in the order of their versions
    row.feed(fact, _fed(fact))
    for column in KEPT.get(fact.type, ()):
        if value := fact.said.get(column):
            row.kept.setdefault(column, set()).add(value)
    if kind == "chats":
        _count(row, fact)
    elif fact.type == "v1.messages.upsert":
        row.days.add(_day(fact))
    return True


def _day(fact: Fact) -> tuple[int, int]:
    sent_at = seconds(fact.said.get("message_timestamp"))
    known = 0 < sent_at < LAST_SECOND
    return sent_at, (sent_at if known else fact.stored_ns // NS) // DAY


def _count(row: Row, fact: Fact) -> None:
    row.talked_at = max(row.talked_at, seconds(fact.said.get("conversation_timestamp")))
    number = fact.said.get("unread_count") or 0
    if fact.type == "v1.chats.upsert":
        row.feed(fact, {"unread_count": number})
    elif number == 1:
        row.steps.add(fact.version)
    else:
        row.feed(fact, {"unread_count": max(0, number)})


def _name(result: Expected, fact: Fact) -> bool:
    said = fact.said
    contact = result.contacts.get((said["agent_id"], clean(said["phone_number"])))
    if contact is None:
        return False
    if said["push_name"]:
        contact.push_name = (said["push_name"], fact.version)
    if fact.type == "v1.contacts.upsert":
        contact.chat_ids.add(said["chat_id"])
        contact.phones.add(said["phone_number"])
    return True


def onboards(fact: Fact) -> bool:
    """Whether it is an incoming message of somebody who can have a contact (ONB-1, ONB-12)."""
    said = fact.said
    return (
        fact.type == "v1.messages.upsert"
        and not fact.history
        and said["flow"] == "IN"
        and clean(said.get("from_phone") or "") != ""
        and not said["jid"].endswith(("@broadcast", "@newsletter"))
    )


def _onboard(result: Expected, facts: Iterable[Fact]) -> None:
    """Contact and log row (ONB-4 to ONB-12), over the incoming messages in the order of their versions."""
    for fact in filter(onboards, facts):
        said = fact.said
        pair = said["agent_id"], clean(said["from_phone"])
        contact = result.contacts[pair]
        contact.first = contact.first or fact
        contact.phones.add(pair[1])
        contact.chat_ids.add(None if said["jid"].endswith("@g.us") else said["chat_id"])
        campaign = said.get("campaign") or {}
        if not campaign.get("is_campaign"):
            if contact.origin is None:
                contact.origin = "DirectChat"
                contact.tags.add("Onboarded")
            continue
        contact.tags.update(_tags(campaign))
        if campaign.get("assigned_to"):
            contact.assigned_to = (campaign["assigned_to"], fact.version)
        contact.origin = contact.origin or campaign.get("origin") or None


def _tags(campaign: Payload) -> Iterator[str]:
    return (tag for part in (campaign.get("tags") or "").split(",") if (tag := part.strip()))
