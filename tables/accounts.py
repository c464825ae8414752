"""The agents (connected WhatsApp accounts) of one tenant (contract 2.8, 3.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tables.errors import SerializationFailure
from tables.last_writer_wins import PendingMerge, merge, remembered
from tables.mutations import AccountRow, WriteRejection
from tables.queries import Observer, load, operation

if TYPE_CHECKING:
    from tables.connection.pool import Connection


_VERSIONED: Final = ("qr_code", "status", "agent_name", "phone_number", "host_name", "version")


class Accounts:
    """Writes agent events; the stored row is the same whatever their order and repetition (design 5)."""

    def __init__(self, schema: str, observer: Observer) -> None:
        self._sql = load("agents", schema)
        self._observer = observer

    async def write(self, connection: Connection, rows: Sequence[AccountRow]) -> list[WriteRejection]:
        """Write all rows in the caller's transaction; returns those whose stored row is another company's.

        Raises `tables.errors.StorageError`.
        """
        groups: dict[str, list[AccountRow]] = {}
        for row in rows:
            groups.setdefault(row.agent_id, []).append(row)
        if not groups:
            return []
        with operation(self._observer, "UpsertAgent", "Agent"):
            new = [_new(group) for group in groups.values()]
            written = await connection.fetch(self._sql["insert"], *zip(*new, strict=True))
            for record in written:
                del groups[record["agent_id"]]
            return await self._merge(connection, groups) if groups else []

    async def _merge(
        self, connection: Connection, groups: Mapping[str, Sequence[AccountRow]]
    ) -> list[WriteRejection]:
        """Lock the stored rows and update them with what is newer than they are."""
        refusals: list[WriteRejection] = []
        updates: list[Sequence[Any]] = []
        records = await connection.fetch(self._sql["find"], list(groups))
        if len(records) < len(groups):
            raise SerializationFailure("an agent was deleted while it was looked for")
        for record in records:
            group = groups[record["agent_id"]]
            if record["company_id"] in (group[0].company_id, "", None):
                updates.append(_update(record, group))
            else:
                refusals += [WriteRejection(row.ref, "company") for row in group]
        if updates:
            await connection.execute(self._sql["update"], *zip(*updates, strict=True))
        return refusals


def _new(group: Sequence[AccountRow]) -> Sequence[Any]:
    """The arguments of `insert` for the events of one agent."""
    values, metadata, _ = merge(_draft(group), None, ())
    return (
        group[0].agent_id,
        group[0].company_id,
        *(values.get(column, "") for column in _VERSIONED),
        metadata,
    )


def _update(record: Any, group: Sequence[AccountRow]) -> Sequence[Any]:
    """The arguments of `update` for one stored row."""
    stored = remembered(record["last_metadata"]) or {}
    values, metadata, _ = merge(_draft(group), stored, record["filled"])
    return (
        record["id"],
        metadata,
        group[0].company_id,
        *(values.get(column) for column in _VERSIONED),
    )


def _draft(group: Sequence[AccountRow]) -> PendingMerge:
    draft = PendingMerge(group[0].stamp)
    for row in group:
        fed = ((column, getattr(row, column)) for column in _VERSIONED)
        draft.add(row.stamp, {column: value for column, value in fed if value})
    return draft
