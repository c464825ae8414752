"""The messages of one tenant: one row per message_id over all partitions (MSG-1 to MSG-6)."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple, TypeGuard

from tables.columns import Columns, accepted, by_key
from tables.errors import SerializationFailure
from tables.last_writer_wins import decode_metadata, encode_metadata
from tables.month_partition import EPOCH, month_of, name_of, of_month
from tables.mutations import MessageMutation, MessageRow, Mutation, WriteRejection
from tables.queries import Observer, RowsStatement, StoredRow, by_column, load, operation

if TYPE_CHECKING:
    from tables.connection.pool import Connection

Groups = Mapping[str, Sequence[MessageMutation]]  # by message_id

COLUMNS: Final = Columns(
    versioned={
        "status": "",
        "message_text": "",
        "message_url": "",
        "message_type": "",
        "message_obj": None,
        "edited_message_obj": None,
        "is_deleted": None,
    },
    fixed=("from_phone", "to_phone", "chat_id", "jid", "flow", "agent_id", "company_id", "key"),
    # Stored false is either fed or the column's default; only its version tells which.
    explicit=("is_deleted",),
)
_ENTITY: Final = "Message"
_DAY_NS: Final = 24 * 3600 * 10**9
# Rows of more months are looked for in all partitions: each month is a statement, and has a plan of its own.
_MOST_MONTHS: Final = 3


class _NewRow(NamedTuple):
    """A row to insert, with its columns that no MessageRow has."""

    row: MessageRow
    edited_message_obj: str | None
    is_deleted: bool | None
    last_metadata: str


class Messages:
    """Writes message events; the stored row is the same whatever their order and repetition.

    While rows of the existing service may lack their key, `keys_complete` must be False: then message_ids
    without a key are looked for in every partition before they count as new. `partitions` are those of
    `month_partition.name_of` that are known to be there: their rows are changed without a look at the others.
    """

    def __init__(self, schema: str, observer: Observer) -> None:
        self._sql = load("messages", schema)
        self._insert = RowsStatement(self._sql["insert"])
        self._update = RowsStatement(self._sql["update"])
        self._observer = observer
        self.keys_complete = True
        self.partitions: Collection[str] = frozenset()
        # Repeats come together, after a crash or a replay. To ask for their keys first spares sending their rows twice:
        # a backlog of repeats is stored a fifth faster, and new messages are not slower.
        self._expects_repeats = False

    def are_likely_new(self, mutations: Sequence[Mutation]) -> TypeGuard[Sequence[MessageRow]]:
        """Whether these are messages only, which are probably not stored yet: `insert_new` is one statement then."""
        return (
            self.keys_complete
            and not self._expects_repeats
            and all(isinstance(mutation, MessageRow) for mutation in mutations)
        )

    async def write(
        self, connection: Connection, mutations: Sequence[MessageMutation], *, bulk: bool = False
    ) -> list[WriteRejection]:
        """Write all mutations in the caller's transaction; returns the ones that no row takes.

        `bulk` only labels the measurements. Raises `tables.errors.StorageError`.
        """
        rest = await self.insert_new(connection, mutations, bulk=bulk)
        return await self.merge_stored(connection, rest, bulk=bulk) if rest else []

    async def insert_new(
        self, connection: Connection, mutations: Sequence[MessageMutation], *, bulk: bool = False
    ) -> list[MessageMutation]:
        """Insert the messages that are not stored; returns the mutations of all others."""
        groups = _with_row(by_key(mutations, attrgetter("message_id")))
        wanted = groups
        if groups and (self._expects_repeats or not self.keys_complete):
            wanted = await self._without_known(connection, groups)
        inserted = await self._insert_rows(connection, wanted, bulk=bulk)
        self._expects_repeats = len(inserted) * 2 < len(groups)
        return [mutation for mutation in mutations if mutation.message_id not in inserted]

    async def merge_stored(
        self, connection: Connection, mutations: Sequence[MessageMutation], *, bulk: bool = False
    ) -> list[WriteRejection]:
        """Merge mutations into the rows they are for, in the caller's transaction; returns the ones that no row takes.

        Messages whose row is gone since `insert_new` are inserted again.
        """
        groups = by_key(mutations, attrgetter("message_id"))
        locked, by_month = await self._lock(connection, groups)
        if missing := {key: group for key, group in groups.items() if key not in locked}:
            inserted = await self._repair_keys(connection, missing, bulk=bulk)
            rest = {key: group for key, group in missing.items() if key not in inserted}
            repaired, _ = await self._lock(connection, rest)
            locked, by_month = locked | repaired, False
            for key in inserted:
                del groups[key]
        return await self._merge(connection, groups, locked, _label(bulk), by_month=by_month)

    async def _without_known(self, connection: Connection, groups: Groups) -> Groups:
        """The groups whose message_id has no key and, where rows may lack theirs, no row either."""
        unclaimed = await self._find(connection, self._sql["unclaimed"], groups)
        adopted = {} if self.keys_complete else await self._find(connection, self._sql["probe"], unclaimed)
        return {key: groups[key] for key in unclaimed if key not in adopted}

    async def _insert_rows(self, connection: Connection, groups: Groups, *, bulk: bool) -> set[str]:
        """Insert a row for each group, unless its message_id has a key; returns the message_ids inserted."""
        if not groups:
            return set()
        new = [_new_row(group) for group in groups.values()]
        columns = by_column([each.row for each in new]) | by_column(new)
        with operation(self._observer, _label(bulk), _ENTITY):
            inserted = await connection.fetch(self._insert.text, *self._insert.of_columns(columns))
        return {record["message_id"] for record in inserted}

    async def _lock(self, connection: Connection, groups: Groups) -> tuple[dict[str, StoredRow], bool]:
        """The locked rows of these message_ids, and whether each is in the partition of its month."""
        text = self._sql["lock"]
        likely = self._partitioned({month_of(day) for day in _likely_days(groups)})
        if len(likely) == 1:
            # One round trip for nearly every batch.
            found = await self._find(connection, of_month(text, likely[0]), groups)
            if _are_all_there(found):
                return found, True
        else:
            found = await self._find(connection, self._sql["key_days"], groups if self.partitions else ())
        ids: dict[datetime.date | None, list[str]] = {}
        for key, record in found.items():
            ids.setdefault(month_of(record["key_day"]), []).append(key)
        months = self._partitioned(ids.keys())
        if months != likely or len(months) > 1:
            locked = await self._lock_months(connection, months, ids)
            if locked is not None:
                return locked, True
        found = await self._find(connection, text, groups)
        return {key: record for key, record in found.items() if record["id"] is not None}, False

    async def _lock_months(
        self,
        connection: Connection,
        months: Sequence[datetime.date],
        ids: Mapping[datetime.date | None, Collection[str]],
    ) -> dict[str, StoredRow] | None:
        """The locked rows of these months; None if there are none, or not every key leads to its row."""
        locked: dict[str, StoredRow] = {}
        for month in months:
            found = await self._find(connection, of_month(self._sql["lock"], month), ids[month])
            if not _are_all_there(found):
                return None
            locked |= found
        return locked or None

    def _partitioned(self, months: Collection[datetime.date | None]) -> list[datetime.date]:
        """These months in their order; empty if they are many, or one has no partition that is known."""
        known = sorted(month for month in months if month is not None and name_of(month) in self.partitions)
        return known if len(known) == len(months) <= _MOST_MONTHS else []

    async def _find(self, connection: Connection, text: str, ids: Collection[str]) -> dict[str, StoredRow]:
        """What a statement returns for these message_ids."""
        if not ids:
            return {}
        with operation(self._observer, "FindMessage", _ENTITY):
            records = await connection.fetch(text, list(ids))
        return {record["message_id"]: record for record in records}

    async def _repair_keys(self, connection: Connection, groups: Groups, *, bulk: bool) -> set[str]:
        """Repair keys that are missing or lead nowhere, and insert the messages that have no row.

        Returns the message_ids inserted. Raises `SerializationFailure` if another writer inserts one meanwhile.
        """
        await self._find(connection, self._sql["lock_keys"], groups)
        rows = await self._find(connection, self._sql["probe"], groups)
        absent = _with_row({key: group for key, group in groups.items() if key not in rows})
        days = [row["day"] for row in rows.values()]
        with operation(self._observer, _label(bulk), _ENTITY):
            await connection.execute(self._sql["repair_keys"], list(rows), days)
            await connection.execute(self._sql["drop_keys"], list(absent))
        inserted = await self._insert_rows(connection, absent, bulk=bulk)
        if len(inserted) < len(absent):
            raise SerializationFailure("a message changed while it was looked for")
        return inserted

    async def _merge(
        self,
        connection: Connection,
        groups: Groups,
        locked: Mapping[str, StoredRow],
        upsert: str,
        *,
        by_month: bool,
    ) -> list[WriteRejection]:
        """Update locked rows with what is newer than they are; `by_month` if each is in its month's partition."""
        rejections: list[WriteRejection] = []
        updates: dict[tuple[str, datetime.date | None], list[Mapping[str, object]]] = {}
        for key, group in groups.items():
            record = locked.get(key)
            taken, rejected = accepted(record, group)
            rejections += rejected
            if record is not None and taken:
                rows = [mutation for mutation in taken if isinstance(mutation, MessageRow)]
                label = upsert if rows else "UpdateMessageStatus"
                month = month_of(record["day"]) if by_month else None
                updates.setdefault((label, month), []).append(_changes(record, taken, rows))
        for (label, month), rows_changed in updates.items():
            text = self._update.text if month is None else of_month(self._update.text, month)
            with operation(self._observer, label, _ENTITY):
                await connection.execute(text, *self._update.of_rows(rows_changed))
        return rejections


