"""Writing batches whatever PostgreSQL does: events are blamed by evidence, outages are waited out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from agents.batch_writer import BatchWriter
from agents.circuit_breaker import IN_A_ROW
from agents.event_writer import EventSink
from agents.received_event import PendingWrite
from events import errors
from events.backoff import Backoff
from tables import errors as db
from tables.last_writer_wins import EventStamp
from tables.mutations import AccountRow, Mutation, WriteRejection
from tests.unit.fakes import TENANT, FakeTables, RecordingMeter, quicken, until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


WAITER = "storing KopiNusa01"


def pending(count: int, *, of_one_event: bool = False) -> list[PendingWrite]:
    """Writes of as many different events, or of one history batch."""
    sequences = [0] * count if of_one_event else range(count)
    stamps = [EventStamp(None, f'{{"stream":"s","stream_sequence":{sequence}}}') for sequence in sequences]
    return [
        PendingWrite(AccountRow(ref, stamps[ref], f"A{ref}", "C", "", "", "", "", "", ""))
        for ref in range(count)
    ]


class Clock:
    """Time that passes only while somebody sleeps, or by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Fixture:
    """A writer for one company, and its clock."""

    def __init__(self, tables: FakeTables, *, replayed: bool = False) -> None:
        self.health = RecordingMeter()
        self.clock = Clock()
        self.writer = BatchWriter("storing", self.health, clock=self.clock, sleep=self.clock.sleep)
        self.sink = EventSink("KopiNusa01", tables.of(TENANT), replayed=replayed)

    async def store(self, given: list[PendingWrite]) -> None:
        await self.writer.store(given, self.sink)


async def store(tables: FakeTables, given: list[PendingWrite]) -> RecordingMeter:
    fixture = Fixture(tables)
    await fixture.store(given)
    return fixture.health


def refs(changes: Iterable[Mutation]) -> list[int]:
    return [change.ref for change in changes]


def blaming(error: Exception, *guilty: int) -> Any:
    def judge(changes: Sequence[Mutation]) -> Iterable[WriteRejection]:
        if set(refs(changes)) & set(guilty):
            raise error
        return ()

    return judge


async def test_a_batch_without_trouble_is_one_write() -> None:
    tables, given = FakeTables(), pending(5)
    health = await store(tables, given)
    assert [refs(write) for write in tables.writes] == [[0, 1, 2, 3, 4]]
    assert health.calls == []
    assert tables.probes == []
    await store(tables, [])
    assert len(tables.writes) == 1


@pytest.mark.rule("DBE-2")
@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (db.DataError("SQLSTATE 22003: NumericValueOutOfRangeError", "22003"), errors.Rejected),
        (db.DatabaseError("SQLSTATE XX000: x", "XX000"), errors.DatabaseError),
        (KeyError("a fault of ours"), errors.UnexpectedError),
    ],
)
@pytest.mark.parametrize("guilty", [(0,), (6,), (3, 4), (0, 1, 2, 3, 4, 5, 6)])
async def test_only_the_guilty_are_blamed_and_all_others_stored_in_order(
    trouble: Exception, kind: type[errors.EventError], guilty: tuple[int, ...]
) -> None:
    tables, given = FakeTables(judge=blaming(trouble, *guilty)), pending(7)
    await store(tables, given)
    assert [type(unit.error) for unit in given] == [kind if ref in guilty else type(None) for ref in range(7)]
    assert refs(tables.stored) == [ref for ref in range(7) if ref not in guilty]


@pytest.mark.parametrize("outage", [1, 7])
async def test_an_outage_is_waited_for_and_is_nobodys_error(outage: int) -> None:
    tables, given = FakeTables(*[db.Unavailable("gone", "57P03")] * outage), pending(3)
    health = await store(tables, given)
    assert [unit.error for unit in given] == [None] * 3
    assert [refs(write) for write in tables.writes] == [[0, 1, 2]]
    assert health.count() == {"paused": outage, "resumed": 1}


