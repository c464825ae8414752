"""Parked events have exactly one row each (PRK-1)."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from tables.connection.pool import Database
from tables.exhausted import ExhaustedEvents, ExhaustedRow
from tables.queries import quoted

WHEN = datetime.datetime(2025, 3, 4, 5, 6, 7, tzinfo=datetime.UTC)
ROW = ExhaustedRow(
    company_id="Kopi",
    source_subject="v1.chats.upsert.Kopi",
    last_error="chat_id is empty",
    retry_count=5,
    event_timestamp=WHEN,
    dlq_payload='{"source_subject": "v1.chats.upsert.Kopi", "original_payload": {"a": 1}}',
    original_payload='{"a": 1}',
)

Call = tuple[str, str, bool]


class Given:
    """The table under test, and what its observer saw."""

    def __init__(self, database: Database, schema: str) -> None:
        self.calls: list[Call] = []
        self._database = database
        self._schema = schema
        self._events = ExhaustedEvents(schema, self._observe)

    def _observe(self, operation: str, entity: str, _: float, succeeded: bool) -> None:
        self.calls.append((operation, entity, succeeded))

    async def save(self, row: ExhaustedRow) -> bool:
        async with self._database.transaction() as connection:
            return await self._events.save(connection, row)

    async def rows(self) -> list[asyncpg.Record]:
        async with self._database.connection() as connection:
            return await connection.fetch(
                f"SELECT * FROM {quoted(self._schema)}.exhausted_events ORDER BY id"
            )

    async def newest(self) -> datetime.datetime | None:
        async with self._database.connection() as connection:
            return await self._events.newest(connection)

    async def resolve(self, row: int, deed: str = "replayed by Sari") -> None:
        async with self._database.transaction() as connection:
            await self._events.resolve(connection, row, deed)

    @asynccontextmanager
    async def locked(self, row: int) -> AsyncIterator[None]:
        """A command that replays `row`; it has resolved it when it ends."""
        async with self._database.transaction() as connection:
            await self._events.lock(connection, row)
            yield
            await self._events.resolve(connection, row, "replayed by Sari")

    async def payload(self) -> Any:
        [row] = await self.rows()
        return json.loads(row["dlq_payload"])


@pytest.fixture
def given(database: Database, schema: str) -> Given:
    return Given(database, schema)


@pytest.mark.rule("PRK-1")
async def test_a_row_holds_everything_that_operators_need(given: Given) -> None:
    assert await given.save(ROW)

    [row] = await given.rows()
    assert {name: row[name] for name in ("company_id", "source_subject", "last_error", "retry_count")} == {
        "company_id": "Kopi",
        "source_subject": "v1.chats.upsert.Kopi",
        "last_error": "chat_id is empty",
        "retry_count": 5,
    }
    assert row["event_timestamp"] == WHEN
    assert json.loads(row["dlq_payload"]) == json.loads(ROW.dlq_payload)
    assert json.loads(row["original_payload"]) == {"a": 1}
    assert (row["resolved"], row["resolved_at"], row["notes"]) == (False, None, "")
    assert row["created_at"] is not None
    assert given.calls == [("SaveExhaustedEvent", "ExhaustedEvent", True)]


@pytest.mark.rule("PRK-2")
@pytest.mark.parametrize("event_timestamp", [WHEN, None])
async def test_an_event_has_one_row_however_often_it_is_given_up(
    given: Given, event_timestamp: datetime.datetime | None
) -> None:
    row = ROW._replace(event_timestamp=event_timestamp)

    assert await given.save(row)
    assert not await given.save(row._replace(last_error="another", retry_count=6))

    [stored] = await given.rows()
    assert stored["last_error"] == "chat_id is empty"


async def test_an_event_given_up_again_much_later_has_one_row(given: Given) -> None:
    """Its first envelope is no longer known to the stream, and the second one has another time."""
    envelope = '{"original_payload": {"a": 1}, "event_version": "17-4", "ts": "%s"}'
    for minute in (1, 9):
        when = WHEN.replace(minute=minute)
        await given.save(ROW._replace(event_timestamp=when, dlq_payload=envelope % when))

    assert len(await given.rows()) == 1


def _replayed(row: int) -> ExhaustedRow:
    """`ROW` when its replay, from the row of this id, has failed once more."""
    payload = json.dumps({**json.loads(ROW.dlq_payload), "exhausted_id": row, "retry_count": 0})
    return ROW._replace(dlq_payload=payload, last_error="still empty", retry_count=4)


@pytest.mark.rule("PRK-5")
async def test_a_replay_that_failed_opens_its_row_again_and_only_that(given: Given) -> None:
    await given.save(ROW)
    await given.save(ROW._replace(source_subject="v1.chats.update.Kopi"))
    [before, other] = await given.rows()
    await given.resolve(before["id"])
    await given.resolve(other["id"])

    assert await given.save(_replayed(before["id"]))

    [row, other] = await given.rows()
    assert (row["resolved"], row["resolved_at"], row["last_error"]) == (False, None, "still empty")
    assert row["retry_count"] == ROW.retry_count + 4
    assert [line.partition(" at ")[0] for line in row["notes"].splitlines()] == [
        "replayed by Sari",
        "given up again",
    ]
    for kept in ("created_at", "event_timestamp", "dlq_payload", "original_payload"):
        assert row[kept] == before[kept]
    assert other["resolved"]
    newest = await given.newest()
    assert newest is not None
    assert newest > other["created_at"]


async def test_a_repeat_of_that_failure_changes_nothing_more(given: Given) -> None:
    """A crash between row and term delivers the envelope once more."""
    await given.save(ROW)
    [row] = await given.rows()
    await given.resolve(row["id"])
    await given.save(_replayed(row["id"]))
    opened = await given.rows()

    assert not await given.save(_replayed(row["id"]))

    assert await given.rows() == opened


async def test_an_envelope_replayed_by_hand_opens_its_resolved_row_again(given: Given) -> None:
    await given.save(ROW)
    [row] = await given.rows()
    await given.resolve(row["id"], "handled by hand")

    assert await given.save(ROW)

    [row] = await given.rows()
    assert not row["resolved"]


async def test_a_failure_waits_until_the_command_has_resolved_its_row(given: Given) -> None:
    """Otherwise it would find the row open, leave it, and the command would then resolve it for good."""
    await given.save(ROW)
    [row] = await given.rows()

    async with given.locked(row["id"]):
        failing = asyncio.create_task(given.save(_replayed(row["id"])))
        done, _ = await asyncio.wait([failing], timeout=0.5)
        assert not done
    assert await failing

    [row] = await given.rows()
    assert not row["resolved"]


@pytest.mark.parametrize("mark", [10**6, -1, 2**63, "1", None])
async def test_a_mark_that_leads_to_no_row_loses_no_event(given: Given, mark: object) -> None:
    payload = {**json.loads(ROW.dlq_payload), "exhausted_id": mark}
    assert await given.save(ROW._replace(dlq_payload=json.dumps(payload)))


async def test_a_mark_inside_the_event_or_of_another_subject_is_none(given: Given) -> None:
    await given.save(ROW)
    [row] = await given.rows()
    await given.resolve(row["id"])
    inside = {"original_payload": {"exhausted_id": row["id"]}}

    assert await given.save(ROW._replace(dlq_payload=json.dumps(inside)))
    other = ROW._replace(source_subject="v1.chats.update.Kopi")
    assert await given.save(other._replace(dlq_payload=_replayed(row["id"]).dlq_payload))

    rows = await given.rows()
    assert [found["resolved"] for found in rows] == [True, False, False]


@pytest.mark.rule("PRK-2")
async def test_replicas_that_give_up_at_once_make_one_row(given: Given) -> None:
    stored = await asyncio.gather(*(given.save(ROW) for _ in range(5)))

    assert sorted(stored) == [False, False, False, False, True]
    assert len(await given.rows()) == 1


@pytest.mark.rule("PRK-2")
@pytest.mark.parametrize(
    "other",
    [
        {"source_subject": "v1.chats.update.Kopi"},
        {"event_timestamp": WHEN + datetime.timedelta(microseconds=1)},
        {"event_timestamp": None},
        {"dlq_payload": '{"source_subject": "v1.chats.upsert.Kopi", "original_payload": {"a": 2}}'},
    ],
)
async def test_another_event_has_a_row_of_its_own(given: Given, other: dict[str, Any]) -> None:
    assert await given.save(ROW)
    assert await given.save(ROW._replace(**other))


async def test_the_newest_row_is_the_last_one_stored_resolved_or_not(given: Given) -> None:
    assert await given.newest() is None
    await given.save(ROW)
    await given.save(ROW._replace(source_subject="v1.chats.update.Kopi"))
    first, last = await given.rows()

    assert first["created_at"] < last["created_at"] == await given.newest()


@pytest.mark.rule("PRK-1")
async def test_missing_timestamp_and_payload_are_null(given: Given) -> None:
    await given.save(ROW._replace(event_timestamp=None, original_payload=None))

    [row] = await given.rows()
    assert (row["event_timestamp"], row["original_payload"]) == (None, None)


@pytest.mark.rule("PRK-1")
@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ('{"a\\u0000b": "c\\u0000"}', {"ab": "c"}),
        ('"a\x00b"', "ab"),
        (r'"a\\u0000"', "a\\u0000"),
        (r'"\ud83d\ude00 \ud83d"', "\U0001f600 \ufffd"),
        ('"\ud83d"', "?"),
    ],
)
async def test_what_cannot_be_stored_as_it_is_does_not_lose_the_event(
    given: Given, text: str, stored: object
) -> None:
    assert await given.save(ROW._replace(last_error="a\x00b\ud83d", dlq_payload=text, original_payload=text))

    assert await given.payload() == stored
    assert (await given.rows())[0]["last_error"] == "ab?"


@pytest.mark.parametrize("text", ["{not json", '{"a": 1e999999}', '{"a": NaN}'])
async def test_a_payload_that_is_refused_is_stored_as_text_once(given: Given, text: str) -> None:
    row = ROW._replace(dlq_payload=text, original_payload=text)

    assert await given.save(row)
    assert not await given.save(row)

    assert await given.payload() == text


def _dead_letter(version: str, moment: str) -> ExhaustedRow:
    """The row of an event that was given up at this time, by a worker that writes its version like this."""
    letter = {"source_subject": ROW.source_subject, "event_version": version, "ts": moment}
    return ROW._replace(
        dlq_payload=json.dumps(letter), event_timestamp=datetime.datetime.fromisoformat(moment)
    )


@pytest.mark.parametrize(
    ("first", "second"), [("5-7", "5-7-9"), ("5-7-9", "5-7"), ("5-7-9", "5-7-8"), ("5-7", "5-7")]
)
async def test_an_event_is_known_with_and_without_the_incarnation_of_its_version(
    given: Given, first: str, second: str
) -> None:
    assert await given.save(_dead_letter(first, "2026-11-24T07:00:00Z"))
    assert not await given.save(_dead_letter(second, "2026-11-24T09:00:00Z"))
    assert len(await given.rows()) == 1


@pytest.mark.parametrize(("first", "second"), [("5-7-9", "5-77-9"), ("5-7", "55-7"), ("5-7", "5-70-9")])
async def test_versions_that_begin_alike_are_of_different_events(
    given: Given, first: str, second: str
) -> None:
    assert await given.save(_dead_letter(first, "2026-11-24T07:00:00Z"))
    assert await given.save(_dead_letter(second, "2026-11-24T09:00:00Z"))
    assert len(await given.rows()) == 2


@pytest.mark.parametrize(
    "change",
    [{"max_retry": 9}, {"retry_count": 6}, {"error": "fatal: another"}, {"field_of_a_later_release": 1}],
)
async def test_an_envelope_with_other_fields_makes_no_second_row_of_its_event(
    given: Given, change: dict[str, Any]
) -> None:
    row = _dead_letter("5-7-9", "2026-11-24T07:00:00Z")
    envelope = json.loads(row.dlq_payload)

    assert await given.save(row)
    assert not await given.save(row._replace(dlq_payload=json.dumps(envelope | change)))
    assert not await given.save(row)
    assert len(await given.rows()) == 1


async def test_two_replicas_that_write_a_version_differently_make_one_row(given: Given) -> None:
    letters = [
        _dead_letter(version, f"2026-11-24T0{hour}:00:00Z")
        for hour, version in enumerate(["5-7", "5-7-9"] * 3)
    ]
    saved = await asyncio.gather(*map(given.save, letters))
    assert sum(saved) == 1
