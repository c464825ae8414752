"""What is really there after a run: rows, dead letters, exhausted events, and the consumers' backlog."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import asyncpg
import nats
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo

from events import envelope
from events.errors import Malformed
from events.subjects import HISTORICAL, REALTIME, Tenant
from tables.queries import quoted
from testkit.items import Table, cleaned
from testkit.oracle import Version

DLQ: Final = "v1.dlq"
_TABLES: Final[tuple[Table, ...]] = ("messages", "chats", "contacts", "agents")
_SILENCE: Final = 5.0


class Row(NamedTuple):
    """A stored row, its jsonb columns decoded."""

    columns: dict[str, Any]

    @property
    def versions(self) -> set[Version]:
        """Every version that is written on it."""
        metadata = self.columns.get("last_metadata") or {}
        texts = {metadata.get("version"), *(metadata.get("versions") or {}).values()}
        return {version for text in texts if (version := parse_version(text))}

    @property
    def newest(self) -> Version:
        """The version of the newest event on it; (-1, -1) if it has none."""
        return parse_version((self.columns.get("last_metadata") or {}).get("version")) or Version(-1, -1)


class Given(NamedTuple):
    """An event that was given up: a dead letter, or a row of exhausted_events."""

    version: Version
    body: bytes


@dataclass(slots=True)
class Backlog:
    """What a company's consumers still have to do; `waiting`: dead letters put off or being replayed."""

    pending: int = 0
    unacknowledged: int = 0
    waiting: int = 0
    settled: int = 0

    @property
    def lag(self) -> int:
        """Events and dead letters that nobody has finished looking at."""
        return self.pending + self.unacknowledged


@dataclass(slots=True)
class Evidence:
    """All that is found of one company."""

    rows: dict[Table, dict[str, list[Row]]] = field(default_factory=dict)
    letters: list[Given] = field(default_factory=list)
    exhausted: list[Given] = field(default_factory=list)
    onboarded: dict[str, list[str]] = field(default_factory=dict)
    backlog: Backlog = field(default_factory=Backlog)

    def size(self) -> tuple[int, ...]:
        """Changes whenever something was added."""
        counts = (sum(map(len, rows.values())) for rows in self.rows.values())
        return (*counts, len(self.letters), len(self.exhausted), len(self.onboarded), self.backlog.waiting)