async def test_a_deadlock_is_tried_again_without_blame() -> None:
    tables, given = FakeTables(*[db.SerializationFailure("x", "40P01")] * 3), pending(3)
    health = await store(tables, given)
    assert [refs(write) for write in tables.writes] == [[0, 1, 2]]
    assert [unit.error for unit in given] == [None] * 3
    assert health.calls == []


@pytest.mark.rule("DBE-4")
async def test_an_event_alone_that_times_out_three_times_is_to_blame() -> None:
    tables, given = FakeTables(*[db.QueryTimeout("slow", "57014")] * 3), pending(1)
    await store(tables, given)
    assert isinstance(given[0].error, errors.TimedOut)
    assert tables.writes == []


async def test_two_time_outs_of_one_event_are_forgiven() -> None:
    tables, given = FakeTables(*[db.QueryTimeout("slow", "57014")] * 2), pending(1)
    health = await store(tables, given)
    assert given[0].error is None
    assert health.count() == {"paused": 2, "resumed": 1}


async def test_a_batch_that_times_out_is_divided_until_the_slow_event_is_alone() -> None:
    tables, given = FakeTables(judge=blaming(db.QueryTimeout("slow", "55P03"), 2)), pending(4)
    await store(tables, given)
    assert [type(unit.error) for unit in given] == [type(None), type(None), errors.TimedOut, type(None)]
    assert refs(tables.stored) == [0, 1, 3]


async def test_a_refused_change_is_not_found_or_of_another_company() -> None:
    def judge(changes: Sequence[Mutation]) -> Iterable[WriteRejection]:
        return [WriteRejection(0, "not_found"), WriteRejection(2, "company")]

    given = pending(3)
    await store(FakeTables(judge=judge), given)
    assert isinstance(given[0].error, errors.NotFound)
    assert str(given[0].error) == "fatal: agent to update not found"
    assert given[1].error is None
    assert isinstance(given[2].error, errors.Invalid)
    assert "company_id" in str(given[2].error)


async def test_contention_that_never_ends_is_a_failure_of_the_event() -> None:
    tables, given = FakeTables(*[db.SerializationFailure("unsupported", "0A000")] * 11), pending(1)
    await store(tables, given)
    assert isinstance(given[0].error, errors.DatabaseError)
    assert tables.writes == []


SOUND = [
    db.DataError("SQLSTATE 54000: x", "54000"),
    db.DatabaseError("SQLSTATE XX000: x", "XX000"),
    db.QueryTimeout("slow", "57014"),
    KeyError("a fault of ours"),
]


@pytest.mark.rule("DBE-2")
@pytest.mark.parametrize("trouble", SOUND, ids=repr)
async def test_an_event_is_not_blamed_while_no_probe_is_stored(trouble: Exception) -> None:
    """A refusal of everything is an outage, whatever its code; afterwards the same event is stored."""
    healthy = False

    def judge(changes: Sequence[Mutation]) -> Iterable[WriteRejection]:
        if not healthy:
            raise trouble
        return ()

    class Server(FakeTables):
        async def store(self, like: object, company: str) -> None:
            nonlocal healthy
            await super().store(like, company)
            healthy = len(self.probes) > 3
            raise trouble

    tables, given = Server(judge=judge), pending(4)
    fixture = Fixture(tables)
    # The answer of a probe counts for a while: only then another one is asked.
    fixture.writer.backoff = lambda: _Passing(fixture.clock)
    await fixture.store(given)
    assert [unit.error for unit in given] == [None] * 4
    assert refs(tables.stored) == [0, 1, 2, 3]
    assert fixture.health.count()["paused"] >= 4
    assert fixture.health.calls[-1] == ("resumed", WAITER)


class _Passing(Backoff):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    async def wait(self) -> None:
        await self._clock.sleep(2.0)


async def test_readiness_is_told_what_the_probe_was_refused_for() -> None:
    told = "database is not accepting commands to avoid wraparound data loss"
    refused = db.DataError("SQLSTATE 54000: X", "54000", server_text=told)
    tables = FakeTables(refused, probe_troubles=[refused])
    health = await store(tables, pending(1))
    [(_, waiter, reason)] = health.of("paused")
    assert waiter == WAITER
    assert "SQLSTATE 54000" in reason
    assert told in reason


