"""Chats and their unread counts on a real PostgreSQL (CHT-1 to CHT-5)."""

from __future__ import annotations

import asyncio
import json
from itertools import count
from typing import Any

import pytest

from tables.chats import Chats
from tables.connection.pool import Database
from tables.errors import DataError
from tables.last_writer_wins import EventStamp, Version
from tables.mutations import ChatPatch, ChatRow, WriteRejection

REFS = count()


def at(ns: int, *, history: bool = False) -> EventStamp:
    metadata = {"stream": "wa_events_stream", "stream_sequence": ns, "message_id": f"msg-{ns}"}
    return EventStamp(Version(ns, ns), json.dumps(metadata), history)


def replayed(sequence: int) -> EventStamp:
    """An envelope of the existing service: no version, its place is that in the dead-letter stream."""
    return EventStamp(None, json.dumps({"stream": "dlq_stream", "stream_sequence": sequence}))


def row(stamp: EventStamp, chat_id: str = "C1", **changes: Any) -> ChatRow:
    values: dict[str, Any] = {
        "jid": "j", "company_id": "Kopi", "agent_id": "a", "phone_number": "6281", "push_name": "",
        "is_group": False, "group_name": "", "last_message": None, "conversation_timestamp": 0,
        "unread_count": 0, "not_spam": False,
    }  # fmt: skip
    return ChatRow(next(REFS), stamp, chat_id, **{**values, **changes})


def patch(stamp: EventStamp, unread_count: int = 1, chat_id: str = "C1", **changes: Any) -> ChatPatch:
    values: dict[str, Any] = {"company_id": "Kopi", "conversation_timestamp": 0, "last_message": None}
    is_step = unread_count == 1
    count = None if is_step else max(0, unread_count)
    return ChatPatch(next(REFS), stamp, chat_id, is_step=is_step, unread_count=count, **{**values, **changes})


class Store:
    """The table under test, one transaction for each call."""

    def __init__(self, database: Database, schema: str) -> None:
        self.database = database
        self.schema = schema
        self.operations: list[tuple[str, str, bool]] = []
        self.table = Chats(schema, lambda name, entity, _, ok: self.operations.append((name, entity, ok)))

    async def write(self, *changes: ChatRow | ChatPatch, bulk: bool = False) -> list[WriteRejection]:
        async with self.database.transaction() as connection:
            return await self.table.write(connection, changes, bulk=bulk)

    async def sql(self, statement: str, *arguments: object) -> list[Any]:
        async with self.database.connection() as connection:
            return await connection.fetch(statement.replace("{s}", self.schema), *arguments)

    async def row(self) -> Any:
        (only,) = await self.sql("SELECT * FROM {s}.chats")
        return only

    async def unread(self) -> int:
        return int((await self.row())["unread_count"])

    async def steps(self) -> list[int]:
        return [r["ns"] for r in await self.sql("SELECT ns FROM {s}.chat_steps ORDER BY ns")]

    async def adopt(self, unread_count: int | None, metadata: dict[str, Any] | None = None) -> None:
        """A row as the existing service leaves it: no version."""
        await self.sql(
            "INSERT INTO {s}.chats (chat_id, company_id, push_name, unread_count, last_metadata, created_at)"
            " VALUES ('C1', 'Kopi', 'Sari', $1, $2, '2020-01-01')",
            unread_count,
            None if metadata is None else json.dumps(metadata),
        )


@pytest.fixture
def store(database: Database, schema: str) -> Store:
    return Store(database, schema)


@pytest.mark.rule("CHT-1")
async def test_a_new_chat_has_every_column(store: Store) -> None:
    new = row(
        at(5), push_name="Sari", is_group=True, group_name="Tim", last_message='{"id": "M"}', unread_count=-1,
        conversation_timestamp=1795500123, not_spam=True,
    )  # fmt: skip
    assert await store.write(new) == []
    stored = await store.row()
    for column in ChatRow._fields[2:]:
        assert stored[column] == getattr(new, column), column
    assert stored["created_at"] == stored["updated_at"]
    assert json.loads(stored["last_metadata"]) == {**json.loads(at(5).metadata), "version": "5-5"}
    assert store.operations == [("UpsertChat", "Chat", True)]


async def test_nothing_to_write_is_nothing_done(store: Store) -> None:
    assert await store.write() == []
    assert store.operations == []


