"""Accounts (the table `agents`) on a real PostgreSQL (AGT-1)."""

from __future__ import annotations

import asyncio
import json
from itertools import count
from typing import Any

import pytest

from tables.accounts import Accounts
from tables.connection.pool import Database
from tables.errors import DataError
from tables.last_writer_wins import EventStamp, Version
from tables.mutations import AccountRow, WriteRejection

REFS = count()


def at(ns: int) -> EventStamp:
    return EventStamp(Version(ns, ns), json.dumps({"stream": "wa_events_stream", "stream_sequence": ns}))


def row(stamp: EventStamp, agent_id: str = "A1", company_id: str = "Kopi", **changes: str) -> AccountRow:
    values = dict.fromkeys(("qr_code", "status", "agent_name", "phone_number", "host_name", "version"), "")
    return AccountRow(next(REFS), stamp, agent_id, company_id, **{**values, **changes})


class Store:
    """The table under test, one transaction for each call."""

    def __init__(self, database: Database, schema: str) -> None:
        self.database = database
        self.schema = schema
        self.operations: list[tuple[str, str, bool]] = []
        self.table = Accounts(schema, lambda name, entity, _, ok: self.operations.append((name, entity, ok)))

    async def write(self, *rows: AccountRow) -> list[WriteRejection]:
        async with self.database.transaction() as connection:
            return await self.table.write(connection, rows)

    async def sql(self, statement: str) -> list[Any]:
        async with self.database.connection() as connection:
            return await connection.fetch(statement.replace("{s}", self.schema))

    async def row(self) -> Any:
        (only,) = await self.sql("SELECT * FROM {s}.agents")
        return only


@pytest.fixture
def store(database: Database, schema: str) -> Store:
    return Store(database, schema)


async def test_a_new_agent_has_every_column(store: Store) -> None:
    new = row(
        at(5),
        qr_code="q",
        status="connected",
        agent_name="CS",
        phone_number="628",
        host_name="h",
        version="2.14",
    )
    assert await store.write(new) == []
    stored = await store.row()
    for column in AccountRow._fields[2:]:
        assert stored[column] == getattr(new, column), column
    assert stored["created_at"] == stored["updated_at"]
    assert json.loads(stored["last_metadata"]) == {**json.loads(at(5).metadata), "version": "5-5"}
    assert store.operations == [("UpsertAgent", "Agent", True)]


async def test_nothing_to_write_is_nothing_done(store: Store) -> None:
    assert await store.write() == []
    assert store.operations == []


async def test_empty_fields_leave_what_is_stored(store: Store) -> None:
    await store.write(row(at(5), status="connected", version="2.14"))
    before = await store.row()
    await store.write(row(at(6), status="disconnected"))
    stored = await store.row()
    assert (stored["status"], stored["version"], stored["host_name"]) == ("disconnected", "2.14", "")
    assert stored["created_at"] == before["created_at"]
    assert stored["updated_at"] > before["updated_at"]
    assert json.loads(stored["last_metadata"])["versions"] == {"version": "5-5"}


async def test_a_stale_event_never_overwrites_a_newer_one(store: Store) -> None:
    await store.write(row(at(9), status="connected"))
    before = await store.row()
    await store.write(row(at(5), status="pairing", qr_code="q"))
    stored = await store.row()
    assert (stored["status"], stored["qr_code"]) == ("connected", "q")
    assert stored["updated_at"] > before["updated_at"]
    assert json.loads(stored["last_metadata"])["stream_sequence"] == 9


async def test_events_of_one_agent_in_one_batch_are_one_row(store: Store) -> None:
    await store.write(row(at(7), status="connected"), row(at(6), status="pairing", qr_code="q"))
    stored = await store.row()
    assert (stored["status"], stored["qr_code"]) == ("connected", "q")
    assert stored["id"] == 1


async def test_an_adopted_row_is_older_than_any_event(store: Store) -> None:
    await store.sql(
        "INSERT INTO {s}.agents (agent_id, company_id, status, agent_name) VALUES ('A1', 'Kopi', 'x', 'CS')"
    )
    await store.write(row(at(1), status="connected"))
    stored = await store.row()
    assert (stored["status"], stored["agent_name"]) == ("connected", "CS")


async def test_a_row_of_another_company_refuses_every_event(store: Store) -> None:
    await store.write(row(at(1), status="connected"))
    changes = [row(at(5), company_id="KOPI", status="x"), row(at(6), company_id="KOPI")]
    assert await store.write(*changes) == [WriteRejection(change.ref, "company") for change in changes]
    assert (await store.row())["status"] == "connected"


async def test_a_failed_write_is_reported(store: Store) -> None:
    with pytest.raises(DataError):
        await store.write(row(at(1), status="\0"))
    assert store.operations == [("UpsertAgent", "Agent", False)]


async def test_two_writers_in_opposite_order_never_deadlock(store: Store) -> None:
    """2,000 keys; `Store.write` would raise on 40P01."""
    keys = [f"A{n:04d}" for n in range(2000)]
    for turn in range(3):
        await asyncio.gather(
            store.write(*(row(at(10 + turn), key, status="older") for key in keys)),
            store.write(*(row(at(20 + turn), key, status="newest") for key in reversed(keys))),
        )
    rows = await store.sql("SELECT status, count(*) AS number FROM {s}.agents GROUP BY 1")
    assert [tuple(r) for r in rows] == [("newest", 2000)]
