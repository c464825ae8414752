"""Storing whatever PostgreSQL does: blame the guilty event, sit outages out (design 5, point 4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from agents.storing import Storing
from agents.work import Unit
from streams import errors
from tables import errors as db
from tables.agents import AgentRow
from tables.refusals import Refusal
from tables.tenant import Change
from tables.versions import Origin
from tests.unit.fakes import FakeTables, RecordingMeter, quicken


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


def units(count: int) -> list[Unit]:
    origin = Origin(None, "{}")
    return [Unit(AgentRow(ref, origin, f"A{ref}", "C", "", "", "", "", "", "")) for ref in range(count)]


async def store(tables: FakeTables, given: list[Unit]) -> RecordingMeter:
    health = RecordingMeter()
    await Storing(health).store(given, lambda changes: tables.write(changes, bulk=False))
    return health


def refs(changes: Iterable[Change]) -> list[int]:
    return [change.ref for change in changes]


def blaming(error: Exception, *guilty: int) -> Any:
    def judge(changes: Sequence[Change]) -> Iterable[Refusal]:
        if set(refs(changes)) & set(guilty):
            raise error
        return ()

    return judge


async def test_a_batch_without_trouble_is_one_write() -> None:
    tables, given = FakeTables(), units(5)
    health = await store(tables, given)
    assert [refs(write) for write in tables.writes] == [[0, 1, 2, 3, 4]]
    assert health.calls == [("resumed", "postgres")]
    await store(tables, [])
    assert len(tables.writes) == 1


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (db.BadData("SQLSTATE 22003: NumericValueOutOfRangeError", "22003"), errors.Rejected),
        (db.Failed("SQLSTATE XX000: x", "XX000"), errors.Unstored),
        (KeyError("a fault of ours"), errors.Crashed),
    ],
)
@pytest.mark.parametrize("guilty", [(0,), (6,), (3, 4), (0, 1, 2, 3, 4, 5, 6)])
async def test_only_the_guilty_are_blamed_and_all_others_stored_in_order(
    trouble: Exception, kind: type[errors.EventError], guilty: tuple[int, ...]
) -> None:
    tables, given = FakeTables(judge=blaming(trouble, *guilty)), units(7)
    await store(tables, given)
    assert [type(unit.error) for unit in given] == [kind if ref in guilty else type(None) for ref in range(7)]
    assert refs(tables.stored) == [ref for ref in range(7) if ref not in guilty]


@pytest.mark.parametrize("outage", [1, 7])
async def test_an_outage_is_waited_for_and_is_nobodys_error(outage: int) -> None:
    tables, given = FakeTables(*[db.Unavailable("gone", "57P03")] * outage), units(3)
    health = await store(tables, given)
    assert [unit.error for unit in given] == [None] * 3
    assert [refs(write) for write in tables.writes] == [[0, 1, 2]]
    assert health.count() == {"paused": outage, "resumed": 1}


async def test_a_deadlock_is_tried_again_without_blame() -> None:
    tables, given = FakeTables(*[db.Contended("x", "40P01")] * 3), units(3)
    health = await store(tables, given)
    assert [refs(write) for write in tables.writes] == [[0, 1, 2]]
    assert [unit.error for unit in given] == [None] * 3
    assert health.calls == [("resumed", "postgres")]


async def test_an_event_alone_that_times_out_three_times_is_to_blame() -> None:
    tables, given = FakeTables(*[db.Expired("slow", "57014")] * 3), units(1)
    await store(tables, given)
    assert isinstance(given[0].error, errors.TimedOut)
    assert tables.writes == []


async def test_two_time_outs_of_one_event_are_forgiven() -> None:
    tables, given = FakeTables(*[db.Expired("slow", "57014")] * 2), units(1)
    health = await store(tables, given)
    assert given[0].error is None
    assert health.count() == {"paused": 2, "resumed": 1}


async def test_a_batch_that_times_out_is_divided_until_the_slow_event_is_alone() -> None:
    tables, given = FakeTables(judge=blaming(db.Expired("slow", "55P03"), 2)), units(4)
    await store(tables, given)
    assert [type(unit.error) for unit in given] == [type(None), type(None), errors.TimedOut, type(None)]
    assert refs(tables.stored) == [0, 1, 3]


async def test_a_refused_change_is_not_found_or_of_another_company() -> None:
    def judge(changes: Sequence[Change]) -> Iterable[Refusal]:
        return [Refusal(0, "not_found"), Refusal(2, "company")]

    given = units(3)
    await store(FakeTables(judge=judge), given)
    assert isinstance(given[0].error, errors.NotFound)
    assert str(given[0].error) == "fatal: agent to update not found"
    assert given[1].error is None
    assert isinstance(given[2].error, errors.Invalid)
    assert "company_id" in str(given[2].error)


async def test_contention_that_never_ends_is_a_failure_of_the_event() -> None:
    tables, given = FakeTables(*[db.Contended("unsupported", "0A000")] * 11), units(1)
    await store(tables, given)
    assert isinstance(given[0].error, errors.Unstored)
    assert tables.writes == []
