"""The DLQ agent: replays, delays, and what is parked."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from agents.batch_writer import BatchWriter
from agents.dead_letter_replay import DeadLetterReplayer
from agents.event_writer import EventWriter
from agents.history_throttle import HistoryThrottle
from agents.onboarding import Onboarding
from agents.received_event import ReceivedEvent
from agents.settlement import DeadLetterSettlement
from events import errors
from events.delivery import Batch
from events.subjects import Tenant
from tables import errors as db
from tables.last_writer_wins import Version
from tables.mutations import ChatRow, WriteRejection
from tables.tenant import TenantTables
from tests import builders
from tests.builders import ABSENT, COMPANY
from tests.unit.fakes import (
    LIMITS,
    TENANT,
    FakeDelivery,
    FakeTables,
    RecordingMeter,
    batch,
    quicken,
    stream,
    until,
)

CHAT = f"v1.chats.upsert.{COMPANY}"
PARKED = {"dlq_dropped": 1, "dlq_ack_failed": 1}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


class FakeOnboarding:
    """Onboarding that ends each replay as it is told."""

    def __init__(self, result: errors.EventError | None) -> None:
        self.result = result
        self.events: list[ReceivedEvent] = []

    async def replay(self, event: ReceivedEvent) -> None:
        self.events.append(event)
        event.error = self.result


class Replayer:
    """The DLQ agent with all that is around it."""

    def __init__(
        self,
        tables: FakeTables | None = None,
        result: errors.EventError | None = None,
        of: Callable[[Tenant], TenantTables] | None = None,
    ) -> None:
        self.tables = tables or FakeTables()
        self.meter = RecordingMeter()
        self.onboarding = FakeOnboarding(result)
        of = of or self.tables.of
        self.agent = DeadLetterReplayer(
            writer=EventWriter(
                tables=of, writer=BatchWriter("storing", RecordingMeter()), throttle=HistoryThrottle()
            ),
            onboarding=cast(Onboarding, self.onboarding),
            settlement=DeadLetterSettlement(tables=of, policy=LIMITS["dlq"], meter=self.meter),
            policy=LIMITS["dlq"],
            workers=3,
            meter=self.meter,
        )

    async def handle(self, delivery: FakeDelivery) -> None:
        await self.agent.handle(TENANT, delivery)
        # Replays are none of the live deliveries' numbers.
        assert not self.meter.of("received", "agent_seen", "settled", "stuck")


def dead_letter(
    payload: Any = ABSENT, *, num_delivered: int = 1, headers: Any = None, **changes: Any
) -> FakeDelivery:
    if payload is ABSENT:
        payload = builders.chat()
    data = builders.body(builders.envelope(payload, **{"source_subject": CHAT, **changes}))
    return FakeDelivery(
        subject=f"v1.dlq.{COMPANY}", data=data, num_delivered=num_delivered, headers=headers, sequence=9
    )


# ---------------------------------------------------------------- replays


@pytest.mark.rule("DLQ-5")
@pytest.mark.parametrize(("retry_count", "num_delivered"), [(1, 1), (5, 1), (5, 20)])
async def test_a_replay_that_works_is_acknowledged_and_counted(retry_count: int, num_delivered: int) -> None:
    replayer, delivery = Replayer(), dead_letter(retry_count=retry_count, num_delivered=num_delivered)
    await replayer.handle(delivery)
    assert delivery.outcome == "ack"
    assert replayer.meter.calls == [("dlq_acked", COMPANY)]
    assert replayer.tables.rows == []


@pytest.mark.rule("DLQ-5")
@pytest.mark.parametrize("event_type", builders.BUILDERS)
async def test_every_event_type_can_be_replayed(event_type: str) -> None:
    replayer = Replayer()
    delivery = dead_letter(builders.BUILDERS[event_type](), source_subject=f"{event_type}.{COMPANY}")
    await replayer.handle(delivery)
    assert delivery.outcome == "ack"
    assert replayer.tables.bulks == ["history" in event_type]


@pytest.mark.rule("VER-1", "DLQ-5")
async def test_a_replay_keeps_the_version_subject_and_id_of_its_event() -> None:
    replayer = Replayer()
    await replayer.handle(dead_letter(headers={"Original-Nats-Msg-Id": "wa-1", "Nats-Msg-Id": "dead-1"}))
    [row] = replayer.tables.stored
    assert isinstance(row, ChatRow)
    assert row.stamp.version == Version(1_795_500_123_000_000_000, 7)
    metadata = json.loads(row.stamp.metadata)
    assert (metadata["message_id"], metadata["message_subject"]) == ("wa-1", CHAT)
    assert metadata["stream_sequence"] == 9


@pytest.mark.parametrize("version", [ABSENT, None, "", "yesterday"])
async def test_an_envelope_of_the_existing_service_has_no_version(version: Any) -> None:
    replayer = Replayer()
    await replayer.handle(dead_letter(event_version=version))
    assert replayer.tables.stored[0].stamp.version is None  # type: ignore[union-attr]


async def test_an_absent_company_is_ours() -> None:
    for company in ("", ABSENT, None):
        replayer, delivery = Replayer(), dead_letter(company=company)
        await replayer.handle(delivery)
        assert delivery.outcome == "ack"


async def test_a_text_payload_is_replayed_as_the_event_it_was() -> None:
    replayer, delivery = Replayer(), dead_letter("{oops", retry_count=5)
    await replayer.handle(delivery)
    assert delivery.outcome == "term"
    assert replayer.tables.row.last_error.startswith("fatal: cannot decode")
    assert replayer.tables.row.original_payload == '"{oops"'


@pytest.mark.rule("DLQ-5")
async def test_a_replayed_message_is_onboarded_before_it_is_acknowledged() -> None:
    replayer = Replayer()
    delivery = dead_letter(builders.message(), source_subject=f"v1.messages.upsert.{COMPANY}")
    await replayer.handle(delivery)
    assert len(replayer.onboarding.events) == 1
    assert delivery.outcome == "ack"


async def test_a_replayed_message_that_cannot_be_onboarded_waits() -> None:
    replayer = Replayer(result=errors.Rejected("x"))
    delivery = dead_letter(builders.message(), source_subject=f"v1.messages.upsert.{COMPANY}")
    await replayer.handle(delivery)
    assert delivery.outcome == "nak"


@pytest.mark.rule("DLQ-15")
async def test_an_outage_is_waited_for() -> None:
    replayer, delivery = Replayer(FakeTables(*[db.Unavailable("gone")] * 4)), dead_letter(retry_count=5)
    await replayer.handle(delivery)
    assert delivery.outcome == "ack"


# ---------------------------------------------------------------- decisions


@pytest.mark.rule("DLQ-6")
@pytest.mark.parametrize(("retry_count", "delivered"), [(1, 1), (1, 4), (3, 2), (4, 1), (0, 5)])
async def test_a_failed_replay_is_put_off_with_jitter(retry_count: int, delivered: int) -> None:
    replayer, delivery = Replayer(), dead_letter({}, retry_count=retry_count, num_delivered=delivered)
    await replayer.handle(delivery)
    [(how, delay)] = delivery.settlements
    assert how == "nak"
    assert 240 <= delay <= 360
    assert replayer.meter.calls == [("dlq_retried", COMPANY)]
    assert replayer.tables.rows == []


@pytest.mark.parametrize(
    ("retry_count", "delivered", "tries"), [(1, 5, 5), (3, 3, 5), (5, 1, 5), (9, 1, 9), (-20, 10, 0)]
)
async def test_a_replay_that_fails_at_its_limit_is_stored_then_ended(
    retry_count: int, delivered: int, tries: int
) -> None:
    replayer, delivery = (
        Replayer(),
        dead_letter({"chat_id": "C"}, retry_count=retry_count, num_delivered=delivered),
    )
    await replayer.handle(delivery)
    assert delivery.outcome == "term"
    assert replayer.meter.count() == PARKED
    row = replayer.tables.row
    assert row.retry_count == tries
    assert (row.company_id, row.source_subject) == (COMPANY, CHAT)
    assert "jid is required" in row.last_error
    assert row.event_timestamp == datetime.datetime(2026, 11, 24, 7, 15, 30, 123456, datetime.UTC)
    assert json.loads(row.dlq_payload) == json.loads(delivery.data)
    assert json.loads(row.original_payload or "") == {"chat_id": "C"}


async def test_a_row_still_missing_is_given_up_like_any_other() -> None:
    tables = FakeTables(judge=lambda changes: [WriteRejection(change.ref, "not_found") for change in changes])
    delivery = dead_letter(
        builders.chat_update(), source_subject=f"v1.chats.update.{COMPANY}", num_delivered=5
    )
    replayer = Replayer(tables)
    await replayer.handle(delivery)
    assert delivery.outcome == "term"
    assert replayer.tables.row.last_error == "fatal: chat to update not found"


async def test_an_unexpected_exception_while_replaying_is_a_failed_replay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise LookupError("a fault of ours")

    monkeypatch.setattr("agents.dead_letter_replay.decode", fail)
    replayer, delivery = Replayer(), dead_letter()
    await replayer.handle(delivery)
    assert delivery.outcome == "nak"


@pytest.mark.parametrize("delivered", [21, 1000])
async def test_an_envelope_that_seems_to_kill_its_worker_is_stored_unreplayed(delivered: int) -> None:
    replayer, delivery = Replayer(), dead_letter(num_delivered=delivered)
    await replayer.handle(delivery)
    assert delivery.outcome == "term"
    assert replayer.tables.writes == []
    assert replayer.meter.count() == PARKED


# ---------------------------------------------------------------- no envelope, or not ours


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        (b"oops", "oops"),
        (b"", ""),
        (b"[1]", [1]),
        (b'{"retry_count":"x"}', {"retry_count": "x"}),
        (b"\xff", "/w=="),
        (b'{"company":1,"a":"\\u0000"}', {"company": 1, "a": ""}),
    ],
)
async def test_what_is_no_envelope_is_stored_then_ended(data: bytes, payload: Any) -> None:
    replayer, delivery = Replayer(), FakeDelivery(subject=f"v1.dlq.{COMPANY}", data=data)
    await replayer.handle(delivery)
    assert delivery.outcome == "term"
    row = replayer.tables.row
    assert (row.company_id, row.source_subject) == (COMPANY, f"v1.dlq.{COMPANY}")
    assert (row.event_timestamp, row.original_payload) == (None, None)
    assert json.loads(row.dlq_payload) == payload
    assert replayer.meter.count() == PARKED


async def test_an_envelope_of_twenty_thousand_levels_is_stored_as_text() -> None:
    data = b'{"original_payload":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    replayer, delivery = Replayer(), FakeDelivery(subject=f"v1.dlq.{COMPANY}", data=data)
    await replayer.handle(delivery)
    assert delivery.outcome == "term"
    assert json.loads(replayer.tables.row.dlq_payload) == data.decode()


async def test_an_envelope_of_another_company_is_never_replayed() -> None:
    replayer, delivery = Replayer(), dead_letter(company="Other")
    await replayer.handle(delivery)
    assert delivery.outcome == "term"
    assert replayer.tables.writes == []
    assert replayer.tables.row.company_id == "Other"
    assert replayer.meter.count() == PARKED


@pytest.mark.parametrize("token", ["Other", COMPANY.lower(), f"{COMPANY}x", "*"])
@pytest.mark.parametrize("company", [COMPANY, "", ABSENT])
async def test_an_envelope_whose_subject_is_another_companys_is_never_replayed(
    company: object, token: str
) -> None:
    replayer, delivery = (
        Replayer(),
        dead_letter(company=company, source_subject=f"v1.messages.upsert.{token}"),
    )
    await replayer.handle(delivery)
    assert delivery.outcome == "term"
    assert replayer.tables.writes == []
    assert "source_subject" in replayer.tables.row.last_error
    assert replayer.meter.count() == PARKED


async def test_an_envelope_whose_subject_names_no_company_is_ours() -> None:
    replayer, delivery = Replayer(), dead_letter(source_subject="v1.chats.upsert")
    await replayer.handle(delivery)
    assert delivery.outcome == "ack"


@pytest.mark.parametrize("subject", ["", ABSENT, None, f"v1.foo.bar.{COMPANY}", f"v1.dlq.{COMPANY}"])
async def test_an_envelope_of_unknown_subject_is_never_acknowledged_as_success(subject: Any) -> None:
    replayer, delivery = Replayer(), dead_letter(source_subject=subject)
    await replayer.handle(delivery)
    assert delivery.outcome == "term"
    assert replayer.tables.row.source_subject == (
        subject if isinstance(subject, str) and subject else delivery.subject
    )
    assert replayer.meter.count() == PARKED


@pytest.mark.parametrize(
    ("changes", "column", "value"),
    [
        ({"ts": ABSENT}, "event_timestamp", None),
        ({"ts": "yesterday"}, "event_timestamp", None),
        ({"ts": "0001-01-01T00:00:00+14:00"}, "event_timestamp", None),
        (
            {"ts": "2026-11-24T07:15:30"},
            "event_timestamp",
            datetime.datetime(2026, 11, 24, 7, 15, 30, 0, datetime.UTC),
        ),
        ({"original_payload": ABSENT}, "original_payload", None),
        ({"original_payload": None}, "original_payload", None),
        ({"retry_count": 10**30}, "retry_count", 2**31 - 1),
    ],
)
async def test_odd_fields_of_an_envelope_do_not_keep_its_row_from_being_stored(
    changes: dict[str, Any], column: str, value: Any
) -> None:
    replayer, delivery = Replayer(), dead_letter({}, **{"retry_count": 5, **changes})
    await replayer.handle(delivery)
    assert delivery.outcome == "term"
    assert getattr(replayer.tables.row, column) == value


@pytest.mark.parametrize("readable", [True, False])
async def test_an_envelope_that_the_server_gave_up_is_stored(readable: bool) -> None:
    replayer = Replayer()
    delivery = dead_letter() if readable else FakeDelivery(subject=f"v1.dlq.{COMPANY}", data=b"oops")
    await replayer.agent.on_max_deliveries(TENANT, delivery)
    assert delivery.outcome == "term"
    assert replayer.tables.writes == []
    assert "max_deliver" in replayer.tables.row.last_error
    assert replayer.tables.row.source_subject == (CHAT if readable else delivery.subject)


# ---------------------------------------------------------------- rows that cannot be stored


@pytest.mark.rule("DLQ-8")
async def test_a_row_that_cannot_be_stored_puts_the_envelope_off() -> None:
    replayer = Replayer(FakeTables(exhausted_troubles=[db.Unavailable("gone")]))
    delivery = dead_letter({}, retry_count=5)
    await replayer.handle(delivery)
    assert delivery.settlements == [("nak", 300.0)]
    assert replayer.meter.calls == [("dlq_ack_failed", COMPANY)]


@pytest.mark.rule("DLQ-8")
async def test_at_the_last_delivery_storing_the_row_is_tried_until_it_works() -> None:
    replayer = Replayer(FakeTables(exhausted_troubles=[db.Unavailable("gone")] * 5))
    delivery = dead_letter({}, retry_count=1, num_delivered=10)
    await replayer.handle(delivery)
    assert delivery.outcome == "term"
    assert len(replayer.tables.rows) == 1
    assert replayer.meter.count() == PARKED


# ---------------------------------------------------------------- the loop


async def run(replayer: Replayer, *deliveries: FakeDelivery) -> None:
    """Let the agent handle a batch on its channel; returns when all envelopes were handled."""
    item = batch(*deliveries, consumer_type="dlq")

    async def channel() -> Any:
        yield item
        await until(lambda: replayer.meter.count()["dlq_finished"] == len(deliveries))

    assert [size async for size in replayer.agent.run(channel())] == [len(deliveries)]
    assert item.released.is_set()
    assert replayer.agent.active == replayer.agent.queue_length == 0


@pytest.mark.rule("DLQ-14")
async def test_envelopes_are_handled_side_by_side_and_each_is_counted_once() -> None:
    replayer = Replayer()
    deliveries = [dead_letter(), dead_letter({}), dead_letter({}, retry_count=5), dead_letter()]
    await run(replayer, *deliveries)
    assert [delivery.outcome for delivery in deliveries] == ["ack", "nak", "term", "ack"]
    assert replayer.meter.count() == {
        "dlq_submitted": 4,
        "dlq_finished": 4,
        "dlq_acked": 2,
        "dlq_retried": 1,
        "dlq_dropped": 1,
        "dlq_ack_failed": 1,
    }


@pytest.mark.rule("DLQ-12")
@pytest.mark.parametrize("payload", [builders.chat(), {}])
@pytest.mark.parametrize("retry_count", [1, 5])
async def test_an_outcome_that_cannot_be_told_is_a_failed_ack_and_nothing_else(
    payload: Any, retry_count: int
) -> None:
    replayer, delivery = Replayer(), dead_letter(payload, retry_count=retry_count)
    delivery.failures = 1
    await run(replayer, delivery)
    assert replayer.meter.count() == {"dlq_submitted": 1, "dlq_finished": 1, "dlq_ack_failed": 1}


async def test_no_exception_leaves_the_agent_and_no_envelope_stays_in_flight() -> None:
    replayer = Replayer(FakeTables(exhausted_troubles=[LookupError("a fault of ours")]))
    first, second = dead_letter({}, retry_count=5), dead_letter()
    await run(replayer, first, second)
    assert first.settlements == [("nak", 300.0)]
    assert second.outcome == "ack"
    assert replayer.meter.count()["dlq_ack_failed"] == 1


async def test_an_empty_channel_ends_the_agent() -> None:
    assert [size async for size in Replayer().agent.run(stream())] == []


@pytest.mark.parametrize("trouble", ["event", "row at the last delivery"])
async def test_no_company_waits_with_its_replays_for_another_ones_tables(trouble: str) -> None:
    """More of its letters are under way than there are slots: each waits for the outage to end."""
    for_ever = [db.Unavailable("permission denied for table chats", "42501")] * 10**5
    broken, works = FakeTables(*for_ever, exhausted_troubles=list(for_ever)), FakeTables()
    other = Tenant("TehNusa")
    of = {TENANT: broken.of(TENANT), other: works.of(other)}
    replayer = Replayer(of=of.__getitem__)
    changes = {"num_delivered": 10} if trouble != "event" else {}
    payload = ABSENT if trouble == "event" else {}
    stuck = [dead_letter(payload, **changes) for _ in range(30)]
    envelope = builders.envelope(
        builders.chat(company_id="TehNusa"), source_subject="v1.chats.upsert.TehNusa", company="TehNusa"
    )
    well = FakeDelivery(subject="v1.dlq.TehNusa", data=builders.body(envelope))

    async def channel() -> Any:
        yield batch(*stuck, consumer_type="dlq")
        await until(lambda: len(broken.troubles + broken.exhausted_troubles) < 2 * 10**5 - 10)
        yield Batch(other, "dlq", (well,))
        await until(lambda: well.settlements)

    assert [size async for size in replayer.agent.run(channel())] == [30, 1]
    assert well.outcome == "ack"
    assert all(not delivery.settlements for delivery in stuck)
    assert replayer.meter.of("dlq_finished") == [("dlq_finished", "TehNusa")]
