"""One row a message, on a real PostgreSQL with all its partitions (MSG-1 to MSG-6)."""

from __future__ import annotations

import asyncio
import datetime
import json
import re
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import pytest
from asyncpg.connection import LoggedQuery

from tables.connection.pool import Database
from tables.errors import DataError, Unavailable
from tables.last_writer_wins import EventStamp, Version
from tables.mutations import MessagePatch, MessageRow, WriteRejection
from tables.schema.partitions import attached
from tables.tenant import TenantTables

EPOCH = datetime.date(1970, 1, 1)
TODAY = datetime.datetime.now(datetime.UTC).date()
TODAY_NS = (TODAY - EPOCH).days * 24 * 3600 * 10**9
LAST_MONTH = TODAY.replace(day=1) - datetime.timedelta(days=3)
REFS = count()


def at(ns: int, *, history: bool = False) -> EventStamp:
    metadata = {"stream": "wa_events_stream", "stream_sequence": ns, "message_id": f"msg-{ns}"}
    return EventStamp(Version(ns, ns), json.dumps(metadata), history)


UNVERSIONED = EventStamp(None, '{"stream": "dlq_stream", "stream_sequence": 3}')


def row(stamp: EventStamp, message_id: str = "M1", **changes: Any) -> MessageRow:
    values: dict[str, Any] = {
        "from_phone": "6281", "to_phone": "6289", "chat_id": "c", "jid": "j", "flow": "IN",
        "message_text": "", "message_url": "", "message_type": "", "agent_id": "a", "company_id": "Kopi",
        "message_obj": None, "key": None, "status": "", "message_timestamp": 1795500123,
        "message_date": TODAY,
    }  # fmt: skip
    return MessageRow(next(REFS), stamp, message_id, **{**values, **changes})


def patch(stamp: EventStamp, message_id: str = "M1", **changes: Any) -> MessagePatch:
    values: dict[str, Any] = {
        "company_id": "Kopi", "status": "", "edited_message_obj": None, "is_deleted": None, "message_url": "",
    }  # fmt: skip
    return MessagePatch(next(REFS), stamp, message_id, **{**values, **changes})


class Store:
    """The table under test: beside other tables in one transaction for each call, or nothing but messages."""

    def __init__(self, database: Database, schema: str, *, beside_others: bool) -> None:
        self.database = database
        self.schema = schema
        self.operations: list[tuple[str, str, bool]] = []
        self.tables = TenantTables(
            database, schema, lambda name, entity, _, ok: self.operations.append((name, entity, ok))
        )
        self.table = self.tables.messages
        self._beside_others = beside_others

    async def write(self, *changes: MessageRow | MessagePatch, bulk: bool = False) -> list[WriteRejection]:
        if not self._beside_others:
            return await self.tables.write(changes, bulk=bulk)
        async with self.database.transaction() as connection:
            return await self.table.write(connection, changes, bulk=bulk)

    async def sql(self, statement: str, *arguments: object) -> list[Any]:
        async with self.database.connection() as connection:
            return await connection.fetch(statement.replace("{s}", self.schema), *arguments)

    async def rows(self) -> list[Any]:
        return await self.sql("SELECT * FROM {s}.messages ORDER BY id")

    async def row(self) -> Any:
        (only,) = await self.rows()
        return only

    async def keys(self) -> dict[str, datetime.date]:
        return {r["message_id"]: r["message_date"] for r in await self.sql("SELECT * FROM {s}.message_keys")}

    async def adopt(self, message_id: str, day: datetime.date, **columns: Any) -> None:
        """A row as the existing service leaves it: no key, no version."""
        metadata = '{"stream": "wa_events_stream", "stream_sequence": 500}'
        values = {"company_id": "Kopi", "message_text": "", "status": "", "is_deleted": False} | columns
        await self.sql(
            "INSERT INTO {s}.messages (message_id, message_date, last_metadata, created_at, "
            + ", ".join(values) + ") VALUES ($1, $2, $3, '2020-01-01', "
            + ", ".join(f"${n}" for n in range(4, 4 + len(values))) + ")",
            message_id, day, metadata, *values.values(),
        )  # fmt: skip


@pytest.fixture(params=[False, True], ids=["alone", "beside others"])
async def store(request: pytest.FixtureRequest, database: Database, schema: str) -> Store:
    """The one that is alone knows its partitions, as all do whose schema was looked at."""
    store = Store(database, schema, beside_others=request.param)
    if not request.param:
        store.table.partitions = await attached(database, schema)
    return store


