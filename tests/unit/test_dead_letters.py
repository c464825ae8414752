"""Giving an event up without losing it (contract 3.9, 4.1, C12, C27; design 4, 7)."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
from typing import Any

import pytest

from agents import dead_letter_publisher as module
from agents.dead_letter import message_id
from agents.dead_letter_publisher import DeadLetterPublisher
from agents.received_event import EventMetadata, ReceivedEvent, plan
from events import envelope, errors
from events.delivery import TooLarge
from events.errors import BrokerError, EventError
from events.subjects import Tenant
from tables.errors import DataError, Unavailable
from tables.last_writer_wins import Version
from testkit import builders
from tests.unit.fakes import (
    LIMITS,
    STORED_NS,
    TENANT,
    FakeDelivery,
    FakePublisher,
    FakeTables,
    RecordingMeter,
    quicken,
    until,
)

Ended = list[tuple[str, str]]
REALTIME = LIMITS["realtime"]
INVALID = errors.Invalid("validation failed: jid is required")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


class Desk:
    """The dead letters with all that is around them."""

    def __init__(self, publisher: FakePublisher, tables: FakeTables | None = None) -> None:
        self.publisher = publisher
        self.tables = tables or FakeTables()
        self.meter = RecordingMeter()
        self.health = RecordingMeter()
        self.ended: Ended = []
        self.letters = DeadLetterPublisher(
            publisher=publisher,
            stream="dlq_stream",
            subject="v1.dlq",
            tables=self.tables.of,
            meter=self.meter,
            health=self.health,
            ended=lambda _, action, error: self.ended.append((action, error.label)),
        )


def work(delivery: FakeDelivery, event_type: str = "v1.chats.upsert") -> ReceivedEvent:
    source = EventMetadata(event_type, "{}", STORED_NS, 7, Version(STORED_NS, 7))
    return plan(ReceivedEvent(TENANT, delivery, source), delivery.data, itertools.count())


async def test_an_event_is_acknowledged_once_its_envelope_is_stored() -> None:
    desk, delivery = Desk(FakePublisher()), FakeDelivery("v1.chats.upsert", {"chat_id": "C"}, num_delivered=3)
    await desk.letters.dead_letter(work(delivery), INVALID, REALTIME)
    [(subject, letter, headers)] = desk.publisher.letters
    assert subject == f"v1.dlq.{builders.COMPANY}"
    moment = letter.pop("ts")
    assert moment.endswith("Z")
    assert letter == {
        "source_subject": f"v1.chats.upsert.{builders.COMPANY}",
        "company": builders.COMPANY,
        "original_payload": {"chat_id": "C"},
        "error": "fatal: validation failed: jid is required",
        "error_type": "fatal",
        "retry_count": 3,
        "max_retry": 5,
        "event_version": f"{STORED_NS}-7",
    }
    assert headers == {
        "Nats-Msg-Id": f"wa_events_stream-7-{STORED_NS}",
        "Original-Nats-Msg-Id": "msg-7",
    }
    assert delivery.outcome == "ack"
    assert desk.ended == [("dlq_published_ack_success", "validation")]
    assert desk.meter.calls == []


@pytest.mark.parametrize(
    ("error", "retry_count", "error_type"),
    [(errors.NotFound("x"), 1, "fatal"), (errors.DatabaseError("x"), 5, "retryable"), (INVALID, 5, "fatal")],
)
async def test_the_envelope_says_how_often_it_was_tried(
    error: EventError, retry_count: int, error_type: str
) -> None:
    desk = Desk(FakePublisher())
    await desk.letters.dead_letter(work(FakeDelivery("v1.chats.upsert", num_delivered=5)), error, REALTIME)
    assert desk.publisher.envelope["retry_count"] == retry_count
    assert desk.publisher.envelope["error_type"] == error_type


@pytest.mark.parametrize(
    ("data", "payload", "encoding"),
    [(b"{oops", "{oops", None), (b"\xff\x00", "/wA=", "base64"), (b"", "", None)],
)
async def test_a_body_that_is_no_json_reaches_the_envelope(data: bytes, payload: Any, encoding: Any) -> None:
    desk = Desk(FakePublisher())
    await desk.letters.dead_letter(
        work(FakeDelivery("v1.chats.upsert", data=data)), errors.Malformed(), REALTIME
    )
    assert desk.publisher.envelope["original_payload"] == payload
    assert desk.publisher.envelope.get("original_payload_encoding") == encoding


async def test_a_failed_publish_keeps_the_event_and_ends_it_once_when_it_works_again() -> None:
    desk, delivery = Desk(FakePublisher(*[BrokerError("no answer")] * 4)), FakeDelivery("v1.chats.upsert")
    await desk.letters.dead_letter(work(delivery), INVALID, REALTIME)
    assert delivery.settlements == []
    assert desk.ended == []
    await until(lambda: desk.ended)
    assert delivery.outcome == "ack"
    assert desk.ended == [("dlq_published_ack_success", "validation")]
    assert desk.meter.calls == [("stuck", TENANT.company, "v1.chats.upsert", "nak_dlq_publish_fail")]
    assert len(desk.publisher.letters) == 1


async def test_an_envelope_that_cannot_be_built_is_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, delivery = Desk(FakePublisher()), FakeDelivery("v1.chats.upsert")

    def fail(_: object) -> bytes:
        monkeypatch.undo()
        raise LookupError("a fault of ours")

    monkeypatch.setattr(envelope, "encode", fail)
    await desk.letters.dead_letter(work(delivery), INVALID, REALTIME)
    assert desk.meter.calls == [("stuck", TENANT.company, "v1.chats.upsert", "nak_dlq_marshal_fail")]
    await until(lambda: desk.ended)
    assert delivery.outcome == "ack"


def history(delivery: FakeDelivery) -> ReceivedEvent:
    """A history batch: its second chat is bad."""
    source = EventMetadata("v1.history.chats", "{}", STORED_NS, 7, Version(STORED_NS, 7))
    found = plan(ReceivedEvent(TENANT, delivery, source), delivery.data, itertools.count())
    found.conclude()
    return found


def bad_item() -> FakeDelivery:
    return FakeDelivery(
        "v1.history.chats", builders.history_chats(builders.chat(chat_id="good"), {"chat_id": "bad"})
    )


@pytest.mark.parametrize("release", ["lighten", "forget"])
async def test_a_letter_carries_its_items_however_late_it_is_published(release: str) -> None:
    desk, batch = Desk(FakePublisher(*[BrokerError("full")] * 3)), history(bad_item())
    await desk.letters.dead_letter(batch, INVALID, REALTIME)
    if release == "forget":
        batch.forget(100)
    else:
        batch.release()
    assert not batch.units
    await until(lambda: desk.ended)
    assert desk.publisher.envelope["original_payload"] == {"chats": [{"chat_id": "bad"}]}


@pytest.mark.parametrize("step", ["dead_letter", "park"])
async def test_a_row_carries_its_items_however_late_it_is_stored(step: str) -> None:
    tables = FakeTables(exhausted_troubles=[Unavailable("gone")] * 3)
    desk, batch = Desk(FakePublisher(*[TooLarge("1 MiB")] * 4), tables), history(bad_item())
    await getattr(desk.letters, step)(batch, INVALID, REALTIME)
    batch.forget(100)
    await until(lambda: desk.ended)
    assert json.loads(desk.tables.row.original_payload or "") == {"chats": [{"chat_id": "bad"}]}
    assert json.loads(desk.tables.row.dlq_payload)["original_payload"] == {"chats": [{"chat_id": "bad"}]}


async def test_every_try_publishes_the_same_bytes_under_the_same_id() -> None:
    """So a letter whose confirmation was lost is a duplicate for the stream."""
    tries: list[tuple[object, ...]] = []

    class Publisher(FakePublisher):
        async def publish(self, *values: Any) -> None:
            tries.append(values)
            await super().publish(*values)

    desk, batch = Desk(Publisher(*[BrokerError("no answer")] * 3)), history(bad_item())
    await desk.letters.dead_letter(batch, INVALID, REALTIME)
    batch.forget(100)
    await until(lambda: desk.ended)
    assert len(tries) == 4
    assert all(values == tries[0] for values in tries)


async def test_an_event_is_released_as_soon_as_its_letter_is_fixed() -> None:
    desk, delivery = Desk(FakePublisher(*[BrokerError("full")] * 3)), FakeDelivery("v1.chats.upsert")
    event = work(delivery)
    assert event.units
    await desk.letters.dead_letter(event, INVALID, REALTIME)
    assert (event.event, event.units) == (None, [])
    await until(lambda: desk.ended)
    assert desk.publisher.envelope["original_payload"] == json.loads(delivery.data)


async def test_a_letter_that_cannot_be_made_of_the_bad_items_carries_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> bytes:
        raise LookupError("a fault of ours")

    monkeypatch.setattr("agents.dead_letter.remainder", fail)
    desk, delivery = Desk(FakePublisher()), bad_item()
    await desk.letters.dead_letter(history(delivery), INVALID, REALTIME)
    assert desk.publisher.envelope["original_payload"] == json.loads(delivery.data)
    assert delivery.outcome == "ack"


async def test_an_event_of_which_no_letter_can_be_made_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> bytes:
        raise LookupError("a fault of ours")

    monkeypatch.setattr(envelope, "embed", fail)
    desk, delivery = Desk(FakePublisher()), FakeDelivery("v1.chats.upsert")
    await desk.letters.dead_letter(work(delivery), INVALID, REALTIME)
    assert delivery.settlements == [("nak", REALTIME.maximum)]
    assert desk.meter.calls == [("stuck", TENANT.company, "v1.chats.upsert", "nak_dlq_marshal_fail")]


async def test_health_is_told_while_letters_of_a_company_wait_and_why() -> None:
    waiter, stuck = f"dead letters {builders.COMPANY}", "dlq_stream takes nothing on v1.dlq.KopiNusa01: "
    desk = Desk(FakePublisher(BrokerError("full"), BrokerError("full"), BrokerError("no answer")))
    for sequence in (7, 8):
        await desk.letters.dead_letter(
            work(FakeDelivery("v1.chats.upsert", sequence=sequence)), INVALID, REALTIME
        )
    await until(lambda: len(desk.ended) == 2)
    assert desk.health.calls == [
        ("paused", waiter, f"{stuck}full"),
        ("paused", waiter, f"{stuck}full"),
        ("paused", waiter, f"{stuck}no answer"),
        ("resumed", waiter),
    ]


async def test_health_is_told_why_a_row_cannot_be_stored() -> None:
    tables = FakeTables(exhausted_troubles=[Unavailable("the disk is full")])
    desk = Desk(FakePublisher(), tables)
    await desk.letters.park(work(FakeDelivery("v1.chats.upsert")), INVALID, REALTIME)
    await until(lambda: desk.ended)
    waiter = f"dead letters {builders.COMPANY}"
    assert desk.health.calls == [
        ("paused", waiter, "exhausted_events takes no row: the disk is full"),
        ("resumed", waiter),
    ]


async def test_letters_of_many_bytes_hold_routing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    data = builders.body(builders.chat())
    monkeypatch.setattr(module, "PATIENT_BYTES", 2 * len(data) + 1)
    desk = Desk(FakePublisher(*[BrokerError("no answer")] * 3))
    deliveries = [FakeDelivery("v1.chats.upsert", data=data, sequence=n) for n in range(3)]
    for delivery in deliveries:
        await desk.letters.dead_letter(work(delivery), INVALID, REALTIME)
    assert any(delivery.settlements for delivery in deliveries)
    await until(lambda: len(desk.ended) == 3)


async def test_a_letter_larger_than_all_that_may_wait_waits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENT_BYTES", 1)
    desk = Desk(FakePublisher(*[BrokerError("no answer")] * 2))
    await desk.letters.dead_letter(work(FakeDelivery("v1.chats.upsert")), INVALID, REALTIME)
    assert desk.letters.waiting == 1
    await until(lambda: desk.ended)


async def test_many_waiting_events_hold_routing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENT", 2)
    desk = Desk(FakePublisher(*[BrokerError("no answer")] * 3))
    deliveries = [FakeDelivery("v1.chats.upsert", sequence=n) for n in range(3)]
    for delivery in deliveries:
        await desk.letters.dead_letter(work(delivery), INVALID, REALTIME)
    assert any(delivery.settlements for delivery in deliveries)
    await until(lambda: len(desk.ended) == 3)


async def test_a_stop_leaves_what_waits_unsettled() -> None:
    desk, delivery = (
        Desk(FakePublisher(*[BrokerError("no answer")] * 10_000)),
        FakeDelivery("v1.chats.upsert"),
    )
    await desk.letters.dead_letter(work(delivery), INVALID, REALTIME)
    await until(lambda: desk.publisher.attempts > 2)
    await desk.letters.stop()
    attempts = desk.publisher.attempts
    await asyncio.sleep(0.02)
    assert desk.publisher.attempts == attempts
    assert delivery.settlements == []


async def test_an_ack_that_is_not_sent_is_neither_counted_nor_published_again() -> None:
    """The event comes again; its second envelope is a duplicate."""
    desk, delivery = Desk(FakePublisher()), FakeDelivery("v1.chats.upsert", failures=1)
    await desk.letters.dead_letter(work(delivery), INVALID, REALTIME)
    assert (desk.ended, desk.meter.calls) == ([], [])
    assert desk.publisher.attempts == 1


async def test_an_event_too_large_for_an_envelope_goes_into_exhausted_events() -> None:
    desk, delivery = (
        Desk(FakePublisher(TooLarge("1 MiB"))),
        FakeDelivery("v1.chats.upsert", {"a": 1}, num_delivered=2),
    )
    await desk.letters.dead_letter(work(delivery), INVALID, REALTIME)
    row = desk.tables.row
    assert (row.company_id, row.source_subject) == (builders.COMPANY, f"v1.chats.upsert.{builders.COMPANY}")
    assert row.last_error == "fatal: validation failed: jid is required"
    assert row.retry_count == 2
    assert row.event_timestamp == datetime.datetime.fromtimestamp(STORED_NS / 1e9, datetime.UTC)
    assert json.loads(row.original_payload or "") == {"a": 1}
    assert json.loads(row.dlq_payload)["original_payload"] == {"a": 1}
    assert json.loads(row.dlq_payload)["ts"].endswith("Z")
    assert delivery.outcome == "term"
    assert desk.ended == [("nack_fatal", "validation")]
    assert desk.meter.calls == [("dlq_dropped", builders.COMPANY)]


async def test_a_repeated_event_makes_the_same_row() -> None:
    desk = Desk(FakePublisher())
    for _ in range(2):
        await desk.letters.park(work(FakeDelivery("v1.chats.upsert")), INVALID, REALTIME)
    assert desk.tables.rows[0] == desk.tables.rows[1]


async def test_a_row_that_cannot_be_stored_now_keeps_the_event() -> None:
    tables = FakeTables(exhausted_troubles=[Unavailable("gone")] * 3)
    desk, delivery = Desk(FakePublisher(), tables), FakeDelivery("v1.chats.upsert")
    await desk.letters.park(work(delivery), INVALID, REALTIME)
    assert delivery.settlements == []
    await until(lambda: desk.ended)
    assert delivery.outcome == "term"
    assert desk.meter.count() == {"stuck": 1, "dlq_dropped": 1}
    assert len(tables.rows) == 1


async def test_a_term_that_is_not_sent_is_not_counted() -> None:
    desk, delivery = Desk(FakePublisher()), FakeDelivery("v1.chats.upsert", failures=1)
    await desk.letters.park(work(delivery), INVALID, REALTIME)
    assert (desk.ended, desk.meter.calls) == ([], [])
    assert len(desk.tables.rows) == 1


async def test_a_payload_that_jsonb_refuses_is_kept_as_text() -> None:
    """PostgreSQL has no number 1e400000 in jsonb, and few nesting levels."""
    tables = FakeTables(exhausted_troubles=[DataError("SQLSTATE 22003", "22003")])
    desk, data = Desk(FakePublisher(), tables), b'{"message_obj":{"n":1e400000}}'
    await desk.letters.park(work(FakeDelivery("v1.chats.upsert", data=data)), INVALID, REALTIME)
    assert json.loads(tables.row.original_payload or "") == data.decode()
    assert "1e400000" in json.loads(tables.row.dlq_payload)


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        (None, "msg-7"),
        ({}, "msg-7"),
        ({"Nats-Msg-Id": ""}, "msg-7"),
        ({"Nats-Msg-Id": "wa-1"}, "wa-1"),
        ({"Nats-Msg-Id": "a\0b\ud800"}, "ab?"),
        ({"Nats-Msg-Id": "caf\u00e9"}, "caf\u00e9"),
    ],
)
def test_the_message_id_is_the_publishers_or_the_sequence_and_always_storable(
    headers: Any, name: str
) -> None:
    assert message_id(headers, 7) == name


async def test_events_that_wait_for_room_among_the_letters_cost_nothing_while_they_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hundreds that each listened to all letters kept the event loop busy for a minute when the stream was back."""
    monkeypatch.setattr(module, "PATIENT", 10)
    desk = Desk(FakePublisher(*[BrokerError("the stream is full")] * 1000))
    giving_up = [
        asyncio.create_task(
            desk.letters.dead_letter(work(FakeDelivery("v1.chats.upsert")), INVALID, REALTIME)
        )
        for _ in range(200)
    ]
    await until(lambda: desk.letters.waiting == 10 and desk.meter.count()["stuck"] == 200)
    listeners: list[int] = [len(task._callbacks or ()) for task in desk.letters._waiting]
    assert max(listeners) <= 2
    await asyncio.gather(*giving_up)
    await until(lambda: not desk.letters.waiting)
    assert len(desk.publisher.letters) == 200


async def test_no_company_waits_for_room_among_the_letters_of_another_that_the_stream_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENT", 5)
    refused = f"v1.dlq.{builders.COMPANY}"

    class Stream(FakePublisher):
        """Denies one company's subject for ever, and does not answer the other one's first letter."""

        async def publish(self, subject: str, body: bytes, headers: Any) -> None:
            if subject == refused:
                raise BrokerError("permissions violation")
            await super().publish(subject, body, headers)

    desk = Desk(Stream(BrokerError("no answer")))
    stuck = [
        asyncio.create_task(
            desk.letters.dead_letter(work(FakeDelivery("v1.chats.upsert")), INVALID, REALTIME)
        )
        for _ in range(10)
    ]
    await until(lambda: desk.meter.count()["stuck"] == 10)
    other = work(FakeDelivery("v1.chats.upsert"))
    other.tenant = Tenant("TehNusa")
    async with asyncio.timeout(30):
        await desk.letters.dead_letter(other, INVALID, REALTIME)
        await until(lambda: desk.publisher.letters)
    assert desk.letters.waiting == 5
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)
    await desk.letters.stop()
