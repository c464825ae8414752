"""Settling failed events without losing them: dead letters, and rows of `exhausted_events`."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
from typing import Any

import pytest

from agents import dead_letter_publisher as module
from agents.dead_letter_publisher import DeadLetterPublisher
from agents.decode import decode, receive
from agents.received_event import ReceivedEvent
from agents.settlement import Settlement
from events import envelope, errors
from events.delivery import TooLarge, message_id
from events.errors import BrokerError, EventError
from events.subjects import Tenant
from tables.errors import Unavailable
from tests import builders
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

REALTIME = LIMITS["realtime"]
INVALID = errors.Invalid("validation failed: jid is required")
UNKNOWN = errors.UnknownSubject()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


class Dlq:
    """A settlement with all that is around it."""

    def __init__(self, publisher: FakePublisher, tables: FakeTables | None = None) -> None:
        self.publisher = publisher
        self.tables = tables or FakeTables()
        self.meter = RecordingMeter()
        self.health = RecordingMeter()
        self.letters = DeadLetterPublisher(
            publisher=publisher,
            stream="dlq_stream",
            tables=self.tables.of,
            meter=self.meter,
            health=self.health,
        )
        self.settlement = Settlement(dead_letters=self.letters, subject="v1.dlq", meter=self.meter)

    async def fail(self, event: ReceivedEvent, error: EventError = INVALID) -> None:
        """Settle an event that failed."""
        event.error = error
        await self.settlement.settle([event])

    @property
    def settled(self) -> list[tuple[str, str]]:
        """Action and error type of each delivery that was counted."""
        return [(action, error_type) for _, _, _, action, error_type in self.meter.of("settled")]

    @property
    def counted(self) -> list[tuple[Any, ...]]:
        """What else was counted."""
        return [call for call in self.meter.calls if call[0] != "settled"]


def received(delivery: FakeDelivery, tenant: Tenant = TENANT) -> ReceivedEvent:
    """The decoded event of a delivery."""
    event = receive(tenant, delivery, REALTIME, "2026-11-24T07:15:30Z")
    decode(event, delivery.data, itertools.count())
    return event


@pytest.mark.rule("OUT-1")
async def test_an_event_is_acknowledged_once_its_envelope_is_stored() -> None:
    dlq, delivery = Dlq(FakePublisher()), FakeDelivery("v1.chats.upsert", {"chat_id": "C"}, num_delivered=3)
    await dlq.fail(received(delivery), INVALID)
    [(subject, letter, headers)] = dlq.publisher.letters
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
    assert dlq.settled == [("dlq_published_ack_success", "validation")]
    assert dlq.counted == []


@pytest.mark.parametrize("num_delivered", [1, 5, 10])
async def test_a_stored_event_is_acknowledged_at_any_delivery(num_delivered: int) -> None:
    dlq, delivery = Dlq(FakePublisher()), FakeDelivery("v1.chats.upsert", num_delivered=num_delivered)
    await dlq.settlement.settle([received(delivery)])
    assert (delivery.outcome, dlq.settled) == ("ack", [("ack_success", "none")])


@pytest.mark.parametrize(
    ("error", "retry_count", "error_type"),
    [(errors.NotFound("x"), 1, "fatal"), (errors.DatabaseError("x"), 5, "retryable"), (INVALID, 5, "fatal")],
)
async def test_the_envelope_says_how_often_it_was_tried(
    error: EventError, retry_count: int, error_type: str
) -> None:
    dlq = Dlq(FakePublisher())
    await dlq.fail(received(FakeDelivery("v1.chats.upsert", num_delivered=5)), error)
    assert dlq.publisher.envelope["retry_count"] == retry_count
    assert dlq.publisher.envelope["error_type"] == error_type


@pytest.mark.rule("DLQ-1")
@pytest.mark.parametrize(
    ("data", "payload", "encoding"),
    [(b"{oops", "{oops", None), (b"\xff\x00", "/wA=", "base64"), (b"", "", None)],
)
async def test_a_body_that_is_no_json_reaches_the_envelope(data: bytes, payload: Any, encoding: Any) -> None:
    dlq = Dlq(FakePublisher())
    await dlq.fail(received(FakeDelivery("v1.chats.upsert", data=data)), errors.Malformed())
    assert dlq.publisher.envelope["original_payload"] == payload
    assert dlq.publisher.envelope.get("original_payload_encoding") == encoding


@pytest.mark.rule("OUT-5")
async def test_a_failed_publish_keeps_the_event_and_ends_it_once_when_it_works_again() -> None:
    dlq, delivery = Dlq(FakePublisher(*[BrokerError("no answer")] * 4)), FakeDelivery("v1.chats.upsert")
    await dlq.fail(received(delivery), INVALID)
    assert delivery.settlements == []
    assert dlq.settled == []
    await until(lambda: dlq.settled)
    assert delivery.outcome == "ack"
    assert dlq.settled == [("dlq_published_ack_success", "validation")]
    assert dlq.counted == [("stuck", TENANT.company, "v1.chats.upsert", "nak_dlq_publish_fail")]
    assert len(dlq.publisher.letters) == 1


@pytest.mark.rule("OUT-6")
async def test_an_envelope_that_cannot_be_built_is_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    dlq, delivery = Dlq(FakePublisher()), FakeDelivery("v1.chats.upsert")

    def fail(_: object) -> bytes:
        monkeypatch.undo()
        raise LookupError("a fault of ours")

    monkeypatch.setattr(envelope, "encode", fail)
    await dlq.fail(received(delivery), INVALID)
    assert dlq.counted == [("stuck", TENANT.company, "v1.chats.upsert", "nak_dlq_marshal_fail")]
    await until(lambda: dlq.settled)
    assert delivery.outcome == "ack"


def history(delivery: FakeDelivery) -> ReceivedEvent:
    """A history batch: its second chat is bad."""
    found = received(delivery)
    found.conclude({})
    return found


def bad_item() -> FakeDelivery:
    return FakeDelivery(
        "v1.history.chats", builders.history_chats(builders.chat(chat_id="good"), {"chat_id": "bad"})
    )


@pytest.mark.rule("DLQ-4")
@pytest.mark.parametrize("release", ["release", "release_items"])
async def test_a_letter_carries_its_items_however_late_it_is_published(release: str) -> None:
    dlq, batch = Dlq(FakePublisher(*[BrokerError("full")] * 3)), history(bad_item())
    await dlq.fail(batch)
    if release == "release_items":
        batch.release_items(100)
    else:
        batch.release()
    assert not batch.writes
    await until(lambda: dlq.settled)
    assert dlq.publisher.envelope["original_payload"] == {"chats": [{"chat_id": "bad"}]}


@pytest.mark.parametrize("error", [INVALID, UNKNOWN])
async def test_a_row_carries_its_items_however_late_it_is_stored(error: EventError) -> None:
    tables = FakeTables(exhausted_troubles=[Unavailable("gone")] * 3)
    dlq, batch = Dlq(FakePublisher(*[TooLarge("1 MiB")] * 4), tables), history(bad_item())
    await dlq.fail(batch, error)
    batch.release_items(100)
    await until(lambda: dlq.settled)
    assert json.loads(dlq.tables.row.original_payload or "") == {"chats": [{"chat_id": "bad"}]}
    assert json.loads(dlq.tables.row.dlq_payload)["original_payload"] == {"chats": [{"chat_id": "bad"}]}


@pytest.mark.rule("DLQ-2")
async def test_every_try_publishes_the_same_bytes_under_the_same_id() -> None:
    """So a letter whose confirmation was lost is a duplicate for the stream."""
    tries: list[tuple[object, ...]] = []

    class Publisher(FakePublisher):
        async def publish(self, *values: Any) -> None:
            tries.append(values)
            await super().publish(*values)

    dlq, batch = Dlq(Publisher(*[BrokerError("no answer")] * 3)), history(bad_item())
    await dlq.fail(batch)
    batch.release_items(100)
    await until(lambda: dlq.settled)
    assert len(tries) == 4
    assert all(values == tries[0] for values in tries)


@pytest.mark.rule("DLQ-4")
async def test_an_event_is_released_as_soon_as_its_letter_is_fixed() -> None:
    dlq, delivery = Dlq(FakePublisher(*[BrokerError("full")] * 3)), FakeDelivery("v1.chats.upsert")
    event = received(delivery)
    assert event.writes
    await dlq.fail(event)
    assert (event.payload, event.writes) == (None, [])
    await until(lambda: dlq.settled)
    assert dlq.publisher.envelope["original_payload"] == json.loads(delivery.data)


async def test_a_letter_that_cannot_be_made_of_the_bad_items_carries_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> bytes:
        raise LookupError("a fault of ours")

    monkeypatch.setattr("agents.dead_letter.remaining_payload", fail)
    dlq, delivery = Dlq(FakePublisher()), bad_item()
    await dlq.fail(history(delivery))
    assert dlq.publisher.envelope["original_payload"] == json.loads(delivery.data)
    assert delivery.outcome == "ack"


async def test_an_event_of_which_no_letter_can_be_made_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> bytes:
        raise LookupError("a fault of ours")

    monkeypatch.setattr(envelope, "embed", fail)
    dlq, delivery = Dlq(FakePublisher()), FakeDelivery("v1.chats.upsert")
    await dlq.fail(received(delivery), INVALID)
    assert delivery.settlements == [("nak", REALTIME.maximum)]
    assert dlq.counted == [("stuck", TENANT.company, "v1.chats.upsert", "nak_dlq_marshal_fail")]


@pytest.mark.rule("DLQ-4")
async def test_health_is_told_while_letters_of_a_company_wait_and_why() -> None:
    waiter, stuck = f"dead letters {builders.COMPANY}", "dlq_stream takes nothing on v1.dlq.KopiNusa01: "
    dlq = Dlq(FakePublisher(BrokerError("full"), BrokerError("full"), BrokerError("no answer")))
    for sequence in (7, 8):
        await dlq.fail(received(FakeDelivery("v1.chats.upsert", sequence=sequence)), INVALID)
    await until(lambda: len(dlq.settled) == 2)
    assert dlq.health.calls == [
        ("paused", waiter, f"{stuck}full"),
        ("paused", waiter, f"{stuck}full"),
        ("paused", waiter, f"{stuck}no answer"),
        ("resumed", waiter),
    ]


async def test_health_is_told_why_a_row_cannot_be_stored() -> None:
    tables = FakeTables(exhausted_troubles=[Unavailable("the disk is full")])
    dlq = Dlq(FakePublisher(), tables)
    await dlq.fail(received(FakeDelivery("v1.chats.upsert")), UNKNOWN)
    await until(lambda: dlq.settled)
    waiter = f"dead letters {builders.COMPANY}"
    assert dlq.health.calls == [
        ("paused", waiter, "exhausted_events takes no row: the disk is full"),
        ("resumed", waiter),
    ]


async def test_letters_of_many_bytes_hold_routing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    data = builders.body(builders.chat())
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 2 * len(data) + 1)
    dlq = Dlq(FakePublisher(*[BrokerError("no answer")] * 3))
    deliveries = [FakeDelivery("v1.chats.upsert", data=data, sequence=n) for n in range(3)]
    for delivery in deliveries:
        await dlq.fail(received(delivery), INVALID)
    assert any(delivery.settlements for delivery in deliveries)
    await until(lambda: len(dlq.settled) == 3)


async def test_a_letter_larger_than_all_that_may_wait_waits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 1)
    dlq = Dlq(FakePublisher(*[BrokerError("no answer")] * 2))
    await dlq.fail(received(FakeDelivery("v1.chats.upsert")), INVALID)
    assert dlq.letters.waiting == 1
    await until(lambda: dlq.settled)


async def test_many_waiting_events_hold_routing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    dlq = Dlq(FakePublisher(*[BrokerError("no answer")] * 3))
    deliveries = [FakeDelivery("v1.chats.upsert", sequence=n) for n in range(3)]
    for delivery in deliveries:
        await dlq.fail(received(delivery), INVALID)
    assert any(delivery.settlements for delivery in deliveries)
    await until(lambda: len(dlq.settled) == 3)


@pytest.mark.rule("OUT-5")
async def test_a_stop_leaves_what_waits_unsettled() -> None:
    dlq, delivery = (
        Dlq(FakePublisher(*[BrokerError("no answer")] * 10_000)),
        FakeDelivery("v1.chats.upsert"),
    )
    await dlq.fail(received(delivery), INVALID)
    await until(lambda: dlq.publisher.attempts > 2)
    await dlq.settlement.stop()
    attempts = dlq.publisher.attempts
    await asyncio.sleep(0.02)
    assert dlq.publisher.attempts == attempts
    assert delivery.settlements == []


@pytest.mark.rule("OUT-13")
async def test_an_ack_that_is_not_sent_is_neither_counted_nor_published_again() -> None:
    """The event comes again; its second envelope is a duplicate."""
    dlq, delivery = Dlq(FakePublisher()), FakeDelivery("v1.chats.upsert", failures=1)
    await dlq.fail(received(delivery), INVALID)
    assert (dlq.settled, dlq.counted) == ([], [])
    assert dlq.publisher.attempts == 1


@pytest.mark.rule("OUT-9")
async def test_an_event_too_large_for_an_envelope_goes_into_exhausted_events() -> None:
    dlq, delivery = (
        Dlq(FakePublisher(TooLarge("1 MiB"))),
        FakeDelivery("v1.chats.upsert", {"a": 1}, num_delivered=2),
    )
    await dlq.fail(received(delivery), INVALID)
    row = dlq.tables.row
    assert (row.company_id, row.source_subject) == (builders.COMPANY, f"v1.chats.upsert.{builders.COMPANY}")
    assert row.last_error == "fatal: validation failed: jid is required"
    assert row.retry_count == 2
    assert row.event_timestamp == datetime.datetime.fromtimestamp(STORED_NS / 1e9, datetime.UTC)
    assert json.loads(row.original_payload or "") == {"a": 1}
    assert json.loads(row.dlq_payload)["original_payload"] == {"a": 1}
    assert json.loads(row.dlq_payload)["ts"].endswith("Z")
    assert delivery.outcome == "term"
    assert dlq.settled == [("nack_fatal", "validation")]
    assert dlq.counted == [("dlq_dropped", builders.COMPANY)]


async def test_a_repeated_event_makes_the_same_row() -> None:
    dlq = Dlq(FakePublisher())
    for _ in range(2):
        await dlq.fail(received(FakeDelivery("v1.chats.upsert")), UNKNOWN)
    assert dlq.tables.rows[0] == dlq.tables.rows[1]


async def test_a_row_that_cannot_be_stored_now_keeps_the_event() -> None:
    tables = FakeTables(exhausted_troubles=[Unavailable("gone")] * 3)
    dlq, delivery = Dlq(FakePublisher(), tables), FakeDelivery("v1.chats.upsert")
    await dlq.fail(received(delivery), UNKNOWN)
    assert delivery.settlements == []
    await until(lambda: dlq.settled)
    assert delivery.outcome == "term"
    assert dlq.meter.count() == {"stuck": 1, "dlq_dropped": 1, "settled": 1}
    assert len(tables.rows) == 1


async def test_a_term_that_is_not_sent_is_not_counted() -> None:
    dlq, delivery = Dlq(FakePublisher()), FakeDelivery("v1.chats.upsert", failures=1)
    await dlq.fail(received(delivery), UNKNOWN)
    assert (dlq.settled, dlq.counted) == ([], [])
    assert len(dlq.tables.rows) == 1


@pytest.mark.rule("DLQ-2")
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
    assert message_id(FakeDelivery(headers=headers)) == name


async def test_events_that_wait_for_room_among_the_letters_cost_nothing_while_they_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hundreds that each listened to all letters kept the event loop busy for a minute when the stream was back."""
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    dlq = Dlq(FakePublisher(*[BrokerError("the stream is full")] * 1000))
    giving_up = [asyncio.create_task(dlq.fail(received(FakeDelivery("v1.chats.upsert")))) for _ in range(200)]
    await until(lambda: dlq.letters.waiting == 10 and dlq.meter.count()["stuck"] == 200)
    listeners: list[int] = [len(task._callbacks or ()) for task in dlq.letters._waiting]
    assert max(listeners) <= 2
    await asyncio.gather(*giving_up)
    await until(lambda: not dlq.letters.waiting)
    assert len(dlq.publisher.letters) == 200


