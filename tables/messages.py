"""The messages of one tenant: one row per message_id over all partitions (contract 3.2, B4; design 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tables.errors import SerializationFailure
from tables.last_writer_wins import PendingMerge, merge, remembered, stamped
from tables.mutations import MessagePatch, MessageRow, WriteRejection
from tables.queries import Observer, load, operation

if TYPE_CHECKING:
    from tables.connection.pool import Connection


Change = MessageRow | MessagePatch

_ROW_VERSIONED: Final = ("status", "message_text", "message_url", "message_type", "message_obj")
_PATCH_VERSIONED: Final = ("status", "edited_message_obj", "is_deleted", "message_url")
_VERSIONED: Final = (*_ROW_VERSIONED, "edited_message_obj", "is_deleted")
# Stored once, then never changed by an event (contract 3.2); an empty one may still be filled.
_FIXED: Final = ("from_phone", "to_phone", "chat_id", "jid", "flow", "agent_id", "company_id", "key")
_ROW: Final = (_ROW_VERSIONED, attrgetter(*_ROW_VERSIONED))
_PATCH: Final = (_PATCH_VERSIONED, attrgetter(*_PATCH_VERSIONED))
_fixed_of: Final = attrgetter(*_FIXED)
# Stored false means either "said so" or "nothing said"; only its version tells.
_EXPLICIT: Final = ("is_deleted",)


class _New(NamedTuple):
    row: MessageRow
    edited_message_obj: str | None
    is_deleted: bool | None
    metadata: str


class Messages:
    """Writes message events; the stored row is the same whatever their order and repetition (design 5).

    While rows of the existing service may lack their key, `keys_complete` must be False: then message_ids
    without a key are looked for in every partition before they count as new.
    """

    def __init__(self, schema: str, observer: Observer) -> None:
        self._sql = load("messages", schema)
        self._observer = observer
        self.keys_complete = True
        # Repeats come together, after a crash or a replay. To ask for their keys first spares sending their rows twice:
        # a backlog of repeats is stored a fifth faster, and new messages are not slower.
        self._repeating = False

    def seem_new(self, changes: Sequence[object]) -> bool:
        """Whether these are nothing but messages that are probably not stored yet."""
        return (
            self.keys_complete
            and not self._repeating
            and all(isinstance(change, MessageRow) for change in changes)
        )

    async def write(
        self, connection: Connection, changes: Sequence[Change], *, bulk: bool = False
    ) -> list[WriteRejection]:
        """Write all changes in the caller's transaction; returns the ones that no row would take.

        `bulk` only labels the measurements. Raises `tables.errors.StorageError`.
        """
        known = await self.insert(connection, changes, bulk=bulk)
        return await self.merge(connection, known, bulk=bulk) if known else []

    async def insert(
        self, connection: Connection, changes: Sequence[Change], *, bulk: bool = False
    ) -> list[Change]:
        """Insert the new messages, in one statement if `seem_new`; returns the changes that are not stored by it."""
        groups = _grouped(changes)
        inserted = await self._insert(connection, groups, _label(bulk))
        return [change for change in changes if change.message_id not in inserted]

    async def merge(
        self, connection: Connection, changes: Sequence[Change], *, bulk: bool = False
    ) -> list[WriteRejection]:
        """Write changes that `insert` left, in the caller's transaction; returns the ones that no row would take."""
        pending = _grouped(changes)
        stored = await self._find(connection, pending)
        missing = {key: group for key, group in pending.items() if key not in stored}
        if missing:
            written = await self._recover(connection, missing, _label(bulk))
            stored |= await self._find(connection, [key for key in missing if key not in written])
            for key in written:
                del pending[key]
        return await self._merge(connection, pending, stored, _label(bulk))

    async def _insert(
        self, connection: Connection, groups: Mapping[str, Sequence[Change]], label: str
    ) -> set[str]:
        """Insert the rows of new message_ids; returns these."""
        groups = {key: group for key, group in groups.items() if _has_row(group)}
        offered = len(groups)
        if groups and (self._repeating or not self.keys_complete):
            groups = await self._unknown(connection, groups)
        inserted = await self._insert_rows(connection, groups, label) if groups else set()
        self._repeating = len(inserted) * 2 < offered
        return inserted

    async def _insert_rows(
        self, connection: Connection, groups: Mapping[str, Sequence[Change]], label: str
    ) -> set[str]:
        new = [_new(group) for group in groups.values()]
        rows, edited, deleted, metadata = zip(*new, strict=True)
        columns = list(zip(*rows, strict=True))[2:]
        with operation(self._observer, label, "Message"):
            inserted = await connection.fetch(self._sql["insert"], *columns, edited, deleted, metadata)
        return {record["message_id"] for record in inserted}

    async def _unknown(
        self, connection: Connection, groups: Mapping[str, Sequence[Change]]
    ) -> Mapping[str, Sequence[Change]]:
        """The groups whose message_id has no key and, where rows may lack theirs, no row either."""
        with operation(self._observer, "FindMessage", "Message"):
            unclaimed = await connection.fetch(self._sql["unclaimed"], list(groups))
        ids = [record["message_id"] for record in unclaimed]
        adopted = {} if self.keys_complete else await self._probe(connection, ids)
        return {key: groups[key] for key in ids if key not in adopted}

    async def _probe(self, connection: Connection, ids: Sequence[str]) -> Mapping[str, int]:
        if not ids:
            return {}
        with operation(self._observer, "FindMessage", "Message"):
            records = await connection.fetch(self._sql["probe"], ids)
        return {record["message_id"]: record["day"] for record in records}

    async def _find(self, connection: Connection, ids: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
        """The rows of these message_ids that their keys lead to, locked."""
        if not ids:
            return {}
        with operation(self._observer, "FindMessage", "Message"):
            records = await connection.fetch(self._sql["find"], list(ids))
        return {record["message_id"]: record for record in records}

    async def _recover(
        self, connection: Connection, missing: Mapping[str, Sequence[Change]], label: str
    ) -> set[str]:
        """Repair keys that are missing or lead nowhere, and insert the rows that are truly not there.

        Returns the message_ids inserted. Raises `Contended` when somebody else is faster.
        """
        ids = list(missing)
        with operation(self._observer, "FindMessage", "Message"):
            await connection.fetch(self._sql["lock_keys"], ids)
        found = await self._probe(connection, ids)
        lost = {key: group for key, group in missing.items() if key not in found and _has_row(group)}
        with operation(self._observer, label, "Message"):
            await connection.execute(self._sql["repair_keys"], list(found), list(found.values()))
            await connection.execute(self._sql["drop_keys"], list(lost))
        written = await self._insert(connection, lost, label)
        if len(written) < len(lost):
            raise SerializationFailure("a message changed while it was looked for")
        return written

    async def _merge(
        self,
        connection: Connection,
        groups: Mapping[str, Sequence[Change]],
        stored: Mapping[str, Any],
        upsert: str,
    ) -> list[WriteRejection]:
        """Update locked rows with what is newer than they are."""
        refusals: list[WriteRejection] = []
        updates: dict[str, list[Sequence[Any]]] = {upsert: [], "UpdateMessageStatus": []}
        for key, group in groups.items():
            record = stored.get(key)
            if record is None:
                refusals += [WriteRejection(change.ref, "not_found") for change in group]
                continue
            owner = record["company_id"]
            refusals += [
                WriteRejection(change.ref, "company")
                for change in group
                if owner not in (change.company_id, "", None)
            ]
            accepted = [change for change in group if owner in (change.company_id, "", None)]
            if accepted:
                rows = any(isinstance(change, MessageRow) for change in accepted)
                updates[upsert if rows else "UpdateMessageStatus"].append(_update(record, accepted))
        for label, arguments in updates.items():
            if arguments:
                with operation(self._observer, label, "Message"):
                    await connection.execute(self._sql["update"], *zip(*arguments, strict=True))
        return refusals


def _label(bulk: bool) -> str:
    return "BulkUpsertMessages" if bulk else "UpsertMessage"


def _grouped(changes: Sequence[Change]) -> dict[str, list[Change]]:
    groups: dict[str, list[Change]] = {}
    for change in changes:
        groups.setdefault(change.message_id, []).append(change)
    return groups


def _has_row(group: Sequence[Change]) -> bool:
    return isinstance(group[0], MessageRow) or any(isinstance(change, MessageRow) for change in group)


def _new(group: Sequence[Change]) -> _New:
    """The row to insert for the changes of one message_id, which are not updates only."""
    first = group[0]
    if len(group) == 1 and isinstance(first, MessageRow):
        # Nearly every message: no folding, no dictionaries.
        return _New(first, None, None, stamped(first.stamp.metadata, first.stamp.version))
    rows = [change for change in group if isinstance(change, MessageRow)]
    values, metadata, _ = merge(_draft(group), None, (), _EXPLICIT)
    empty = {column: None if column == "message_obj" else "" for column in _ROW_VERSIONED}
    fed = {column: values[column] for column in _ROW_VERSIONED if column in values}
    row = rows[0]._replace(**(_fixed(rows) | empty | fed))
    return _New(row, values.get("edited_message_obj"), values.get("is_deleted"), metadata)


def _update(record: Mapping[str, Any], group: Sequence[Change]) -> Sequence[Any]:
    """The arguments of `update` for one stored row."""
    stored = remembered(record["last_metadata"]) or {}
    values, metadata, _ = merge(_draft(group), stored, record["filled"], _EXPLICIT)
    rows = [change for change in group if isinstance(change, MessageRow)]
    fixed = _fixed(rows) if record["gaps"] else {}
    return (
        record["id"],
        record["day"],
        metadata,
        *map(values.get, _VERSIONED),
        *map(fixed.get, _FIXED),
    )


def _draft(group: Sequence[Change]) -> PendingMerge:
    draft = PendingMerge(group[0].stamp)
    for change in group:
        columns, of = _ROW if isinstance(change, MessageRow) else _PATCH
        fed = zip(columns, of(change), strict=True)
        draft.add(change.stamp, {column: value for column, value in fed if value not in ("", None)})
    return draft


def _fixed(rows: Sequence[MessageRow]) -> dict[str, Any]:
    """The first value that is not empty, of each fixed column."""
    if not rows:
        return {}
    if len(rows) == 1:
        return dict(zip(_FIXED, _fixed_of(rows[0]), strict=True))
    return {
        column: next((value for row in rows if (value := getattr(row, column))), getattr(rows[0], column))
        for column in _FIXED
    }