async def test_nothing_but_new_messages_is_one_round_trip(database: Database, schema: str) -> None:
    """The other batches are transactions, of which nothing is there before all is."""
    store = Store(database, schema, beside_others=False)
    await store.write(row(at(1), "M0"))  # the driver gets to know the types
    sent: list[LoggedQuery] = []
    async with database.connection(schema) as connection:
        connection.add_query_logger(sent.append)
    await store.write(row(at(1), "M1"), row(at(2), "M2"))
    assert len(sent) == 1
    await store.write(row(at(3), "M2", status="newer"), row(at(4), "M3"))
    assert [one.query for one in sent if one.query in ("BEGIN;", "COMMIT;")] == ["BEGIN;", "COMMIT;"]
    assert {stored["message_id"]: stored["status"] for stored in await store.rows()} == {
        "M0": "",
        "M1": "",
        "M2": "newer",
        "M3": "",
    }


@pytest.mark.rule("MSG-1")
async def test_a_new_message_has_every_column(store: Store) -> None:
    obj, key = '{"n": 12345678901234567890}', '{"id": "M1", "fromMe": false, "remoteJid": ""}'
    new = row(
        at(5), message_text="halo", message_url="u", message_type="t", message_obj=obj, key=key, status="sent"
    )
    assert await store.write(new) == []
    stored = await store.row()
    for column in MessageRow._fields[2:]:
        assert stored[column] == getattr(new, column), column
    assert stored["edited_message_obj"] is None
    assert stored["is_deleted"] is False
    assert stored["created_at"] == stored["updated_at"]
    assert json.loads(stored["last_metadata"]) == {**json.loads(at(5).metadata), "version": "5-5"}
    assert await store.keys() == {"M1": TODAY}
    assert store.operations == [("UpsertMessage", "Message", True)]


@pytest.mark.rule("MSG-1")
async def test_absent_texts_are_empty_and_absent_objects_null(store: Store) -> None:
    await store.write(row(at(5), from_phone="", to_phone=""), row(at(6), "M2"), row(at(7), "M2"))
    for stored in await store.rows():
        assert stored["message_text"] == stored["message_url"] == stored["message_type"] == ""
        assert stored["status"] == ""
        assert stored["message_obj"] is stored["key"] is stored["edited_message_obj"] is None
        assert stored["is_deleted"] is False


async def test_nothing_to_write_is_nothing_done(store: Store) -> None:
    assert await store.write() == []
    assert store.operations == []


@pytest.mark.rule("MSG-3")
async def test_a_newer_upsert_replaces_and_leaves_the_fixed_columns(store: Store) -> None:
    await store.write(row(at(5), status="sent", message_text="old", chat_id="c1"))
    before = await store.row()
    await store.write(
        row(at(6), status="read", message_text="new", chat_id="c2", flow="OUT", message_timestamp=9)
    )
    stored = await store.row()
    assert (stored["status"], stored["message_text"]) == ("read", "new")
    assert (stored["chat_id"], stored["flow"], stored["message_timestamp"]) == ("c1", "IN", 1795500123)
    assert stored["created_at"] == before["created_at"]
    assert stored["updated_at"] > before["updated_at"]


@pytest.mark.rule("MSG-3")
async def test_an_empty_fixed_column_is_filled_later(store: Store) -> None:
    await store.write(row(at(5), to_phone="", key=None))
    await store.write(row(at(4), to_phone="6289", key='{"id": "M1"}', from_phone="other"))
    stored = await store.row()
    assert (stored["to_phone"], stored["key"], stored["from_phone"]) == ("6289", '{"id": "M1"}', "6281")


@pytest.mark.parametrize(
    "column", ["from_phone", "to_phone", "chat_id", "jid", "flow", "agent_id", "company_id", "key"]
)
async def test_a_fixed_column_is_filled_later_though_no_other_is_empty(store: Store, column: str) -> None:
    full: dict[str, Any] = {"key": '{"id": "M1"}'}
    await store.write(row(at(5), **{**full, column: None if column == "key" else ""}))
    assert not (await store.row())[column]
    await store.write(row(at(6), **full))
    assert (await store.row())[column] == getattr(row(at(6), **full), column)