async def test_a_probe_refused_for_another_reason_of_its_data_clears_nobody() -> None:
    """A test row that an operator's constraint does not take must not hold up a stream for ever."""
    wrong = db.DataError("SQLSTATE 22P02: x", "22P02")
    check = db.DataError("SQLSTATE 23514: x", "23514", objects={"constraint": "phone_is_short"})
    tables, given = FakeTables(judge=blaming(wrong, 0), probe_troubles=[check]), pending(1)
    fixture = Fixture(tables)
    fixture.writer.backoff = lambda: _Passing(fixture.clock)
    await fixture.store(given)
    assert isinstance(given[0].error, errors.Rejected)
    assert fixture.health.calls == []


async def test_a_probe_refused_by_the_same_constraint_clears_the_event() -> None:
    check = db.DataError("SQLSTATE 23514: x", "23514", objects={"constraint": "broken"})
    tables, given = FakeTables(check, probe_troubles=[check]), pending(1)
    health = await store(tables, given)
    assert given[0].error is None
    assert health.count() == {"paused": 1, "resumed": 1}


async def test_a_flood_of_refused_events_costs_one_probe_a_second() -> None:
    wrong = db.DataError("SQLSTATE 22P02: x", "22P02")
    tables = FakeTables(judge=blaming(wrong, *range(4)))
    fixture = Fixture(tables)
    await fixture.store(pending(4))
    assert len(tables.probes) == 1
    fixture.clock.now += 1.5
    await fixture.store(pending(1))
    assert len(tables.probes) == 2


@pytest.mark.parametrize(
    "trouble",
    [
        db.DataError("SQLSTATE 54000: x", "54000"),
        db.DataError("SQLSTATE 23514: x", "23514", objects={"constraint": "deployed just now"}),
        db.DatabaseError("SQLSTATE P0001: x", "P0001"),
    ],
)
async def test_a_probe_that_was_stored_before_an_outage_began_is_no_evidence_against_later_events(
    trouble: db.StorageError,
) -> None:
    wrong = db.DataError("SQLSTATE 22P02: x", "22P02")
    tables = FakeTables(judge=blaming(wrong, 0))
    fixture = Fixture(tables)
    await fixture.store(pending(1))
    fixture.clock.now += 0.1
    tables.judge, tables.troubles, tables.probe_troubles = None, [trouble], [trouble]
    given = pending(1)
    await fixture.store(given)
    assert given[0].error is None
    assert fixture.health.count() == {"paused": 1, "resumed": 1}


async def test_a_batch_that_times_out_is_not_bisected_while_no_probe_is_stored() -> None:
    slow = db.QueryTimeout("slow", "57014")
    tables, given = FakeTables(*[slow] * 4, probe_troubles=[slow] * 2), pending(8)
    fixture = Fixture(tables)
    fixture.writer.backoff = lambda: _Passing(fixture.clock)
    await fixture.store(given)
    assert [refs(write) for write in tables.writes] == [list(range(8))]
    assert [unit.error for unit in given] == [None] * 8


WRONG = db.DataError("SQLSTATE 22P02: x", "22P02")


@pytest.mark.rule("DBE-5")
async def test_several_different_events_refused_in_a_row_open_the_breaker_and_one_stored_closes_it() -> None:
    tables = FakeTables(judge=blaming(WRONG, *range(IN_A_ROW + 3)))
    fixture, given = Fixture(tables), pending(IN_A_ROW + 3)
    for unit in given[:IN_A_ROW]:
        await fixture.store([unit])
    assert fixture.health.calls == []
    assert fixture.clock.slept == []

    await fixture.store([given[IN_A_ROW]])
    [(_, waiter, reason)] = fixture.health.of("paused")
    assert waiter == WAITER
    assert f"{IN_A_ROW} different events in a row were refused by PostgreSQL: SQLSTATE 22P02" in reason
    assert fixture.clock.slept == [1.0]
    assert fixture.health.calls[-1] == ("resumed", WAITER)

    await fixture.store([given[IN_A_ROW + 1]])
    assert fixture.clock.slept == [1.0, 2.0]

    await fixture.store([PendingWrite(given[0].mutation._replace(ref=99))])
    await fixture.store([given[IN_A_ROW + 2]])
    assert fixture.clock.slept == [1.0, 2.0]
    assert all(isinstance(unit.error, errors.Rejected) for unit in given)