@pytest.mark.rule("CHT-1")
async def test_a_newer_upsert_replaces_and_leaves_the_fixed_columns(store: Store) -> None:
    await store.write(row(at(5), push_name="Sari", unread_count=3, is_group=False, not_spam=True))
    before = await store.row()
    changed: dict[str, Any] = {
        "jid": "x",
        "phone_number": "x",
        "agent_id": "x",
        "is_group": True,
        "not_spam": False,
    }
    await store.write(row(at(6), push_name="Sari W", unread_count=0, **changed))
    stored = await store.row()
    assert (stored["push_name"], stored["unread_count"]) == ("Sari W", 0)
    assert {column: stored[column] for column in changed} == {column: before[column] for column in changed}
    assert stored["created_at"] == before["created_at"]
    assert stored["updated_at"] > before["updated_at"]


@pytest.mark.rule("ROW-3")
async def test_absent_optional_fields_never_erase(store: Store) -> None:
    full: dict[str, Any] = {"push_name": "Sari", "group_name": "Tim", "last_message": "{}"}
    await store.write(row(at(5), **full))
    await store.write(row(at(6)))
    await store.write(patch(at(7)))
    stored = await store.row()
    assert {column: stored[column] for column in full} == full


async def test_a_stale_upsert_never_overwrites_a_newer_one(store: Store) -> None:
    await store.write(row(at(9), push_name="new", unread_count=1, last_message='{"n": 9}'))
    before = await store.row()
    await store.write(row(at(5), push_name="old", unread_count=7, last_message='{"n": 5}', group_name="late"))
    stored = await store.row()
    assert (stored["push_name"], stored["unread_count"], stored["last_message"]) == ("new", 1, '{"n": 9}')
    assert stored["group_name"] == "late"  # it was empty
    assert stored["updated_at"] > before["updated_at"]
    assert json.loads(stored["last_metadata"])["stream_sequence"] == 9


@pytest.mark.rule("CHT-4")
async def test_conversation_timestamp_only_goes_forward(store: Store) -> None:
    await store.write(row(at(5), conversation_timestamp=100))
    await store.write(row(at(9), conversation_timestamp=50), patch(at(8), conversation_timestamp=90))
    assert (await store.row())["conversation_timestamp"] == 100
    await store.write(patch(at(2), conversation_timestamp=200))
    await store.write(patch(replayed(1), conversation_timestamp=300), row(at(3, history=True)))
    assert (await store.row())["conversation_timestamp"] == 300


@pytest.mark.rule("CHT-5")
async def test_an_update_that_changes_nothing_touches_updated_at_and_metadata(store: Store) -> None:
    """A hundred of them, then one that does."""
    await store.write(row(at(1)))
    before = await store.row()
    for n in range(2, 102):
        assert await store.write(patch(at(n), 0)) == []
    await store.write(patch(at(200), 5))
    stored = await store.row()
    assert stored["unread_count"] == 5
    assert stored["updated_at"] > before["updated_at"]
    assert json.loads(stored["last_metadata"])["version"] == "200-200"
    assert not await store.sql("SELECT FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")


@pytest.mark.rule("CHT-2")
@pytest.mark.parametrize(("sent", "stored"), [(0, 0), (-3, 0), (2, 2), (7, 7), (1, 5)])
async def test_an_update_steps_sets_or_clears(store: Store, sent: int, stored: int) -> None:
    await store.write(row(at(5), unread_count=4))
    await store.write(patch(at(6), sent))
    assert await store.unread() == stored


@pytest.mark.rule("CHT-3")
async def test_steps_add_up_and_a_redelivered_one_counts_once(store: Store) -> None:
    await store.write(row(at(5), unread_count=2))
    for ns in (10, 11, 12, 11, 10):
        await store.write(patch(at(ns)))
    await store.write(patch(at(11)), patch(at(13)), patch(at(13)))
    assert await store.unread() == 6
    assert await store.steps() == [10, 11, 12, 13]


@pytest.mark.rule("CHT-3")
async def test_an_absolute_value_overtakes_the_steps_before_it(store: Store) -> None:
    await store.write(row(at(5)))
    await store.write(patch(at(10)), patch(at(20)), patch(at(30)))
    await store.write(patch(at(20), 0))
    assert await store.unread() == 1
    assert await store.steps() == [30]


async def test_a_step_redelivered_after_it_was_overtaken_does_not_count(store: Store) -> None:
    await store.write(row(at(5)))
    await store.write(patch(at(10)))
    await store.write(row(at(20), unread_count=4))
    await store.write(patch(at(10)))
    assert await store.unread() == 4
    assert await store.steps() == []


@pytest.mark.rule("CHT-3")
async def test_an_older_absolute_value_keeps_the_newer_steps(store: Store) -> None:
    await store.write(row(at(5), unread_count=1))
    await store.write(patch(at(30)))
    await store.write(patch(at(20), 7))
    assert await store.unread() == 8
    await store.write(patch(at(10), 3))
    assert await store.unread() == 8