async def test_repeats_among_new_messages_are_stored_whatever_came_before(store: Store) -> None:
    """Whether most messages of the last batch were there already decides how the next one is looked for."""
    numbers = [f"M{number}" for number in range(10)]
    for batch in (numbers[:3], numbers[:4], numbers[2:6], numbers, numbers):
        await store.write(*(row(at(len(batch)), name, status=f"{len(batch)}") for name in batch))
    stored = {record["message_id"]: record["status"] for record in await store.rows()}
    assert stored == dict.fromkeys(numbers, "10")


@pytest.mark.rule("ROW-3")
async def test_absent_optional_fields_never_erase(store: Store) -> None:
    full: dict[str, Any] = {
        "message_text": "t",
        "message_url": "u",
        "message_type": "y",
        "message_obj": "{}",
        "status": "s",
    }
    await store.write(row(at(5), **full))
    await store.write(row(at(6)))
    await store.write(patch(at(7)))
    stored = await store.row()
    assert {column: stored[column] for column in full} == full


async def test_stale_status_never_overwrites_a_newer_one(store: Store) -> None:
    await store.write(row(at(5), status="sent"))
    await store.write(patch(at(9), status="read"))
    before = await store.row()
    await store.write(patch(at(7), status="delivered", message_url="late"))
    stored = await store.row()
    assert stored["status"] == "read"
    assert stored["message_url"] == "late"  # it was empty
    assert stored["updated_at"] > before["updated_at"]
    assert json.loads(stored["last_metadata"])["stream_sequence"] == 9


@pytest.mark.rule("ROW-2")
async def test_an_update_without_content_touches_updated_at_and_metadata(store: Store) -> None:
    await store.write(row(at(5), status="sent"))
    before = await store.row()
    assert await store.write(patch(at(6))) == []
    stored = await store.row()
    assert stored["updated_at"] > before["updated_at"]
    assert json.loads(stored["last_metadata"])["version"] == "6-6"
    assert stored["status"] == "sent"


@pytest.mark.rule("MSG-5")
async def test_is_deleted_goes_back_only_by_an_explicit_newer_false(store: Store) -> None:
    await store.write(row(at(1)))
    await store.write(patch(at(5), is_deleted=True))
    await store.write(patch(at(6)), patch(at(4), is_deleted=False))
    assert (await store.row())["is_deleted"] is True
    await store.write(patch(at(7), is_deleted=False))
    assert (await store.row())["is_deleted"] is False
    await store.write(patch(at(6), is_deleted=True))
    assert (await store.row())["is_deleted"] is False


@pytest.mark.rule("MSG-5")
async def test_an_empty_edit_object_is_a_value(store: Store) -> None:
    await store.write(row(at(1)), patch(at(2), edited_message_obj='{"a": 1}'))
    await store.write(patch(at(3), edited_message_obj="{}"))
    assert (await store.row())["edited_message_obj"] == "{}"


async def test_an_update_before_its_upsert_in_one_batch_counts(store: Store) -> None:
    changes: list[MessageRow | MessagePatch] = [
        patch(at(9), status="read", is_deleted=True),
        row(at(5), status="sent", message_text="t"),
    ]
    assert await store.write(*changes) == []
    stored = await store.row()
    assert (stored["status"], stored["message_text"], stored["is_deleted"]) == ("read", "t", True)
    metadata = json.loads(stored["last_metadata"])
    assert metadata["version"] == "9-9"
    assert metadata["versions"] == {"message_text": "5-5", "is_deleted": "9-9"}


async def test_an_update_without_its_row_is_refused_and_the_rest_is_written(store: Store) -> None:
    lost = patch(at(5), "nowhere", status="read")
    rejections = await store.write(row(at(1), "M1"), lost, patch(at(2), "M1", status="read"))
    assert rejections == [WriteRejection(lost.ref, "not_found")]
    assert (await store.row())["status"] == "read"
    assert await store.keys() == {"M1": TODAY}


@pytest.mark.rule("ROW-6")
async def test_a_row_of_another_company_refuses_every_change(store: Store) -> None:
    await store.write(row(at(1), status="sent"))
    changes: list[MessageRow | MessagePatch] = [
        patch(at(5), company_id="KOPI", status="x"),
        row(at(6), company_id="KOPI", status="x"),
    ]
    rejections = await store.write(*changes)
    assert rejections == [WriteRejection(change.ref, "company") for change in changes]
    assert (await store.row())["status"] == "sent"


@pytest.mark.rule("VER-8")
async def test_an_envelope_without_version_sets_only_columns_without_one(store: Store) -> None:
    await store.write(row(at(5), status="sent"))
    await store.write(patch(UNVERSIONED, status="old", message_url="u"))
    stored = await store.row()
    assert (stored["status"], stored["message_url"]) == ("sent", "u")
    assert json.loads(stored["last_metadata"])["stream_sequence"] == 5