@pytest.mark.rule("DBE-5")
async def test_the_pauses_of_the_breaker_grow_to_half_a_minute() -> None:
    count = IN_A_ROW + 8
    fixture = Fixture(FakeTables(judge=blaming(WRONG, *range(count))))
    await fixture.store(pending(count))
    assert fixture.clock.slept == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


async def test_the_breaker_lets_the_other_events_of_a_batch_go_first() -> None:
    """A sound event among them closes it, and nothing has to wait."""
    given = pending(IN_A_ROW + 3)
    sound = IN_A_ROW + 2
    fixture = Fixture(FakeTables(judge=blaming(WRONG, *range(sound))))
    await fixture.store(given)
    assert fixture.clock.slept == []
    assert [unit.error is None for unit in given] == [ref == sound for ref in range(IN_A_ROW + 3)]


async def test_one_event_that_is_refused_again_and_again_does_not_open_the_breaker() -> None:
    fixture = Fixture(FakeTables(judge=blaming(WRONG, 0)))
    for _ in range(3 * IN_A_ROW):
        await fixture.store(pending(1))
    assert fixture.health.calls == []
    # Nor do the items of one history batch, which have their event in common.
    fixture = Fixture(FakeTables(judge=blaming(WRONG, *range(20))))
    await fixture.store(pending(20, of_one_event=True))
    assert fixture.health.calls == []


async def test_replays_of_dead_letters_do_not_open_the_breaker() -> None:
    """Each was blamed before."""
    fixture = Fixture(FakeTables(judge=blaming(WRONG, *range(30))), replayed=True)
    await fixture.store(pending(30))
    assert fixture.health.calls == []


async def test_events_that_are_not_found_never_open_the_breaker() -> None:
    def judge(changes: Sequence[Mutation]) -> Iterable[WriteRejection]:
        return [WriteRejection(change.ref, "not_found") for change in changes]

    fixture = Fixture(FakeTables(judge=judge))
    for unit in pending(3 * IN_A_ROW):
        await fixture.store([unit])
    assert fixture.health.calls == []


async def test_companies_have_breakers_of_their_own() -> None:
    fixture = Fixture(FakeTables(judge=blaming(WRONG, *range(IN_A_ROW + 1))))
    await fixture.store(pending(IN_A_ROW))
    other = EventSink("Other", fixture.sink.tables)
    await fixture.writer.store(pending(1), other)
    assert fixture.clock.slept == []


async def test_readiness_hears_that_a_company_goes_on_when_the_last_of_its_batches_does() -> None:
    """Its real-time events, its history and its replays are stored side by side."""
    gone = db.Unavailable("gone")
    fixture = Fixture(FakeTables(*[gone] * 20))
    longer = EventSink("KopiNusa01", FakeTables(*[gone] * 40).of(TENANT))

    async def last() -> None:
        await fixture.writer.store(pending(1), longer)
        fixture.health.done()

    await asyncio.gather(fixture.store(pending(1)), last())
    assert fixture.health.calls[-2:] == [("resumed", WAITER), ("done",)]
    assert fixture.health.count()["resumed"] == 1


async def test_a_batch_that_is_cancelled_while_it_waits_leaves_no_reason_behind() -> None:
    fixture = Fixture(FakeTables(*[db.Unavailable("gone")] * 10**4))
    storing = asyncio.create_task(fixture.store(pending(1)))
    await until(lambda: fixture.health.of("paused"))
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing
    assert fixture.health.count()["resumed"] == 1