async def test_a_chat_and_its_updates_in_one_batch(store: Store) -> None:
    changes: list[ChatRow | ChatPatch] = [
        patch(at(10)),
        patch(at(30)),
        row(at(20), unread_count=5),
        patch(at(30)),
        patch(at(31)),
    ]
    assert await store.write(*changes) == []
    assert await store.unread() == 7
    await store.write(patch(at(31)), patch(at(32)))
    assert await store.unread() == 8


async def test_the_count_stays_in_its_range(store: Store) -> None:
    await store.write(row(at(1), unread_count=2**31 - 1), patch(at(2)))
    await store.write(patch(at(3)))
    assert await store.unread() == 2**31 - 1


async def test_an_update_without_its_chat_is_refused_and_the_rest_is_written(store: Store) -> None:
    lost = patch(at(5), chat_id="nowhere")
    assert await store.write(row(at(1)), lost, patch(at(2))) == [WriteRejection(lost.ref, "not_found")]
    assert await store.unread() == 1
    assert await store.steps() == [2]


@pytest.mark.rule("ROW-6")
async def test_a_row_of_another_company_refuses_every_change(store: Store) -> None:
    await store.write(row(at(1), unread_count=3))
    changes: list[ChatRow | ChatPatch] = [patch(at(5), company_id="KOPI"), row(at(6), company_id="KOPI")]
    assert await store.write(*changes) == [WriteRejection(change.ref, "company") for change in changes]
    assert await store.unread() == 3
    assert await store.steps() == []


async def test_a_step_on_an_adopted_row_adds_to_its_value(store: Store) -> None:
    await store.adopt(4, {"stream": "wa_events_stream", "stream_sequence": 500})
    await store.write(patch(at(510)), patch(at(510)))
    await store.write(patch(at(510)), patch(at(511)))
    assert await store.unread() == 6
    await store.write(row(at(505), unread_count=9))
    assert await store.unread() == 11


async def test_a_step_on_an_adopted_row_without_a_value_counts(store: Store) -> None:
    await store.adopt(None)
    await store.write(patch(at(510)))
    await store.write(patch(at(505), 3))
    assert await store.unread() == 4


@pytest.mark.rule("CHT-3")
@pytest.mark.parametrize("newer_first", [True, False])
async def test_a_step_that_the_existing_service_counted_counts_no_more(
    store: Store, newer_first: bool
) -> None:
    """The crash between its commit and its ack; the step comes again, to us."""
    await store.adopt(4, {"stream": "wa_events_stream", "stream_sequence": 500})
    for ns in (510, 500) if newer_first else (500, 510):
        assert await store.write(patch(at(ns))) == []
    assert await store.unread() == 5
    await store.write(patch(at(490), 2))  # the steps 500 and 510 are newer than this value
    assert await store.unread() == 4


async def test_a_sequence_of_another_stream_says_nothing(store: Store) -> None:
    await store.adopt(4, {"stream": "another", "stream_sequence": 500})
    await store.write(patch(at(400)))
    assert await store.unread() == 5


async def test_a_step_without_version_counts_once_on_an_adopted_row(store: Store) -> None:
    await store.adopt(4, {"stream": "wa_events_stream", "stream_sequence": 500})
    await store.write(patch(replayed(7)))
    await store.write(patch(replayed(7)), patch(replayed(5)))
    assert await store.unread() == 6
    await store.write(patch(replayed(9), 0))
    await store.write(patch(replayed(7)))
    assert await store.unread() == 0


async def test_a_step_without_version_leaves_a_versioned_count(store: Store) -> None:
    await store.write(row(at(5), unread_count=2))
    await store.write(patch(replayed(7)))
    await store.write(patch(replayed(8), 9))
    assert await store.unread() == 2


async def test_history_only_fills_what_is_empty_on_adopted_rows(store: Store) -> None:
    await store.adopt(4)
    await store.write(row(at(9, history=True), push_name="H", group_name="G", unread_count=1), bulk=True)
    stored = await store.row()
    assert (stored["push_name"], stored["group_name"], stored["unread_count"]) == ("Sari", "G", 4)


async def test_history_converges_with_realtime_by_its_own_time(store: Store) -> None:
    await store.write(row(at(50), push_name="new", unread_count=2))
    await store.write(row(at(40, history=True), push_name="old", unread_count=8), bulk=True)
    assert (await store.row())["push_name"] == "new"
    await store.write(row(at(60, history=True), push_name="newest", unread_count=3), bulk=True)
    stored = await store.row()
    assert (stored["push_name"], stored["unread_count"]) == ("newest", 3)