@pytest.mark.rule("ROW-2")
async def test_history_repeats_touch_updated_at_and_metadata(store: Store) -> None:
    await store.write(row(at(5, history=True), status="sent"), bulk=True)
    before = await store.row()
    await store.write(row(at(6, history=True), status="read"), bulk=True)
    stored = await store.row()
    assert stored["status"] == "read"
    assert stored["updated_at"] > before["updated_at"]
    assert {name for name, _, _ in store.operations} == {"BulkUpsertMessages", "FindMessage"}


@pytest.mark.rule("MET-7")
async def test_each_operation_has_its_documented_label(store: Store) -> None:
    await store.write(row(at(1)))
    await store.write(patch(at(TODAY_NS)), row(at(3), "M2"))
    assert store.operations == [
        ("UpsertMessage", "Message", True),
        ("UpsertMessage", "Message", True),
        ("FindMessage", "Message", True),
        ("UpdateMessageStatus", "Message", True),
    ]


async def test_data_that_the_database_refuses_is_bad_data(store: Store) -> None:
    with pytest.raises(DataError):
        await store.write(row(at(1), message_obj="{not json"))
    assert store.operations == [("UpsertMessage", "Message", False)]
    assert await store.rows() == []


@pytest.mark.rule("MSG-2")
async def test_the_same_id_on_another_day_is_one_row(store: Store) -> None:
    """Over two partitions, in either order."""
    await store.write(row(at(1), message_date=TODAY), row(at(1), "M2", message_date=LAST_MONTH))
    await store.write(
        row(at(2), message_date=LAST_MONTH, status="new"),
        row(at(2), "M2", message_date=TODAY, status="new"),
    )
    assert [(r["message_id"], r["message_date"], r["status"]) for r in await store.rows()] == [
        ("M1", TODAY, "new"),
        ("M2", LAST_MONTH, "new"),
    ]


async def test_adopted_values_are_older_than_any_realtime_event(store: Store) -> None:
    store.table.keys_complete = False
    await store.adopt("M1", LAST_MONTH, status="old", message_text="t", is_deleted=True)
    assert await store.write(row(at(1), status="new")) == []
    stored = await store.row()
    assert (stored["status"], stored["message_text"], stored["is_deleted"]) == ("new", "t", True)
    assert json.loads(stored["last_metadata"])["versions"] == {"message_text": "", "is_deleted": ""}
    assert await store.keys() == {"M1": LAST_MONTH}


@pytest.mark.rule("VER-7")
async def test_history_only_fills_what_is_empty_on_adopted_rows(store: Store) -> None:
    store.table.keys_complete = False
    await store.adopt("M1", TODAY, status="old")
    await store.write(row(at(9, history=True), status="history", message_text="filled"), bulk=True)
    stored = await store.row()
    assert (stored["status"], stored["message_text"]) == ("old", "filled")


@pytest.mark.parametrize("complete", [True, False])
async def test_an_update_finds_an_adopted_row_without_key(store: Store, complete: bool) -> None:
    store.table.keys_complete = complete
    await store.adopt("M1", LAST_MONTH, status="old")
    assert await store.write(patch(at(1), status="read")) == []
    assert (await store.row())["status"] == "read"
    assert await store.keys() == {"M1": LAST_MONTH}


async def test_while_keys_are_incomplete_an_upsert_looks_in_every_partition(store: Store) -> None:
    store.table.keys_complete = False
    await store.adopt("M1", LAST_MONTH, status="old")
    assert await store.write(row(at(1), status="new"), row(at(2), "M2")) == []
    assert [(r["message_id"], r["message_date"], r["status"]) for r in await store.rows()] == [
        ("M1", LAST_MONTH, "new"),
        ("M2", TODAY, ""),
    ]
    assert await store.keys() == {"M1": LAST_MONTH, "M2": TODAY}


async def test_an_adopted_row_of_the_same_day_is_never_doubled(store: Store) -> None:
    await store.adopt("M1", TODAY, status="old")
    await store.write(row(at(1), status="new"))
    assert (await store.row())["status"] == "new"