def _are_all_there(found: Mapping[str, StoredRow]) -> bool:
    """Whether each of these keys leads to a row that is locked."""
    return all(record["id"] is not None for record in found.values())


def _label(bulk: bool) -> str:
    return "BulkUpsertMessages" if bulk else "UpsertMessage"


def _with_row(groups: Groups) -> Groups:
    """The groups that are not updates only."""
    return {
        key: group
        for key, group in groups.items()
        if isinstance(group[0], MessageRow) or any(isinstance(mutation, MessageRow) for mutation in group)
    }


def _likely_days(groups: Groups) -> set[int]:
    """The days since 1970 of the rows of these mutations: those of a message, or when its change was stored."""
    days: set[int] = set()
    for mutation in (mutation for group in groups.values() for mutation in group):
        if isinstance(mutation, MessageRow):
            days.add((mutation.message_date - EPOCH).days)
        elif mutation.stamp.version is not None:
            days.add(mutation.stamp.version.ns // _DAY_NS)
    return days


def _new_row(group: Sequence[MessageMutation]) -> _NewRow:
    """The row to insert for the mutations of one message_id, which are not updates only."""
    first = group[0]
    if len(group) == 1 and isinstance(first, MessageRow):
        # Nearly every message: nothing to merge.
        return _NewRow(first, None, None, encode_metadata(first.stamp.metadata, first.stamp.version))
    values, metadata, _ = COLUMNS.merge(group)
    row = COLUMNS.new_row([mutation for mutation in group if isinstance(mutation, MessageRow)], values)
    return _NewRow(row, values.get("edited_message_obj"), values.get("is_deleted"), metadata)


def _changes(
    record: StoredRow, group: Sequence[MessageMutation], rows: Sequence[MessageRow]
) -> Mapping[str, object]:
    """What the statement `update` writes to one stored row."""
    stored = decode_metadata(record["last_metadata"])
    values, metadata, _ = COLUMNS.merge(group, stored, record["filled"])
    fixed = COLUMNS.first_filled(rows) if record["gaps"] else {}
    return {"id": record["id"], "day": record["day"], "last_metadata": metadata, **values, **fixed}
