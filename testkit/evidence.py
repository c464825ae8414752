"""What is really there after a run: rows, dead letters, exhausted events, versions, and the consumers' backlog."""

from __future__ import annotations

import datetime
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

import msgspec
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo, RawStreamMsg

from events import envelope
from events.errors import Malformed
from events.subjects import HISTORICAL, REALTIME, Tenant
from tables.queries import quoted
from testkit.items import Table, row_key
from testkit.oracle import Version

if TYPE_CHECKING:
    from tables.connection.pool import Connection

DLQ: Final = "v1.dlq"
_EPOCH: Final = datetime.datetime.fromtimestamp(0, datetime.UTC)
_JSON: Final = frozenset({"key", "message_obj", "edited_message_obj", "last_message", "last_metadata"})


class Row(NamedTuple):
    """A stored row, its jsonb columns decoded."""

    columns: dict[str, Any]

    @property
    def version(self) -> Version | None:
        """The version of the newest event on it; None if it has none."""
        return parse_version((self.columns.get("last_metadata") or {}).get("version"))

    def version_of(self, column: str) -> str | None:
        """The version of a column's value, as it is written; None if it has none."""
        metadata = self.columns.get("last_metadata") or {}
        return metadata.get("versions", {}).get(column, metadata.get("version")) or None


class Given(NamedTuple):
    """An event that was given up: a dead letter, or a row of exhausted_events."""

    version: Version
    body: bytes


class Backlog(NamedTuple):
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
    """All that is found of one company: rows by table and key, and what belongs to chats, messages and contacts."""

    rows: dict[Table, dict[str, list[Row]]] = field(default_factory=dict)
    steps: dict[str, set[Version]] = field(default_factory=dict)
    message_keys: dict[str, datetime.date] = field(default_factory=dict)
    onboarded: dict[str, list[Row]] = field(default_factory=dict)
    letters: list[Given] = field(default_factory=list)
    exhausted: list[Given] = field(default_factory=list)
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


async def incarnation(js: JetStreamContext, stream: str) -> int:
    """When a stream was made, in microseconds since 1970."""
    made = (await js.stream_info(stream)).created
    return 0 if made is None else (made - _EPOCH) // datetime.timedelta(microseconds=1)


def stored_version(reply: str) -> Version:
    """Store time and sequence out of an ack subject; nats-py's own reading drops the nanoseconds."""
    tokens = reply.split(".")
    sequence, ns = (tokens[5], tokens[7]) if len(tokens) == 9 else (tokens[7], tokens[9])
    return Version(int(ns), int(sequence))


async def gather(js: JetStreamContext, database: Connection, company: str) -> Evidence:
    """Read all that there is of a company."""
    waiting = await backlog(js, company)
    evidence = await gather_rows(database, company)
    evidence.backlog = waiting
    evidence.letters = [letter async for letter in _dead_letters(js, company)]
    return evidence


async def gather_rows(database: Connection, company: str) -> Evidence:
    """Read what the tables have of a company."""
    schema = quoted(Tenant(company).schema)

    async def rows(table: str) -> list[dict[str, Any]]:
        return [dict(record) for record in await database.fetch(f"SELECT * FROM {schema}.{table}")]

    evidence = Evidence()
    for table in get_args(Table):
        evidence.rows[table] = _by_key(table, await rows(table))
    evidence.onboarded = _by_key("contacts", await rows("onboarding_log"))
    for step in await rows("chat_steps"):
        evidence.steps.setdefault(step["chat_id"], set()).add(Version(step["ns"], step["sequence"]))
    evidence.message_keys = {row["message_id"]: row["message_date"] for row in await rows("message_keys")}
    evidence.exhausted = [given for row in await rows("exhausted_events") if (given := _exhausted(row))]
    return evidence


def _by_key(table: Table, rows: Iterable[dict[str, Any]]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for columns in rows:
        for name in _JSON & columns.keys():
            columns[name] = json.loads(columns[name] or "null")
        found.setdefault(row_key(table, columns), []).append(Row(columns))
    return found


async def backlog(js: JetStreamContext, company: str) -> Backlog:
    """What the company's durable consumers say of their work."""
    found = []
    for base in (REALTIME[0], HISTORICAL[0], DLQ):
        stream = await js.find_stream_name_by_subject(f"{base}.{company}")
        for info in await js.consumers_info(stream):
            if _belongs(info, company):
                in_flight = info.num_ack_pending or 0
                settled = sum(at.stream_seq for at in (info.ack_floor, info.delivered) if at)
                work = (0, in_flight) if base == DLQ else (in_flight, 0)
                found.append(Backlog(info.num_pending or 0, *work, settled))
    return total(found)


def _belongs(info: ConsumerInfo, company: str) -> bool:
    config = info.config
    filters = [*(config.filter_subjects or ()), config.filter_subject or ""]
    return bool(config.durable_name) and any(subject.endswith(f".{company}") for subject in filters)


def _exhausted(row: Mapping[str, Any]) -> Given | None:
    """The event of a row; an envelope that PostgreSQL does not take as JSON is stored as a JSON string."""
    wrapped = row["dlq_payload"].startswith('"')
    texts = (row["dlq_payload"], row["original_payload"])
    dlq_payload, original = (
        (json.loads(text) if wrapped and text else text or "").encode(errors="replace") for text in texts
    )
    return _given(dlq_payload, original)


async def _dead_letters(js: JetStreamContext, company: str) -> AsyncIterator[Given]:
    subject, sequence = f"{DLQ}.{company}", 1
    stream = await js.find_stream_name_by_subject(subject)
    with suppress(nats.js.errors.NotFoundError):
        while True:
            message = await js.get_msg(stream, seq=sequence, subject=subject, next=True)
            sequence = (message.seq or 0) + 1
            if given := _dead_letter(message):
                yield given


def _dead_letter(message: RawStreamMsg) -> Given | None:
    given = _given(message.data or b"")
    # <stream>-<sequence>-<store time>; the header and the envelope name the same event.
    _, sequence, ns = ((message.headers or {}).get("Nats-Msg-Id") or "--").rsplit("-", 2)
    named = parse_version(f"{ns}-{sequence}")
    return given if given is not None and named == given.version else None


def _given(text: bytes, original: bytes | None = None) -> Given | None:
    """The event in an envelope; `original`: its payload as it is stored beside the envelope."""
    try:
        letter = envelope.decode(text)
        if original is not None:
            letter = msgspec.structs.replace(letter, original_payload=msgspec.Raw(original))
        body = envelope.original(letter)
    except Malformed:
        return None
    version = parse_version(letter.event_version)
    return Given(version, body) if version else None


def total(backlogs: Iterable[Backlog]) -> Backlog:
    """The backlogs of several companies together."""
    return Backlog(*map(sum, zip(Backlog(), *backlogs, strict=True)))