async def test_of_adopted_duplicates_the_lowest_id_counts(store: Store) -> None:
    store.table.keys_complete = False
    await store.adopt("M1", TODAY, status="first")
    await store.adopt("M1", LAST_MONTH, status="second")
    await store.write(patch(at(1), status="read"))
    assert [r["status"] for r in await store.rows()] == ["read", "second"]
    assert await store.keys() == {"M1": TODAY}


@pytest.mark.parametrize("complete", [True, False])
async def test_a_dangling_key_is_replaced_and_the_row_inserted(store: Store, complete: bool) -> None:
    store.table.keys_complete = complete
    await store.write(row(at(1), message_date=LAST_MONTH), row(at(1), "M2"))
    await store.sql("DELETE FROM {s}.messages WHERE message_id = 'M1'")
    lost = patch(at(2), status="read")
    assert await store.write(lost) == [WriteRejection(lost.ref, "not_found")]
    assert await store.write(row(at(3), message_text="again"), patch(at(4), status="read")) == []
    stored = (await store.rows())[1]
    assert (stored["message_id"], stored["message_text"], stored["status"]) == ("M1", "again", "read")
    assert (await store.keys())["M1"] == stored["message_date"] == TODAY


async def test_a_key_that_names_the_wrong_day_is_repaired(store: Store) -> None:
    await store.write(row(at(1), message_date=LAST_MONTH, status="sent"))
    await store.sql("UPDATE {s}.message_keys SET message_date = $1", TODAY)
    assert await store.write(row(at(2), status="read")) == []
    assert (await store.row())["status"] == "read"
    assert await store.keys() == {"M1": LAST_MONTH}


async def test_two_writers_of_one_dangling_key_make_one_row(store: Store) -> None:
    await store.write(*(row(at(1), f"M{n}") for n in range(50)))
    await store.sql("DELETE FROM {s}.messages")
    await asyncio.gather(
        store.write(*(row(at(2), f"M{n}", status="two") for n in range(50))),
        store.write(*(row(at(3), f"M{n}", status="three", message_date=LAST_MONTH) for n in range(50))),
    )
    rows = await store.rows()
    assert len(rows) == 50
    assert {r["status"] for r in rows} == {"three"}


async def _alternate(store: Store, changes: Sequence[MessageRow | MessagePatch]) -> None:
    for start in range(0, len(changes), 500):
        await store.write(*changes[start : start + 500])


@pytest.mark.rule("ROW-5")
@pytest.mark.parametrize("stored_before", [False, True])
async def test_two_writers_in_opposite_order_never_deadlock(store: Store, stored_before: bool) -> None:
    """2,000 keys, upserts and updates mixed; `Store.write` would raise on 40P01."""
    keys = [f"M{n:04d}" for n in range(2000)]
    if stored_before:
        await _alternate(store, [row(at(1), key) for key in keys])
    for turn in range(3):
        await asyncio.gather(
            store.write(*(row(at(10 + turn), key, status="row") for key in keys)),
            store.write(*(row(at(20 + turn), key, status="newest") for key in reversed(keys))),
        )
        await asyncio.gather(
            _alternate(store, [patch(at(5 + turn), key, status="stale") for key in reversed(keys)]),
            _alternate(store, [row(at(6 + turn), key, status="stale") for key in keys]),
        )
    rows = await store.rows()
    assert len(rows) == 2000
    assert {r["status"] for r in rows} == {"newest"}


async def test_updates_and_look_ups_touch_one_partition(store: Store) -> None:
    """Pruning at run time: the other partitions' nodes are there, and never executed."""
    await store.write(row(at(1)), row(at(1), "M2"))
    names = ("lock", "update")
    for name, arguments in zip(names, (["M1", "M2"], None), strict=True):
        executed = await _executed_partitions(store, name, arguments)
        assert executed == {f"messages_y{TODAY:%Y}m{TODAY:%m}"}, name


@pytest.mark.parametrize("stored", [TODAY, LAST_MONTH, datetime.date(2024, 2, 29), datetime.date(1, 1, 2)])
@pytest.mark.parametrize("sent", [TODAY, LAST_MONTH, datetime.date(1971, 1, 1)])
async def test_an_update_finds_its_message_whatever_the_months_of_both(
    store: Store, stored: datetime.date, sent: datetime.date
) -> None:
    """Where it is likely to be is looked at first; the dates here are also those of the default partition."""
    sent_ns = (sent - EPOCH).days * 24 * 3600 * 10**9
    await store.write(row(at(1), message_date=stored), row(at(1), "M2", message_date=LAST_MONTH))
    assert await store.write(patch(at(sent_ns), status="read")) == []
    assert (
        await store.write(patch(at(sent_ns), "M2", status="read"), patch(at(sent_ns + 1), status="last"))
        == []
    )
    assert {r["message_id"]: r["status"] for r in await store.rows()} == {"M1": "last", "M2": "read"}