@pytest.mark.rule("MET-7")
async def test_each_operation_has_its_documented_label(store: Store) -> None:
    await store.write(row(at(1)))
    await store.write(patch(at(2)), row(at(3), "C2"))
    await store.write(row(at(4), "C3"), row(at(5), "C2"), bulk=True)
    assert [name for name, _, _ in store.operations] == [
        *("UpsertChat", "UpsertChat", "FindChat", "UpdateChat"),
        *("BulkUpsertChats", "FindChat", "BulkUpsertChats"),
    ]


async def test_a_failed_write_is_reported_and_leaves_nothing(store: Store) -> None:
    await store.write(row(at(1)))
    with pytest.raises(DataError):
        await store.write(patch(at(2)), patch(at(3), last_message="{broken"))
    assert store.operations[-1] == ("UpdateChat", "Chat", False)
    assert await store.unread() == 0
    assert await store.steps() == []


async def test_repeats_use_up_no_ids(store: Store) -> None:
    for ns in range(1, 20):
        await store.write(row(at(ns)))
    await store.write(row(at(1), "C2"))
    assert [r["id"] for r in await store.sql("SELECT id FROM {s}.chats ORDER BY id")] == [1, 2]


@pytest.mark.rule("ROW-5")
async def test_two_writers_in_opposite_order_never_deadlock(store: Store) -> None:
    """2,000 keys; `Store.write` would raise on 40P01. And no step is lost or counted twice."""
    keys = [f"C{n:04d}" for n in range(2000)]
    for turn in range(3):
        first = [row(at(1), key, unread_count=10) for key in keys]
        second = [row(at(1), key, unread_count=10) for key in reversed(keys)]
        steps = [patch(at(100 + turn), chat_id=key) for key in keys]
        again = [patch(at(100 + turn), chat_id=key) for key in reversed(keys)]
        await asyncio.gather(store.write(*first, *steps), store.write(*second, *again))
    rows = await store.sql("SELECT unread_count, count(*) AS number FROM {s}.chats GROUP BY 1")
    assert [tuple(r) for r in rows] == [(13, 2000)]


MADE = 1_795_400_000_000_000_000
SECOND = 1_000_000_000


def stored_at(seconds: float, sequence: int, made: int = MADE) -> EventStamp:
    metadata = {"stream": "wa_events_stream", "stream_sequence": sequence}
    return EventStamp(Version(MADE + int((3600 + seconds) * SECOND), sequence, made), json.dumps(metadata))


async def test_steps_and_counts_of_one_stream_go_by_sequence(store: Store) -> None:
    await store.write(row(stored_at(0, 1), unread_count=5))
    await store.write(patch(stored_at(-4, 2)))
    assert await store.unread() == 6
    await store.write(patch(stored_at(-5, 3), 0))
    assert (await store.unread(), await store.steps()) == (0, [])
    await store.write(patch(stored_at(-4, 2)))
    assert await store.unread() == 0
    await store.write(patch(stored_at(-6, 4)), patch(stored_at(-7, 5)))
    await store.write(patch(stored_at(-6, 4)))
    assert await store.unread() == 2


async def test_a_count_of_a_restored_stream_overtakes_steps_of_higher_sequences(store: Store) -> None:
    await store.write(row(stored_at(0, 1), unread_count=5), patch(stored_at(1, 9)))
    await store.write(patch(stored_at(60, 2), 3))
    assert (await store.unread(), await store.steps()) == (3, [])


async def test_a_count_of_a_stream_made_anew_overtakes_steps_of_the_one_before(store: Store) -> None:
    await store.write(row(stored_at(0, 1), unread_count=5), patch(stored_at(1, 9)))
    await store.write(patch(stored_at(2, 1, MADE + 3600 * SECOND), 3))
    assert (await store.unread(), await store.steps()) == (3, [])


async def test_a_replica_of_the_release_before_goes_on_beside_new_ones(store: Store) -> None:
    """Its statements name the columns that it knows; a step that comes again through a new replica counts once."""
    await store.write(row(stored_at(0, 1), unread_count=5))
    step = stored_at(1, 2)
    assert step.version is not None
    await store.sql(
        "INSERT INTO {s}.chat_steps (chat_id, ns, sequence)"
        " SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[])"
        " ON CONFLICT (chat_id, ns, sequence) DO NOTHING RETURNING chat_id",
        ["C1"],
        [step.version.ns],
        [step.version.sequence],
    )
    await store.sql("UPDATE {s}.chats SET unread_count = 6")
    await store.write(patch(step))
    assert await store.unread() == 6
    [known] = await store.sql("SELECT incarnation FROM {s}.chat_steps")
    assert known["incarnation"] == MADE
    await store.write(patch(stored_at(-1, 3), 0))
    assert (await store.unread(), await store.steps()) == (0, [])
