"""The chats of one tenant (contract 3.3, 3.4, B6; design 5)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tables.errors import SerializationFailure
from tables.last_writer_wins import (
    CLOCK_STEP_NS,
    EventStamp,
    PendingMerge,
    Version,
    merge,
    remembered,
    stamped,
    watermark,
)
from tables.mutations import ChatPatch, ChatRow, WriteRejection
from tables.queries import Observer, load, operation

if TYPE_CHECKING:
    from tables.connection.pool import Connection


Change = ChatRow | ChatPatch

_TEXTS: Final = ("push_name", "group_name", "last_message")
# Stored once, then never changed by an event (contract 3.3); an empty one may still be filled.
_FIXED: Final = ("jid", "agent_id", "company_id", "phone_number", "is_group", "not_spam")
_INT32_MAX: Final = 2**31 - 1

_Event = tuple[int, int]  # store time in ns, sequence


class _Step(NamedTuple):
    """One unread message more. `counts`: it adds to the stored count, and is not only there to be known again."""

    incarnation: int
    counts: bool


_Steps = Mapping[_Event, _Step]


class _New(NamedTuple):
    row: ChatRow
    metadata: str
    steps: _Steps


@dataclass(slots=True)
class _Update:
    """What a locked row is to become."""

    chat_id: str
    before_steps: Sequence[Any]  # the arguments of `update` on either side of the number of steps
    after_steps: Sequence[Any]
    steps: _Steps
    absolute: bool  # a new absolute count is among the arguments
    overtaken: Version | None  # the steps up to here count no longer

    def added(self, fresh: Collection[_Event]) -> int:
        """How much the steps that are `fresh` add; the statement itself counts those on a new value."""
        return sum(
            step.counts and event in fresh and not (self.absolute and event[0])
            for event, step in self.steps.items()
        )


class Chats:
    """Writes chat events; the stored row is the same whatever their order and repetition (design 5).

    `unread_count` is the newest absolute value plus the distinct steps newer than it, which `chat_steps` keeps.
    """

    def __init__(self, schema: str, observer: Observer) -> None:
        self._sql = load("chats", schema)
        self._observer = observer

    async def write(
        self, connection: Connection, changes: Sequence[Change], *, bulk: bool = False
    ) -> list[WriteRejection]:
        """Write all changes in the caller's transaction; returns the ones that no row would take.

        `bulk` only labels the measurements. Raises `tables.errors.StorageError`.
        """
        groups: dict[str, list[Change]] = {}
        for change in changes:
            groups.setdefault(change.chat_id, []).append(change)
        upsert = "BulkUpsertChats" if bulk else "UpsertChat"
        written = await self._insert(connection, groups, upsert)
        pending = {key: group for key, group in groups.items() if key not in written}
        if not pending:
            return []
        with operation(self._observer, "FindChat", "Chat"):
            records = await connection.fetch(self._sql["find"], list(pending))
        return await self._merge(connection, pending, {r["chat_id"]: r for r in records}, upsert)

    async def _insert(
        self, connection: Connection, groups: Mapping[str, Sequence[Change]], label: str
    ) -> set[str]:
        """Insert the rows of new chat_ids; returns these."""
        new = {key: made for key, group in groups.items() if (made := _new(group)) is not None}
        if not new:
            return set()
        columns = list(zip(*(made.row for made in new.values()), strict=True))[2:]
        with operation(self._observer, label, "Chat"):
            metadata = [made.metadata for made in new.values()]
            records = await connection.fetch(self._sql["insert"], *columns, metadata)
            written = {record["chat_id"] for record in records}
            await self._add_steps(connection, ((key, new[key].steps) for key in written))
        return written

    async def _add_steps(
        self, connection: Connection, chats: Iterable[tuple[str, _Steps]]
    ) -> dict[str, set[_Event]]:
        """Note the steps of locked chats; returns the ones not known before."""
        noted = [
            (chat_id, *event, step.incarnation) for chat_id, steps in chats for event, step in steps.items()
        ]
        fresh: dict[str, set[_Event]] = {}
        if noted:
            arguments = zip(*noted, strict=True)
            for chat_id, ns, sequence, new in await connection.fetch(self._sql["add_steps"], *arguments):
                if new:
                    fresh.setdefault(chat_id, set()).add((ns, sequence))
        return fresh

    async def _merge(
        self,
        connection: Connection,
        groups: Mapping[str, Sequence[Change]],
        stored: Mapping[str, Any],
        upsert: str,
    ) -> list[WriteRejection]:
        """Update locked rows with what is newer than they are. Raises `Contended` if a row has just gone."""
        refusals: list[WriteRejection] = []
        updates: dict[str, list[_Update]] = {upsert: [], "UpdateChat": []}
        for key, group in groups.items():
            record = stored.get(key)
            label = upsert if any(isinstance(change, ChatRow) for change in group) else "UpdateChat"
            if record is None and label == upsert:
                raise SerializationFailure("a chat was deleted while it was looked for")
            if record is None:
                refusals += [WriteRejection(change.ref, "not_found") for change in group]
            elif record["company_id"] not in (group[0].company_id, "", None):
                refusals += [WriteRejection(change.ref, "company") for change in group]
            else:
                updates[label].append(_update(record, group))
        for label, updated in updates.items():
            if updated:
                with operation(self._observer, label, "Chat"):
                    await self._write(connection, updated)
        return refusals

    async def _write(self, connection: Connection, updates: Sequence[_Update]) -> None:
        overtaken = [
            (u.chat_id, *u.overtaken.event, u.overtaken.incarnation)
            for u in updates
            if u.overtaken is not None
        ]
        if overtaken:
            arrays = zip(*overtaken, strict=True)
            await connection.execute(self._sql["drop_steps"], *arrays, CLOCK_STEP_NS)
        fresh = await self._add_steps(connection, ((u.chat_id, u.steps) for u in updates))
        arguments = [(*u.before_steps, u.added(fresh.get(u.chat_id, ())), *u.after_steps) for u in updates]
        await connection.execute(self._sql["update"], *zip(*arguments, strict=True))


def _new(group: Sequence[Change]) -> _New | None:
    """The row to insert for the changes of one chat_id; None if they are updates only."""
    first = group[0]
    if len(group) == 1 and isinstance(first, ChatRow):
        return _New(first, stamped(first.stamp.metadata, first.stamp.version), {})
    rows = [change for change in group if isinstance(change, ChatRow)]
    if not rows:
        return None
    values, metadata, held = merge(_draft(group), None, ())
    steps = _steps(group, held.get("unread_count"), None)
    row = rows[0]._replace(
        **_fixed(rows),
        push_name=values.get("push_name", ""),
        group_name=values.get("group_name", ""),
        last_message=values.get("last_message"),
        conversation_timestamp=max(change.conversation_timestamp for change in group),
        unread_count=min(_INT32_MAX, values["unread_count"] + sum(step.counts for step in steps.values())),
    )
    return _New(row, metadata, steps)


def _update(record: Mapping[str, Any], group: Sequence[Change]) -> _Update:
    stored = remembered(record["last_metadata"]) or {}
    values, metadata, held = merge(_draft(group), stored, record["filled"])
    fixed = _fixed([change for change in group if isinstance(change, ChatRow)])
    absolute = held.get("unread_count")
    return _Update(
        chat_id=record["chat_id"],
        before_steps=(
            record["id"],
            metadata,
            *(values.get(column) for column in _TEXTS),
            max(change.conversation_timestamp for change in group),
            values.get("unread_count"),
        ),
        after_steps=[fixed.get(column) for column in _FIXED],
        steps=_steps(group, absolute, watermark(stored)),
        absolute="unread_count" in values,
        overtaken=absolute if "unread_count" in values else None,
    )


def _draft(group: Sequence[Change]) -> PendingMerge:
    draft = PendingMerge(group[0].stamp)
    for change in group:
        draft.add(change.stamp, _fed(change))
    return draft


def _fed(change: Change) -> dict[str, Any]:
    """The versioned columns that an event really feeds."""
    if isinstance(change, ChatRow):
        texts = {column: value for column in _TEXTS if (value := getattr(change, column))}
        return {**texts, "unread_count": change.unread_count}
    fed = {"unread_count": change.unread_count, "last_message": change.last_message}
    return {column: value for column, value in fed.items() if value is not None}


def _fixed(rows: Sequence[ChatRow]) -> dict[str, Any]:
    """The first value that is not empty, of each fixed column."""
    if not rows:
        return {}
    return {
        column: next((value for row in rows if (value := getattr(row, column))), getattr(rows[0], column))
        for column in _FIXED
    }


def _steps(group: Sequence[Change], absolute: Version | None, past: tuple[str, int] | None) -> _Steps:
    """The steps newer than the `absolute` count (None: it has no version, every step is newer).

    A step without version (an envelope of the existing service) is older than any versioned value; its sequence
    alone tells it from others. A step that the existing service has counted (up to `past`, contract C5) is in
    the stored count already.
    """
    steps: dict[_Event, _Step] = {}
    for change in group:
        version = change.stamp.version
        if isinstance(change, ChatRow) or not change.is_step:
            if version is None and change.unread_count is not None:
                steps.update({event: _Step(0, False) for event in steps if not event[0]})
        elif absolute is None:
            stream, sequence = _place(change.stamp)
            seen = past is not None and past[0] == stream and sequence <= past[1]
            _put(steps, version or Version(0, sequence), counts=not seen)
        elif version is not None and version.supersedes(absolute):
            _put(steps, version, counts=True)
    return steps


def _put(steps: dict[_Event, _Step], version: Version, *, counts: bool) -> None:
    """Add a step; one that is there already stays, with the incarnation if either knows it."""
    known = steps.get(version.event, _Step(0, counts))
    steps[version.event] = _Step(known.incarnation or version.incarnation, known.counts)


def _place(stamp: EventStamp) -> tuple[str, int]:
    """The stream of an event and its sequence there."""
    metadata = remembered(stamp.metadata) or {}
    return metadata.get("stream", ""), metadata.get("stream_sequence", 0)