async def test_a_batch_for_many_months_is_stored(store: Store) -> None:
    days = [EPOCH + datetime.timedelta(days=365 * 50 + 31 * n) for n in range(80)]
    rows = [row(at(1), f"M{n}", message_date=day) for n, day in enumerate(days)]
    for status in ("sent", "read"):
        await store.write(*(each._replace(stamp=at(TODAY_NS), status=status) for each in rows))
    assert [r["status"] for r in await store.rows()] == ["read"] * 80


async def test_what_changes_messages_of_this_month_is_planned_for_one_partition(store: Store) -> None:
    """26 of them, with eight indexes each, would be opened for each company and connection."""
    store.table.partitions = await attached(store.database, store.schema)
    sent: list[LoggedQuery] = []
    async with store.database.connection(store.schema) as connection:
        connection.add_query_logger(sent.append)
    await store.write(row(at(1)))
    await store.write(row(at(2), status="sent"), patch(at(TODAY_NS), status="read"))
    changing = (f'UPDATE "{store.schema}".messages', " FOR UPDATE")
    texts = {one.query for one in sent if any(words in one.query for words in changing)}
    assert len(texts) == 2
    async with store.database.connection() as connection:
        for number, text in enumerate(texts):
            await connection.execute(f"PREPARE changing_{number} AS {text}")
            nulls = ", ".join(["NULL"] * len(set(re.findall(r"\$\d+", text))))
            explain = f"EXPLAIN (FORMAT JSON) EXECUTE changing_{number} ({nulls})"
            plan = json.loads(await connection.fetchval(explain))
            assert set(_planned(plan[0]["Plan"])) == {f"messages_y{TODAY:%Y}m{TODAY:%m}"}


def _planned(node: dict[str, Any]) -> Iterator[str]:
    relation = node.get("Relation Name", "")
    if relation.startswith("messages_"):
        yield relation
    for child in node.get("Plans", ()):
        yield from _planned(child)


async def test_a_partition_that_is_dropped_under_us_is_nobodys_fault(store: Store) -> None:
    """The next try goes without it."""
    store.table.partitions = await attached(store.database, store.schema)
    await store.write(row(at(1), message_date=LAST_MONTH), row(at(1), "M2"))
    await store.sql(f"DROP TABLE {{s}}.messages_y{LAST_MONTH:%Y}m{LAST_MONTH:%m}")
    changes = [row(at(2), message_date=LAST_MONTH, status="again"), row(at(2), "M2", status="again")]
    with pytest.raises(Unavailable):
        await store.tables.write(changes)
    assert await store.tables.write(changes) == []
    assert {r["message_id"]: r["status"] for r in await store.rows()} == {"M1": "again", "M2": "again"}


async def _executed_partitions(store: Store, name: str, ids: list[str] | None) -> set[str]:
    stored = (await store.rows())[0]
    arguments: list[Any] = [ids] if ids else [[stored["id"]], [(TODAY - EPOCH).days], ["{}"], *[[None]] * 15]
    statement = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, FORMAT JSON) " + store.table._sql[name]
    async with store.database.connection() as connection:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        plan = json.loads(await connection.fetchval(statement, *arguments))
        await connection.execute("RESET plan_cache_mode")
    return set(_executed(plan[0]["Plan"]))


def _executed(node: dict[str, Any]) -> Iterator[str]:
    relation = node.get("Relation Name", "")
    if relation.startswith("messages_") and node["Actual Loops"] and node["Node Type"] != "ModifyTable":
        yield relation
    for child in node.get("Plans", ()):
        yield from _executed(child)


async def test_how_fast_it_is(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured and printed, not judged."""
    loop = asyncio.get_running_loop()
    changes = [row(at(n + 1), f"M{n * 7919 % 20000:05d}", message_text="halo") for n in range(20_000)]
    seconds = {}
    for kind in ("fresh", "repeated"):
        start = loop.time()
        await _alternate(store, changes)
        seconds[kind] = loop.time() - start
    with capsys.disabled():
        print(*(f"\n{kind}: {20_000 / taken:,.0f} messages/s" for kind, taken in seconds.items()))  # noqa: T201
    assert len(await store.rows()) == 20_000