async def test_no_company_waits_for_room_among_the_letters_of_another_that_the_stream_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    refused = f"v1.dlq.{builders.COMPANY}"

    class Stream(FakePublisher):
        """Denies one company's subject for ever, and does not answer the other one's first letter."""

        async def publish(self, subject: str, body: bytes, headers: Any) -> None:
            if subject == refused:
                raise BrokerError("permissions violation")
            await super().publish(subject, body, headers)

    dlq = Dlq(Stream(BrokerError("no answer")))
    stuck = [asyncio.create_task(dlq.fail(received(FakeDelivery("v1.chats.upsert")))) for _ in range(10)]
    await until(lambda: dlq.meter.count()["stuck"] == 10)
    other = received(FakeDelivery("v1.chats.upsert"))
    other.tenant = Tenant("TehNusa")
    async with asyncio.timeout(30):
        await dlq.fail(other)
        await until(lambda: dlq.publisher.letters)
    assert dlq.letters.waiting == 5
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)
    await dlq.settlement.stop()


async def test_an_exception_after_a_dead_letter_is_safe_brings_the_event_again() -> None:
    dlq, delivery = Dlq(FakePublisher(BrokerError("no answer"))), FakeDelivery("v1.chats.upsert")

    async def fail() -> None:
        raise LookupError("a fault of ours")

    delivery.ack = fail  # type: ignore[method-assign]
    await dlq.fail(received(delivery))
    await until(lambda: delivery.settlements)
    assert delivery.settlements == [("nak", REALTIME.base)]


