"""The WhatsApp accounts of one tenant: the table `agents`, one row a connected account (AGT-1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from tables.columns import Columns, accepted, by_key
from tables.errors import SerializationFailure
from tables.last_writer_wins import decode_metadata
from tables.mutations import AccountRow, WriteRejection
from tables.queries import Observer, RowsStatement, load, operation

if TYPE_CHECKING:
    from tables.connection.pool import Connection

COLUMNS: Final = Columns(
    versioned=dict.fromkeys(("qr_code", "status", "agent_name", "phone_number", "host_name", "version"), "")
)


class Accounts:
    """Writes connection events; the stored row is the same whatever their order and repetition."""

    def __init__(self, schema: str, observer: Observer) -> None:
        self._sql = load("agents", schema)
        self._insert = RowsStatement(self._sql["insert"])
        self._update = RowsStatement(self._sql["update"])
        self._observer = observer

    async def write(self, connection: Connection, rows: Sequence[AccountRow]) -> list[WriteRejection]:
        """Write all rows in the caller's transaction; returns those whose stored row is another company's.

        Raises `tables.errors.StorageError`.
        """
        groups = by_key(rows, attrgetter("agent_id"))
        if not groups:
            return []
        with operation(self._observer, "UpsertAgent", "Agent"):
            new = [_new_row(group) for group in groups.values()]
            for record in await connection.fetch(self._insert.text, *self._insert.of_rows(new)):
                del groups[record["agent_id"]]
            return await self._merge(connection, groups) if groups else []

    async def _merge(
        self, connection: Connection, groups: Mapping[str, Sequence[AccountRow]]
    ) -> list[WriteRejection]:
        """Lock the stored rows and update them with what is newer than they are.

        Raises `SerializationFailure` if a row has just been deleted.
        """
        rejections: list[WriteRejection] = []
        updates = []
        records = await connection.fetch(self._sql["lock"], list(groups))
        if len(records) < len(groups):
            raise SerializationFailure("an account was deleted while it was looked for")
        for record in records:
            taken, rejected = accepted(record, groups[record["agent_id"]])
            rejections += rejected
            if taken:
                stored = decode_metadata(record["last_metadata"])
                values, metadata, _ = COLUMNS.merge(taken, stored, record["filled"])
                row = {"id": record["id"], "last_metadata": metadata, "company_id": taken[0].company_id}
                updates.append({**row, **values})
        if updates:
            await connection.execute(self._update.text, *self._update.of_rows(updates))
        return rejections


def _new_row(group: Sequence[AccountRow]) -> dict[str, Any]:
    """What the statement `insert` writes for the events of one account."""
    values, metadata, _ = COLUMNS.merge(group)
    key = {"agent_id": group[0].agent_id, "company_id": group[0].company_id, "last_metadata": metadata}
    return {**COLUMNS.versioned, **values, **key}
