"""Events that were given up for good, kept for the operators (contract 4.4)."""

from __future__ import annotations

import datetime
import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec

from tables.errors import DataError, translated
from tables.queries import Observer, load, operation

if TYPE_CHECKING:
    from tables.connection.pool import Connection

# A surrogate pair, half of one, NUL, or any other escape: matching every escape keeps a backslash that is
# followed by the text u0000.
_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}"
    r"|(?P<half>u[dD][89a-fA-F][\da-fA-F]{2})|(?P<nul>u0000)|.)",
    re.DOTALL,
)

# The field by which a replayed envelope says which row it comes from; readers of envelopes know no such field.
EXHAUSTED_ID: Final = "exhausted_id"
# Without the incarnation, which not every letter of an event has.
_VERSION: Final = re.compile(r'"event_version": ?"(\d+-\d+)')


class ExhaustedRow(NamedTuple):
    """One given-up event: the payloads are JSON text, the timestamp has a time zone."""

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
    """What a list shows of a row. `given_up_at` is when it was last given up; None in rows without `created_at`."""

    id: int
    source_subject: str
    last_error: str
    retry_count: int
    given_up_at: datetime.datetime | None
    resolved: bool


class LockedRow(NamedTuple):
    """A row that nobody else can resolve or open now; `dlq_payload` is JSON text."""

    id: int
    retry_count: int
    resolved: bool
    dlq_payload: str


class _Replayed(msgspec.Struct):
    exhausted_id: Annotated[int, msgspec.Meta(gt=0, le=2**63 - 1)] | None = None


class ExhaustedEvents:
    """The table exhausted_events of one schema."""

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
        does not take as JSON is stored as a JSON string of its text, because there is no other place left for
        this event. Raises `StorageError`.
        """
        clean = _storable(row)
        with operation(self._observer, "SaveExhaustedEvent", "ExhaustedEvent"):
            await connection.execute(self._sql["lock_event"], self._schema, _identity(clean))
            if (origin := _origin(clean.dlq_payload)) is not None:
                await connection.execute(self._sql["lock_row"], origin)
            try:
                return await self._keep(connection, clean, origin)
            except DataError:
                return await self._keep(connection, _as_strings(clean), origin)

    async def unresolved(self, connection: Connection) -> int:
        """How many rows no operator has resolved."""
        with translated():
            return int(await connection.fetchval(self._sql["count_unresolved"]))

    async def newest(self, connection: Connection) -> datetime.datetime | None:
        """When a row was last stored or opened again; None without rows."""
        with translated():
            stored: datetime.datetime | None = await connection.fetchval(self._sql["newest"])
            return stored

    async def find(self, connection: Connection, search: Search, limit: int | None = None) -> list[FoundRow]:
        """Rows for an operator, those that were given up last first. Raises `StorageError`."""
        with translated():
            return [FoundRow(*row) for row in await connection.fetch(self._sql["find"], *search, limit)]

    async def read(self, connection: Connection, row: int) -> dict[str, Any] | None:
        """All of one row, the payloads as indented JSON text; None if there is none. Raises `StorageError`."""
        with translated():
            found = await connection.fetchrow(self._sql["read"], row)
            return None if found is None else dict(found)

    async def lock(self, connection: Connection, row: int) -> LockedRow | None:
        """One row, kept from others until the transaction ends; None if there is none. Raises `StorageError`."""
        with translated():
            found = await connection.fetchrow(self._sql["lock"], row)
            return None if found is None else LockedRow(*found)

    async def resolve(self, connection: Connection, row: int, deed: str, reason: str = "") -> None:
        """Mark a row as resolved and note `deed` (done by whom), the time and the reason. Raises `StorageError`."""
        why = f": {_text(reason)}" if reason else ""
        with translated():
            await connection.execute(self._sql["resolve"], row, _text(deed), why)

    async def _keep(self, connection: Connection, row: ExhaustedRow, origin: int | None) -> bool:
        with translated():
            # A savepoint: a refused payload must not end the caller's transaction.
            async with connection.transaction():
                return await connection.fetchval(self._sql["keep"], *row, origin) is not None


def _identity(row: ExhaustedRow) -> str:
    """The same text for the same event; that another may have it too does no harm."""
    version = _VERSION.search(row.dlq_payload)
    return f"{row.source_subject} {version[1] if version else row.event_timestamp}"


def _origin(dlq_payload: str) -> int | None:
    """The row from which this envelope was replayed; None for any other envelope."""
    try:
        return msgspec.json.decode(dlq_payload, type=_Replayed).exhausted_id
    except (msgspec.DecodeError, RecursionError):
        return None


def _storable(row: ExhaustedRow) -> ExhaustedRow:
    return row._replace(
        company_id=_text(row.company_id),
        source_subject=_text(row.source_subject),
        last_error=_text(row.last_error),
        dlq_payload=_json(row.dlq_payload),
        original_payload=None if row.original_payload is None else _json(row.original_payload),
    )


def _as_strings(row: ExhaustedRow) -> ExhaustedRow:
    original = row.original_payload
    return row._replace(
        dlq_payload=json.dumps(row.dlq_payload),
        original_payload=None if original is None else json.dumps(original),
    )


def _text(text: str) -> str:
    return text.replace("\x00", "").encode(errors="replace").decode()


def _json(text: str) -> str:
    return _ESCAPE.sub(_mend, _text(text))


def _mend(match: re.Match[str]) -> str:
    if match["nul"]:
        return ""
    return "\\ufffd" if match["half"] else match[0]