@pytest.mark.parametrize("attempt", [1, 5, 100])
async def test_an_event_of_unknown_subject_is_parked_and_never_retried(attempt: int) -> None:
    dlq = Dlq(FakePublisher())
    delivery = FakeDelivery(subject="v1.foo.bar", data=b"{}", num_delivered=attempt)
    await dlq.fail(received(delivery), UNKNOWN)
    assert (delivery.outcome, dlq.publisher.attempts) == ("term", 0)
    assert dlq.settled == [("nack_fatal", "unknown")]


async def test_an_event_whose_settlement_fails_unexpectedly_is_naked_and_holds_no_other_up() -> None:
    dlq, names = Dlq(FakePublisher()), ("stored", "failed", "well stored", "well failed")
    deliveries = {name: FakeDelivery("v1.chats.upsert", sequence=n) for n, name in enumerate(names)}

    async def fail() -> None:
        raise LookupError("a fault of ours")

    for name in ("stored", "failed"):
        deliveries[name].ack = fail  # type: ignore[method-assign]
    events = [received(delivery) for delivery in deliveries.values()]
    events[1].error = events[3].error = INVALID
    await dlq.settlement.settle(events)
    assert [delivery.outcome for delivery in deliveries.values()] == ["nak", "nak", "ack", "ack"]
    # Not at once: a lasting fault would bring it again and again, as fast as it can be handled.
    assert deliveries["stored"].settlements == deliveries["failed"].settlements == [("nak", REALTIME.base)]
    assert dlq.settled == [("ack_success", "none"), ("dlq_published_ack_success", "validation")]


async def test_the_log_says_of_which_event_a_dead_letter_failed_unexpectedly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dlq = Dlq(FakePublisher(LookupError("a fault of ours")))
    await dlq.fail(received(FakeDelivery("v1.chats.upsert")))
    [record] = [record for record in caplog.records if record.message.startswith("unexpected exception")]
    assert (vars(record)["company_id"], vars(record)["stream_sequence"]) == (builders.COMPANY, 7)
    await until(lambda: dlq.settled)
