"""Events that were given up for good, kept for the operators (contract 4.4)."""

from __future__ import annotations

import datetime
import json
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from tables.errors import BadData, translated
from tables.queries import Observer, load, operation

if TYPE_CHECKING:
    from tables.pool import Connection

# A surrogate pair, half of one, NUL, or any other escape: matching every escape keeps a backslash that is
# followed by the text u0000.
_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}"
    r"|(?P<half>u[dD][89a-fA-F][\da-fA-F]{2})|(?P<nul>u0000)|.)",
    re.DOTALL,
)


class ExhaustedRow(NamedTuple):
    """One given-up event: the payloads are JSON text, the timestamp has a time zone."""

    company_id: str
    source_subject: str
    last_error: str
    retry_count: int
    event_timestamp: datetime.datetime | None
    dlq_payload: str
    original_payload: str | None


class ExhaustedEvents:
    """The table exhausted_events of one schema."""

    def __init__(self, schema: str, observer: Observer) -> None:
        self._schema = schema
        self._observer = observer
        self._sql = load("exhausted", schema)

    async def save(self, connection: Connection, row: ExhaustedRow) -> bool:
        """Store `row` unless this very event has its row already; True if it was stored.

        The same event: same subject, and the same envelope or the same version and payload. Needs a transaction,
        which holds the subject's lock.
        What PostgreSQL cannot store is left out (NUL) or replaced (half a surrogate pair); a payload that it
        does not take as JSON is stored as a JSON string of its text, because there is no other place left for
        this event. Raises `StorageError`.
        """
        clean = _storable(row)
        with operation(self._observer, "SaveExhaustedEvent", "ExhaustedEvent"):
            await connection.execute(self._sql["lock_event"], self._schema, clean.source_subject)
            try:
                return await self._insert(connection, clean)
            except BadData:
                return await self._insert(connection, _as_strings(clean))

    async def unresolved(self, connection: Connection) -> int:
        """How many rows no operator has resolved."""
        with translated():
            return int(await connection.fetchval(self._sql["count_unresolved"]))

    async def newest(self, connection: Connection) -> datetime.datetime | None:
        """When the newest row was stored; None without rows."""
        with translated():
            stored: datetime.datetime | None = await connection.fetchval(self._sql["newest"])
            return stored

    async def _insert(self, connection: Connection, row: ExhaustedRow) -> bool:
        with translated():
            # A savepoint: a refused payload must not end the caller's transaction.
            async with connection.transaction():
                return await connection.fetchval(self._sql["insert"], *row) is not None


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
