"""The chats of one tenant (CHT-1 to CHT-5)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tables.columns import Columns, accepted, by_key
from tables.errors import SerializationFailure
from tables.last_writer_wins import (
    CLOCK_STEP_NS,
    EventStamp,
    Version,
    decode_metadata,
    encode_metadata,
    watermark,
)
from tables.mutations import ChatMutation, ChatRow, WriteRejection
from tables.queries import Observer, RowsStatement, StoredRow, by_column, load, operation

if TYPE_CHECKING:
    from tables.connection.pool import Connection

COLUMNS: Final = Columns(
    versioned={"push_name": "", "group_name": "", "last_message": None, "unread_count": 0},
    fixed=("jid", "agent_id", "company_id", "phone_number", "is_group", "not_spam"),
)
_ENTITY: Final = "Chat"
_INT32_MAX: Final = 2**31 - 1

_EventId = tuple[int, int]  # store time in ns, sequence


class _Step(NamedTuple):
    """One unread message more. Without `counts` it is in the stored count already, and only noted as known."""

    incarnation: int
    counts: bool


_Steps = Mapping[_EventId, _Step]


class _NewRow(NamedTuple):
    row: ChatRow
    last_metadata: str
    steps: _Steps


@dataclass(slots=True)
class _Update:
    """What a locked row is to become."""

    chat_id: str
    columns: dict[str, Any]
    steps: _Steps
    value_version: Version | None  # of a new unread count, which replaces the steps up to it

    def added(self, fresh: Collection[_EventId]) -> int:
        """How much the steps that are `fresh` add; the statement itself counts those on a new value."""
        sets_count = self.columns["unread"] is not None
        return sum(
            step.counts and event in fresh and not (sets_count and event[0])
            for event, step in self.steps.items()
        )


class Chats:
    """Writes chat events; the stored row is the same whatever their order and repetition.

    `unread_count` is the newest absolute value plus the distinct steps newer than it, which `chat_steps` keeps.
    """

    def __init__(self, schema: str, observer: Observer) -> None:
        self._sql = load("chats", schema)
        self._insert = RowsStatement(self._sql["insert"])
        self._update = RowsStatement(self._sql["update"])
        self._observer = observer

    async def write(
        self, connection: Connection, mutations: Sequence[ChatMutation], *, bulk: bool = False
    ) -> list[WriteRejection]:
        """Write all mutations in the caller's transaction; returns the ones that no row takes.

        `bulk` only labels the measurements. Raises `tables.errors.StorageError`.
        """
        groups = by_key(mutations, attrgetter("chat_id"))
        upsert = "BulkUpsertChats" if bulk else "UpsertChat"
        inserted = await self._insert_new(connection, groups, upsert)
        stored = {key: group for key, group in groups.items() if key not in inserted}
        if not stored:
            return []
        with operation(self._observer, "FindChat", _ENTITY):
            records = await connection.fetch(self._sql["lock"], list(stored))
        locked = {record["chat_id"]: record for record in records}
        return await self._merge(connection, stored, locked, upsert)

    async def _insert_new(
        self, connection: Connection, groups: Mapping[str, Sequence[ChatMutation]], label: str
    ) -> set[str]:
        """Insert the rows of new chat_ids; returns these."""
        new = {key: made for key, group in groups.items() if (made := _new_row(group)) is not None}
        if not new:
            return set()
        columns = by_column([made.row for made in new.values()]) | by_column(list(new.values()))
        with operation(self._observer, label, _ENTITY):
            records = await connection.fetch(self._insert.text, *self._insert.of_columns(columns))
            inserted = {record["chat_id"] for record in records}
            await self._add_steps(connection, ((key, new[key].steps) for key in inserted))
        return inserted

    async def _add_steps(
        self, connection: Connection, chats: Iterable[tuple[str, _Steps]]
    ) -> dict[str, set[_EventId]]:
        """Note the steps of locked chats; returns the ones not known before."""
        noted = [
            (chat_id, *event, step.incarnation) for chat_id, steps in chats for event, step in steps.items()
        ]
        fresh: dict[str, set[_EventId]] = {}
        if noted:
            arguments = zip(*noted, strict=True)
            for chat_id, ns, sequence, new in await connection.fetch(self._sql["add_steps"], *arguments):
                if new:
                    fresh.setdefault(chat_id, set()).add((ns, sequence))
        return fresh

    async def _merge(
        self,
        connection: Connection,
        groups: Mapping[str, Sequence[ChatMutation]],
        locked: Mapping[str, StoredRow],
        upsert: str,
    ) -> list[WriteRejection]:
        """Update locked rows with what is newer than they are.

        Raises `SerializationFailure` if a row has just been deleted.
        """
        rejections: list[WriteRejection] = []
        updates: dict[str, list[_Update]] = {upsert: [], "UpdateChat": []}
        for key, group in groups.items():
            record = locked.get(key)
            label = upsert if any(isinstance(mutation, ChatRow) for mutation in group) else "UpdateChat"
            if record is None and label == upsert:
                raise SerializationFailure("a chat was deleted while it was looked for")
            taken, rejected = accepted(record, group)
            rejections += rejected
            if record is not None and taken:
                updates[label].append(_update(record, taken))
        for label, updated in updates.items():
            if updated:
                with operation(self._observer, label, _ENTITY):
                    await self._write_back(connection, updated)
        return rejections

    async def _write_back(self, connection: Connection, updates: Sequence[_Update]) -> None:
        overtaken = [
            (update.chat_id, *update.value_version.event, update.value_version.incarnation)
            for update in updates
            if update.value_version is not None
        ]
        if overtaken:
            arrays = zip(*overtaken, strict=True)
            await connection.execute(self._sql["drop_steps"], *arrays, CLOCK_STEP_NS)
        fresh = await self._add_steps(connection, ((update.chat_id, update.steps) for update in updates))
        rows = [
            {**update.columns, "steps": update.added(fresh.get(update.chat_id, ()))} for update in updates
        ]
        await connection.execute(self._update.text, *self._update.of_rows(rows))


def _new_row(group: Sequence[ChatMutation]) -> _NewRow | None:
    """The row to insert for the mutations of one chat_id; None if they are updates only."""
    first = group[0]
    if len(group) == 1 and isinstance(first, ChatRow):
        return _NewRow(first, encode_metadata(first.stamp.metadata, first.stamp.version), {})
    rows = [mutation for mutation in group if isinstance(mutation, ChatRow)]
    if not rows:
        return None
    values, metadata, versions = COLUMNS.merge(group)
    steps = _steps(group, versions.get("unread_count"), None)
    row = COLUMNS.new_row(rows, values)
    counted = row.unread_count + sum(step.counts for step in steps.values())
    row = row._replace(conversation_timestamp=_latest(group), unread_count=min(_INT32_MAX, counted))
    return _NewRow(row, metadata, steps)


def _update(record: StoredRow, group: Sequence[ChatMutation]) -> _Update:
    stored = decode_metadata(record["last_metadata"])
    values, metadata, versions = COLUMNS.merge(group, stored, record["filled"])
    fixed = COLUMNS.first_filled([mutation for mutation in group if isinstance(mutation, ChatRow)])
    unread = values.pop("unread_count", None)
    value_version = versions.get("unread_count")
    row = {"id": record["id"], "last_metadata": metadata, "conversation_timestamp": _latest(group)}
    return _Update(
        chat_id=record["chat_id"],
        columns={**row, **values, **fixed, "unread": unread},
        steps=_steps(group, value_version, watermark(stored)),
        value_version=None if unread is None else value_version,
    )


def _latest(group: Sequence[ChatMutation]) -> int:
    return max(mutation.conversation_timestamp for mutation in group)


def _steps(
    group: Sequence[ChatMutation], value_version: Version | None, counted: tuple[str, int] | None
) -> _Steps:
    """The steps newer than the unread count of `value_version` (None: it has no version, every step is newer).

    A step without version (an envelope of the existing service) is older than any versioned value; its sequence
    alone tells it from others. A step that the existing service has counted, up to the stream and sequence
    `counted`, is in the stored count already.
    """
    steps: dict[_EventId, _Step] = {}
    for mutation in group:
        version = mutation.stamp.version
        if isinstance(mutation, ChatRow) or not mutation.is_step:
            if version is None and mutation.unread_count is not None:
                steps.update({event: _Step(0, False) for event in steps if not event[0]})
        elif value_version is None:
            stream, sequence = _stream_sequence(mutation.stamp)
            seen = counted is not None and counted[0] == stream and sequence <= counted[1]
            _put(steps, version or Version(0, sequence), counts=not seen)
        elif version is not None and version.supersedes(value_version):
            _put(steps, version, counts=True)
    return steps


def _put(steps: dict[_EventId, _Step], version: Version, *, counts: bool) -> None:
    """Add a step; one that is there already stays, with the incarnation if either knows it."""
    known = steps.get(version.event, _Step(0, counts))
    steps[version.event] = _Step(known.incarnation or version.incarnation, known.counts)


def _stream_sequence(stamp: EventStamp) -> tuple[str, int]:
    """The stream of an event and its sequence there."""
    metadata = decode_metadata(stamp.metadata) or {}
    return metadata.get("stream", ""), metadata.get("stream_sequence", 0)
