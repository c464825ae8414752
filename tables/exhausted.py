"""Parked events: those that ended for good, kept in `exhausted_events` for the operators (PRK-1)."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec

from events.sanitize import sanitize, storable_text
from tables.errors import DataError, translated
from tables.queries import Observer, load, operation

if TYPE_CHECKING:
    from tables.connection.pool import Connection

# The field of a replayed envelope that names the row it was replayed from; readers of envelopes know no such field.
EXHAUSTED_ID: Final = "exhausted_id"
# Without the incarnation, which not every envelope of an event has.
_VERSION: Final = re.compile(r'"event_version": ?"(\d+-\d+)')


class ExhaustedRow(NamedTuple):
    """One parked event: the payloads are JSON text, the timestamp has a time zone."""

    company_id: str
    source_subject: str
    last_error: str
    retry_count: int
    event_timestamp: datetime.datetime | None
    dlq_payload: str
    original_payload: str | None


class Search(NamedTuple):
    """Which rows: part of the error in any case, ages in seconds, resolved or not; None is any."""

    error: str | None = None
    older_than: float | None = None
    newer_than: float | None = None
    resolved: bool | None = None


class FoundRow(NamedTuple):
    """What a list shows of a row. `given_up_at` is when it was last parked; None in rows without `created_at`."""

    id: int
    source_subject: str
    last_error: str
    retry_count: int
    given_up_at: datetime.datetime | None
    resolved: bool


class LockedRow(NamedTuple):
    """A row locked until the transaction ends; `dlq_payload` is JSON text."""

    id: int
    retry_count: int
    resolved: bool
    dlq_payload: str


class _Replayed(msgspec.Struct):
    exhausted_id: Annotated[int, msgspec.Meta(gt=0, le=2**63 - 1)] | None = None


class ExhaustedEvents:
    """The table exhausted_events of one schema; connections are those of a `Database`, which raises `StorageError`."""

    def __init__(self, schema: str, observer: Observer) -> None:
        self._schema = schema
        self._observer = observer
        self._sql = load("exhausted", schema)

    async def save(self, connection: Connection, row: ExhaustedRow) -> bool:
        """Store `row` unless this very event has its row already; True if it was stored or opened again.

        The same event: same subject, and the row that `dlq_payload` was replayed from, the same envelope, or the
        same version and payload (whether or not both versions name an incarnation). If that row was resolved it is
        opened again, with the new error and the tries added up; otherwise it stays as it is. Needs a transaction,
        which holds the event's lock.
        What PostgreSQL cannot store is left out (NUL) or replaced (half a surrogate pair); a payload that it
        refuses as JSON is stored as a JSON string of its text, because the event is stored nowhere else. Raises
        `StorageError`.
        """
        clean = _storable(row)
        with operation(self._observer, "SaveExhaustedEvent", "ExhaustedEvent"):
            await connection.execute(self._sql["lock_event"], self._schema, _identity(clean))
            if (source_row := _replayed_from(clean.dlq_payload)) is not None:
                await connection.execute(self._sql["lock_row"], source_row)
            try:
                return await self._insert_or_reopen(connection, clean, source_row)
            except DataError:
                return await self._insert_or_reopen(connection, _in_form(clean, json.dumps), source_row)

    async def unresolved(self, connection: Connection) -> int:
        """How many rows no operator has resolved."""
        return int(await connection.fetchval(self._sql["count_unresolved"]))

    async def newest(self, connection: Connection) -> datetime.datetime | None:
        """When a row was last stored or opened again; None without rows."""
        stored: datetime.datetime | None = await connection.fetchval(self._sql["newest"])
        return stored

    async def find(self, connection: Connection, search: Search, limit: int | None = None) -> list[FoundRow]:
        """Rows for an operator, the last parked first."""
        rows = await connection.fetch(self._sql["find"], *search, limit)
        return [FoundRow(**dict(row)) for row in rows]

    async def read(self, connection: Connection, row: int) -> dict[str, Any] | None:
        """All of one row, the payloads as indented JSON text; None if there is none."""
        found = await connection.fetchrow(self._sql["read"], row)
        return None if found is None else dict(found)

    async def lock(self, connection: Connection, row: int) -> LockedRow | None:
        """One row, locked until the transaction ends; None if there is none."""
        found = await connection.fetchrow(self._sql["lock"], row)
        return None if found is None else LockedRow(**dict(found))

    async def resolve(self, connection: Connection, row: int, action: str, reason: str = "") -> None:
        """Mark a row as resolved and note `action` (by whom), the time and the reason."""
        why = f": {storable_text(reason)}" if reason else ""
        await connection.execute(self._sql["resolve"], row, storable_text(action), why)

    async def _insert_or_reopen(
        self, connection: Connection, row: ExhaustedRow, source_row: int | None
    ) -> bool:
        with translated():
            # A savepoint: a refused payload must not end the caller's transaction.
            async with connection.transaction():
                return await connection.fetchval(self._sql["insert_or_reopen"], *row, source_row) is not None


def _identity(row: ExhaustedRow) -> str:
    """The same text for the same event; another event may have it too, which costs no more than a wait."""
    version = _VERSION.search(row.dlq_payload)
    return f"{row.source_subject} {version[1] if version else row.event_timestamp}"


def _replayed_from(dlq_payload: str) -> int | None:
    """The row from which this envelope was replayed; None for any other envelope."""
    try:
        return msgspec.json.decode(dlq_payload, type=_Replayed).exhausted_id
    except (msgspec.DecodeError, RecursionError):
        return None


def _storable(row: ExhaustedRow) -> ExhaustedRow:
    return _in_form(row, _json)._replace(
        company_id=storable_text(row.company_id),
        source_subject=storable_text(row.source_subject),
        last_error=storable_text(row.last_error),
    )


def _in_form(row: ExhaustedRow, form: Callable[[str], str]) -> ExhaustedRow:
    """The row with its payloads rewritten."""
    original = row.original_payload
    return row._replace(
        dlq_payload=form(row.dlq_payload), original_payload=None if original is None else form(original)
    )


def _json(text: str) -> str:
    return sanitize(storable_text(text).encode()).decode()