def parse_version(text: str | None) -> Version | None:
    """The version in `<ns>-<sequence>-<incarnation>`, the last part of which may be missing, or None."""
    parts = (text or "").split("-")
    if len(parts) not in (2, 3) or not all(part.isdigit() for part in parts):
        return None
    ns, sequence, incarnation = (int(part) for part in (*parts, "0")[:3])
    return Version(ns, sequence, incarnation // 1000)


async def gather(js: JetStreamContext, database: asyncpg.Connection, company: str) -> Evidence:
    """Read all that there is of a company."""
    tenant = Tenant(company)
    evidence = Evidence(backlog=await backlog(js, company))
    for table in _TABLES:
        evidence.rows[table] = await _rows(database, tenant.schema, table)
    evidence.onboarded = await _onboarded(database, tenant.schema)
    evidence.exhausted = await _exhausted(database, tenant.schema)
    evidence.letters = [letter async for letter in _letters(js, company)]
    return evidence


async def backlog(js: JetStreamContext, company: str) -> Backlog:
    """What the company's durable consumers say of their work."""
    found = Backlog()
    for base in (REALTIME[0], HISTORICAL[0], DLQ):
        stream = await js.find_stream_name_by_subject(f"{base}.{company}")
        for info in await js.consumers_info(stream):
            if _belongs(info, company):
                found.pending += info.num_pending or 0
                held = info.num_ack_pending or 0
                found.settled += (info.ack_floor.stream_seq if info.ack_floor else 0) + (
                    info.delivered.stream_seq if info.delivered else 0
                )
                if base == DLQ:
                    found.waiting += held
                else:
                    found.unacknowledged += held
    return found


def _belongs(info: ConsumerInfo, company: str) -> bool:
    config = info.config
    filters = [*(config.filter_subjects or ()), config.filter_subject or ""]
    return bool(config.durable_name) and any(subject.endswith(f".{company}") for subject in filters)


async def _rows(database: asyncpg.Connection, schema: str, table: Table) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for record in await database.fetch(f"SELECT * FROM {quoted(schema)}.{table}"):
        columns = {
            name: json.loads(value) if value is not None and name in _JSON else value
            for name, value in record.items()
        }
        found.setdefault(_key(table, columns), []).append(Row(columns))
    return found


_JSON: Final = frozenset({"key", "message_obj", "edited_message_obj", "last_message", "last_metadata"})
_KEYS: Final = {"messages": "message_id", "chats": "chat_id", "agents": "agent_id"}


def _key(table: Table, columns: dict[str, Any]) -> str:
    if table == "contacts":
        return f"{columns['agent_id']} {cleaned(columns['phone_number'] or '')}"
    return str(columns[_KEYS[table]])


async def _onboarded(database: asyncpg.Connection, schema: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    statement = f"SELECT agent_id, phone_number, message_id FROM {quoted(schema)}.onboarding_log"
    for agent, phone, message_id in await database.fetch(statement):
        found.setdefault(f"{agent} {phone}", []).append(message_id)
    return found


async def _exhausted(database: asyncpg.Connection, schema: str) -> list[Given]:
    statement = f"SELECT dlq_payload FROM {quoted(schema)}.exhausted_events"
    rows = await database.fetch(statement)
    return [given for (text,) in rows if (given := _given(_unwrapped(text)))]


def _unwrapped(text: str) -> bytes:
    """An envelope that PostgreSQL does not take as JSON is stored as a JSON string."""
    return (json.loads(text) if text.startswith('"') else text).encode(errors="replace")


async def _letters(js: JetStreamContext, company: str) -> AsyncIterator[Given]:
    subject = f"{DLQ}.{company}"
    stream = await js.find_stream_name_by_subject(subject)
    subscription = await js.subscribe(subject, stream=stream, ordered_consumer=True)
    try:
        info = await subscription.consumer_info()
        left = (info.num_pending or 0) + (info.delivered.consumer_seq if info.delivered else 0)
        while left > 0:
            message = await subscription.next_msg(timeout=_SILENCE)
            left = message.metadata.num_pending
            if given := _letter(message):
                yield given
    except nats.errors.TimeoutError:
        return
    finally:
        await subscription.unsubscribe()


def _letter(message: Msg) -> Given | None:
    given = _given(message.data)
    # <stream>-<sequence>-<store time>; the header and the envelope name the same event.
    _, sequence, ns = ((message.headers or {}).get("Nats-Msg-Id") or "--").rsplit("-", 2)
    named = parse_version(f"{ns}-{sequence}")
    return given if given is not None and named == given.version else None


def _given(text: bytes) -> Given | None:
    try:
        letter = envelope.decode(text)
    except Malformed:
        return None
    version = parse_version(letter.event_version)
    return Given(version, envelope.original(letter)) if version else None


def batch_items(body: bytes, field_name: str) -> Counter[str]:
    """The items of a history batch as comparable texts; empty for what is no batch."""
    try:
        items = json.loads(body)[field_name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Counter()
    return Counter(map(comparable, items)) if isinstance(items, list) else Counter()


def comparable(item: object) -> str:
    """A JSON value as text, the same for the same value."""
    return json.dumps(item, sort_keys=True)


def total(backlogs: Iterable[Backlog]) -> Backlog:
    """The backlogs of several companies together."""
    summed = Backlog()
    for one in backlogs:
        summed.pending += one.pending
        summed.unacknowledged += one.unacknowledged
        summed.waiting += one.waiting
        summed.settled += one.settled
    return summed
