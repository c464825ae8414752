"""The routing agent: every delivery is settled once, by its outcome, and counted once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import pytest

from agents.batch_writer import BatchWriter
from agents.dead_letter_publisher import DeadLetterPublisher
from agents.event_writer import ROWS_A_SLICE, EventWriter
from agents.history_throttle import QUIET, HistoryThrottle
from agents.onboarding import Onboarding
from agents.received_event import ReceivedEvent
from agents.routing import ITEMS_A_SLICE, Routing
from agents.settlement import Settlement
from events.delivery import Batch, TooLarge
from events.errors import BrokerError
from events.subjects import ConsumerType
from tables import errors as db
from tables.mutations import ChatRow, Mutation, WriteRejection
from tests import builders
from tests.builders import AGENT, COMPANY, JID
from tests.unit.fakes import (
    LIMITS,
    TENANT,
    FakeDelivery,
    FakePublisher,
    FakeTables,
    RecordingMeter,
    batch,
    quicken,
    until,
)

CHAT = "v1.chats.upsert"
BAD_INPUT: dict[str, tuple[bytes, str]] = {
    "malformed": (b'{"chat_id":', "unmarshal"),
    "empty": (b"", "unmarshal"),
    "wrong types": (b'{"chat_id":1}', "unmarshal"),
    "no object": (b"[1]", "unmarshal"),
    "raw NUL": (b'{"chat_id":"\x00"}', "unmarshal"),
    "no text": (b"\xff\xfe\x00", "unmarshal"),
    "huge number": (b'{"unread_count":1e999}', "unmarshal"),
    "nesting": (b'{"last_message":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001, "unmarshal"),
    "fields missing": (b"{}", "validation"),
    "wrong company": (builders.body(builders.chat(company_id="Other")), "validation"),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


class Pipeline:
    """The routing agent with all that is around it; `stored` has the batches that onboarding was given."""

    def __init__(
        self,
        tables: FakeTables | None = None,
        publisher: FakePublisher | None = None,
        send: Callable[[Sequence[ReceivedEvent]], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tables = tables or FakeTables()
        self.publisher = publisher or FakePublisher()
        self.meter = RecordingMeter()
        self.stored: list[Sequence[ReceivedEvent]] = []
        self.throttle = HistoryThrottle(clock)
        settlement = Settlement(
            dead_letters=DeadLetterPublisher(
                publisher=self.publisher,
                stream="dlq_stream",
                tables=self.tables.of,
                meter=self.meter,
                health=RecordingMeter(),
            ),
            subject="v1.dlq",
            meter=self.meter,
        )
        self.onboarding = Onboarding(
            tables=self.tables.of,
            writer=BatchWriter("onboarding", RecordingMeter()),
            settlement=settlement,
            meter=self.meter,
            send=send or self._send,
        )
        self.routing = Routing(
            writer=EventWriter(
                tables=self.tables.of,
                writer=BatchWriter("storing", RecordingMeter()),
                throttle=self.throttle,
            ),
            settlement=settlement,
            onboarding=self.onboarding,
            policies=LIMITS,
            throttle=self.throttle,
            meter=self.meter,
        )

    async def _send(self, events: Sequence[ReceivedEvent]) -> None:
        self.stored.append(events)

    async def onboard(self) -> None:
        """Let the onboarding agent handle what it was given."""

        async def channel() -> AsyncIterator[Sequence[ReceivedEvent]]:
            for events in self.stored:
                yield events

        async for _ in self.onboarding.run(channel()):
            pass

    async def run(self, *deliveries: FakeDelivery, consumer_type: ConsumerType = "realtime") -> Batch:
        """Let the agent handle one batch, all the way it goes on its channel."""
        item = batch(*deliveries, consumer_type=consumer_type)

        async def channel() -> AsyncIterator[Batch]:
            yield item
            await until(lambda: self.is_done(item))

        assert [size async for size in self.routing.run(channel())] == [len(deliveries)]
        assert item.released.is_set()
        return item

    def is_done(self, item: Batch) -> bool:
        """Whether the agent has ended with the batch."""
        return item.released.is_set() and not self.routing._writing[item.tenant, item.consumer_type].locked()

    @property
    def settled(self) -> list[tuple[str, str]]:
        """Action and error type of each delivery that was counted."""
        return [(action, error_type) for _, _, _, action, error_type in self.meter.of("settled")]


def refusing(reason: Any, *refs: int) -> Callable[[Sequence[Mutation]], Iterable[WriteRejection]]:
    def judge(changes: Sequence[Mutation]) -> Iterable[WriteRejection]:
        return [WriteRejection(change.ref, reason) for change in changes if change.ref in refs]

    return judge


def rejecting(error: Exception, *refs: int) -> Callable[[Sequence[Mutation]], Iterable[WriteRejection]]:
    def judge(changes: Sequence[Mutation]) -> Iterable[WriteRejection]:
        if {change.ref for change in changes} & set(refs):
            raise error
        return ()

    return judge


# ---------------------------------------------------------------- success


@pytest.mark.rule("OUT-2")
@pytest.mark.parametrize("event_type", builders.BUILDERS)
async def test_a_stored_event_is_acknowledged_and_counted_as_processed(event_type: str) -> None:
    historical = "history" in event_type
    pipeline, delivery = Pipeline(), FakeDelivery(event_type, num_delivered=4)
    await pipeline.run(delivery, consumer_type="historical" if historical else "realtime")
    await pipeline.onboard()
    assert delivery.outcome == "ack"
    assert pipeline.tables.bulks == [historical]
    assert pipeline.meter.of("received", "settled") == [
        ("received", COMPANY, event_type, 1),
        ("settled", COMPANY, event_type, "ack_success", "none"),
    ]


@pytest.mark.rule("CON-7")
async def test_a_batch_is_one_write_in_order() -> None:
    pipeline = Pipeline()
    deliveries = [FakeDelivery(CHAT, builders.chat(chat_id=f"C{n}")) for n in range(20)]
    await pipeline.run(*deliveries)
    [write] = pipeline.tables.writes
    assert [change.chat_id for change in write if isinstance(change, ChatRow)] == [f"C{n}" for n in range(20)]
    assert {delivery.outcome for delivery in deliveries} == {"ack"}


async def test_a_batch_is_decoded_while_the_one_before_it_is_written_and_written_after_it() -> None:
    pipeline = Pipeline(FakeTables(*[db.Unavailable("gone")] * 10**5))
    first, second = batch(FakeDelivery(CHAT)), batch(FakeDelivery(CHAT), FakeDelivery(CHAT))

    async def channel() -> AsyncIterator[Batch]:
        yield first
        await until(first.released.is_set)
        yield second
        await until(lambda: ("received", COMPANY, CHAT, 2) in pipeline.meter.calls)
        assert pipeline.tables.writes == []
        assert not second.released.is_set()
        pipeline.tables.troubles.clear()
        await until(second.released.is_set)
        await until(lambda: len(pipeline.settled) == 3)

    assert [size async for size in pipeline.routing.run(channel())] == [1, 2]
    assert [len(write) for write in pipeline.tables.writes] == [1, 2]


@pytest.mark.parametrize(("deliveries", "items"), [(3, 1), (1, 2 * ITEMS_A_SLICE + 1)])
async def test_others_have_their_turn_while_history_is_decoded(deliveries: int, items: int) -> None:
    pipeline = Pipeline()
    chats = [builders.chat(chat_id=f"C{number}") for number in range(items)]
    history = [FakeDelivery("v1.history.chats", builders.history_chats(*chats)) for _ in range(deliveries)]
    decoding = asyncio.create_task(pipeline.routing._decoded(batch(*history, consumer_type="historical")))
    turns = 0
    while not decoding.done():
        await asyncio.sleep(0)
        turns += 1
    assert [len(event.writes) for event in decoding.result()] == [items] * deliveries
    assert turns > 3


async def test_a_settled_history_batch_is_released() -> None:
    pipeline = Pipeline()
    item = batch(
        FakeDelivery("v1.history.chats"), FakeDelivery("v1.history.messages"), consumer_type="historical"
    )
    events = await pipeline.routing._decoded(item)
    assert all(event.writes for event in events)
    await pipeline.routing._handle(item, events)
    assert not any(event.writes or event.payload.items for event in events)  # type: ignore[union-attr]


async def test_beside_real_time_events_history_is_stored_some_rows_a_transaction() -> None:
    pipeline = Pipeline()
    chats = [builders.chat(chat_id=f"C{number}") for number in range(ROWS_A_SLICE + 1)]
    history = builders.history_chats(*chats)
    await pipeline.run(FakeDelivery("v1.history.chats", history), consumer_type="historical")
    await pipeline.run(*(FakeDelivery(CHAT, chat) for chat in chats))
    await pipeline.run(FakeDelivery("v1.history.chats", history), consumer_type="historical")
    assert [len(write) for write in pipeline.tables.writes] == [len(chats), len(chats), ROWS_A_SLICE, 1]


@pytest.mark.rule("MET-4", "OUT-13")
async def test_an_ack_that_is_not_sent_is_not_counted_as_processed() -> None:
    pipeline, first, second = Pipeline(), FakeDelivery(CHAT, failures=1), FakeDelivery(CHAT)
    await pipeline.run(first, second)
    assert (first.settlements, second.outcome) == ([], "ack")
    assert pipeline.settled == [("ack_success", "none")]


# ---------------------------------------------------------------- what cannot pass


@pytest.mark.rule("OUT-4")
@pytest.mark.parametrize("name", BAD_INPUT)
@pytest.mark.parametrize("delivered", [1, 3])
async def test_bad_input_is_dead_lettered_and_holds_nothing_up(name: str, delivered: int) -> None:
    data, label = BAD_INPUT[name]
    pipeline = Pipeline()
    bad, good = FakeDelivery(CHAT, data=data, num_delivered=delivered), FakeDelivery(CHAT)
    await pipeline.run(bad, good)
    assert (bad.outcome, good.outcome) == ("ack", "ack")
    assert pipeline.publisher.envelope["error_type"] == "fatal"
    assert pipeline.publisher.envelope["retry_count"] == delivered
    assert sorted(pipeline.settled) == [("ack_success", "none"), ("dlq_published_ack_success", label)]
    assert len(pipeline.tables.stored) == 1


@pytest.mark.rule("ROW-6")
async def test_a_row_of_another_company_is_a_validation_error() -> None:
    pipeline, delivery = Pipeline(FakeTables(judge=refusing("company", 0))), FakeDelivery("v1.chats.update")
    await pipeline.run(delivery)
    assert pipeline.settled == [("dlq_published_ack_success", "validation")]


async def test_data_that_the_database_refuses_is_dead_lettered_alone() -> None:
    pipeline = Pipeline(FakeTables(judge=rejecting(db.DataError("SQLSTATE 22003", "22003"), 1)))
    deliveries = [FakeDelivery(CHAT) for _ in range(3)]
    await pipeline.run(*deliveries)
    assert [delivery.outcome for delivery in deliveries] == ["ack"] * 3
    assert pipeline.settled.count(("ack_success", "none")) == 2
    assert ("dlq_published_ack_success", "database") in pipeline.settled
    assert pipeline.publisher.envelope["error"] == "fatal: database: SQLSTATE 22003"


@pytest.mark.rule("OUT-7")
async def test_an_unexpected_exception_while_storing_is_a_panic_dead_letter() -> None:
    pipeline, delivery = (
        Pipeline(FakeTables(judge=rejecting(LookupError("a fault of ours"), 0))),
        FakeDelivery(CHAT),
    )
    await pipeline.run(delivery, FakeDelivery(CHAT))
    assert delivery.outcome == "ack"
    assert sorted(pipeline.settled) == [("ack_success", "none"), ("dlq_published_ack_success", "panic")]
    assert pipeline.publisher.envelope["error_type"] == "fatal"
    assert "a fault of ours" not in pipeline.publisher.envelope["error"]


@pytest.mark.rule("OUT-7")
async def test_a_fault_outside_the_database_is_a_panic_dead_letter_of_all() -> None:
    """Here: a refusal of a change that nobody asked for."""
    pipeline = Pipeline(FakeTables(judge=lambda _: [WriteRejection(99, "not_found")]))
    deliveries = [FakeDelivery(CHAT), FakeDelivery("v1.history.chats")]
    await pipeline.run(*deliveries)
    assert [delivery.outcome for delivery in deliveries] == ["ack", "ack"]
    assert pipeline.settled == [("dlq_published_ack_success", "panic")] * 2
    assert len(pipeline.publisher.letters[1][1]["original_payload"]["chats"]) == 2


# ---------------------------------------------------------------- what may pass


@pytest.mark.parametrize(
    ("consumer_type", "event_type", "delays"),
    [("realtime", CHAT, [1.0, 2.0, 4.0, 8.0]), ("historical", "v1.history.chats", [2.0, 4.0])],
)
@pytest.mark.parametrize(
    ("trouble", "label"),
    [(db.DatabaseError("odd", "XX000"), "database"), (db.QueryTimeout("slow", "57014"), "timeout")],
)
async def test_a_passing_error_is_tried_again_later_then_dead_lettered(
    consumer_type: ConsumerType, event_type: str, delays: list[float], trouble: Exception, label: str
) -> None:
    payload = builders.history_chats(builders.chat()) if consumer_type == "historical" else builders.chat()
    for attempt, delay in enumerate(delays, start=1):
        pipeline, delivery = (
            Pipeline(FakeTables(judge=rejecting(trouble, 0))),
            FakeDelivery(event_type, payload, num_delivered=attempt),
        )
        await pipeline.run(delivery, consumer_type=consumer_type)
        assert delivery.settlements == [("nak", delay)]
        assert pipeline.settled == [("nack_retryable", label)]
        assert pipeline.publisher.letters == []
    pipeline = Pipeline(FakeTables(judge=rejecting(trouble, 0)))
    last = FakeDelivery(event_type, payload, num_delivered=len(delays) + 1)
    await pipeline.run(last, consumer_type=consumer_type)
    assert last.outcome == "ack"
    assert pipeline.settled == [("dlq_published_ack_success", label)]
    assert pipeline.publisher.envelope["retry_count"] == len(delays) + 1
    assert pipeline.publisher.envelope["max_retry"] == len(delays) + 1


@pytest.mark.rule("OUT-11")
async def test_a_missing_row_is_waited_for_and_its_envelope_starts_at_one() -> None:
    pipeline, first = Pipeline(FakeTables(judge=refusing("not_found", 0))), FakeDelivery("v1.messages.update")
    await pipeline.run(first)
    assert first.settlements == [("nak", 1.0)]
    assert pipeline.settled == [("nack_retryable", "not_found")]
    last = FakeDelivery("v1.messages.update", num_delivered=5)
    await pipeline.run(last)
    assert last.outcome == "ack"
    assert pipeline.settled[1:] == [("dlq_published_ack_success", "not_found")]
    assert pipeline.publisher.envelope["retry_count"] == 1
    assert pipeline.publisher.envelope["error"] == "fatal: message to update not found"


@pytest.mark.rule("OUT-12")
@pytest.mark.parametrize("trouble", [db.Unavailable("gone", "57P03"), db.SerializationFailure("x", "40P01")])
async def test_an_outage_fills_neither_the_dead_letters_nor_the_counters(trouble: Exception) -> None:
    pipeline = Pipeline(FakeTables(*[trouble] * 5))
    deliveries = [FakeDelivery(CHAT, num_delivered=5) for _ in range(3)]
    await pipeline.run(*deliveries)
    assert {delivery.outcome for delivery in deliveries} == {"ack"}
    assert pipeline.settled == [("ack_success", "none")] * 3
    assert pipeline.publisher.attempts == 0


async def test_a_nak_that_is_not_sent_leaves_the_others_alone() -> None:
    pipeline = Pipeline(FakeTables(judge=rejecting(db.DatabaseError("odd", "XX000"), 0)))
    first, second = FakeDelivery(CHAT, failures=1), FakeDelivery(CHAT)
    await pipeline.run(first, second)
    assert (first.settlements, second.outcome) == ([], "ack")
    assert pipeline.settled == [("ack_success", "none")]


# ---------------------------------------------------------------- dead letters in trouble


@pytest.mark.rule("MET-4", "MET-5")
async def test_a_failed_publish_is_told_once_and_the_event_fails_once() -> None:
    pipeline = Pipeline(publisher=FakePublisher(*[BrokerError("no answer")] * 3))
    bad, good = FakeDelivery(CHAT, data=b"{}"), FakeDelivery(CHAT)
    await pipeline.run(bad, good)
    assert (bad.settlements, good.outcome) == ([], "ack")
    await until(lambda: bad.settlements)
    assert bad.outcome == "ack"
    assert pipeline.meter.of("stuck") == [("stuck", COMPANY, CHAT, "nak_dlq_publish_fail")]
    assert pipeline.settled == [("ack_success", "none"), ("dlq_published_ack_success", "validation")]


async def test_an_event_too_large_for_an_envelope_ends_in_exhausted_events() -> None:
    pipeline, delivery = Pipeline(publisher=FakePublisher(TooLarge("1 MiB"))), FakeDelivery(CHAT, data=b"{}")
    await pipeline.run(delivery)
    assert delivery.outcome == "term"
    assert pipeline.settled == [("nack_fatal", "validation")]
    assert pipeline.meter.count()["dlq_dropped"] == 1
    assert pipeline.tables.row.original_payload == "{}"


@pytest.mark.rule("OUT-8")
async def test_an_event_of_unknown_subject_ends_in_exhausted_events() -> None:
    pipeline, delivery = Pipeline(), FakeDelivery(subject=f"v1.foo.bar.{COMPANY}", data=b"{}")
    await pipeline.run(delivery)
    assert delivery.outcome == "term"
    assert pipeline.settled == [("nack_fatal", "unknown")]
    assert pipeline.publisher.attempts == 0
    assert pipeline.tables.row.source_subject == delivery.subject


@pytest.mark.rule("OUT-8")
@pytest.mark.parametrize("subject", [f"{CHAT}.Other", f"{CHAT}.{COMPANY.lower()}", f"{CHAT}.*", CHAT])
async def test_an_event_of_another_companys_subject_is_not_stored(subject: str) -> None:
    """Somebody changed our consumer's filter: a payload without company would be taken for ours."""
    pipeline = Pipeline()
    delivery = FakeDelivery(subject=subject, payload=builders.chat(company_id=""))
    await pipeline.run(delivery)
    assert delivery.outcome == "term"
    assert pipeline.settled == [("nack_fatal", "unknown")]
    assert pipeline.tables.writes == []
    assert pipeline.tables.row.source_subject == subject


async def test_an_event_of_unknown_subject_waits_for_a_database_that_is_gone() -> None:
    pipeline = Pipeline(FakeTables(exhausted_troubles=[db.Unavailable("gone")] * 2))
    delivery = FakeDelivery(subject=f"v1.foo.bar.{COMPANY}", data=b"{}")
    await pipeline.run(delivery)
    await until(lambda: delivery.settlements)
    assert delivery.outcome == "term"
    assert pipeline.settled == [("nack_fatal", "unknown")]


@pytest.mark.rule("OUT-10")
@pytest.mark.parametrize(
    ("consumer_type", "event_type", "delivered"),
    [("realtime", CHAT, 11), ("historical", "v1.history.chats", 7)],
)
async def test_an_event_that_seems_to_kill_its_worker_is_dead_lettered_unhandled(
    consumer_type: ConsumerType, event_type: str, delivered: int
) -> None:
    pipeline, delivery = Pipeline(), FakeDelivery(event_type, num_delivered=delivered)
    await pipeline.run(delivery, consumer_type=consumer_type)
    assert delivery.outcome == "ack"
    assert pipeline.tables.writes == []
    assert pipeline.settled == [("dlq_published_ack_success", "unknown")]
    assert pipeline.publisher.envelope["original_payload"] == builders.BUILDERS[event_type]()
    survivor = FakeDelivery(event_type, num_delivered=delivered - 1)
    await Pipeline().run(survivor, consumer_type=consumer_type)
    assert survivor.outcome == "ack"


# ---------------------------------------------------------------- history


@pytest.mark.rule("HIS-1")
async def test_the_good_items_of_a_batch_are_stored_before_one_envelope_with_the_bad_ones() -> None:
    stored_before: list[int] = []

    class Publisher(FakePublisher):
        async def publish(self, *values: Any) -> None:
            stored_before.append(len(pipeline.tables.stored))
            assert delivery.settlements == []
            await super().publish(*values)

    pipeline = Pipeline(FakeTables(judge=rejecting(db.DataError("SQLSTATE 22003", "22003"), 2)), Publisher())
    bad = [{"chat_id": "B"}, builders.chat(unread_count="x"), builders.chat(company_id="Other")]
    items = [builders.chat(chat_id="1"), *bad, builders.chat(chat_id="2"), builders.chat(chat_id="3")]
    delivery = FakeDelivery("v1.history.chats", builders.history_chats(*items))
    await pipeline.run(delivery, consumer_type="historical")
    assert stored_before == [2]
    assert pipeline.publisher.envelope["original_payload"] == {"chats": [*bad, items[5]]}
    text = pipeline.publisher.envelope["error"]
    assert all(f"chats[{index}]: " in text for index in (1, 2, 3, 5))
    assert "jid is required" in text
    assert delivery.outcome == "ack"
    assert pipeline.settled == [("dlq_published_ack_success", "validation")]


@pytest.mark.parametrize("trouble", [BrokerError("full"), TooLarge("1 MiB")])
async def test_bad_items_are_in_the_letter_that_is_published_after_their_batch_is_released(
    trouble: Exception,
) -> None:
    tables = FakeTables(exhausted_troubles=[db.Unavailable("gone")] * 3)
    pipeline = Pipeline(tables, FakePublisher(*[trouble] * 4))
    bad = [{"chat_id": "B"}, builders.chat(unread_count="x")]
    delivery = FakeDelivery("v1.history.chats", builders.history_chats(builders.chat(), *bad))
    item = await pipeline.run(delivery, consumer_type="historical")
    assert item.released.is_set()
    assert delivery.settlements == []
    await until(lambda: pipeline.settled)
    carried = (
        json.loads(pipeline.tables.row.original_payload or "")
        if isinstance(trouble, TooLarge)
        else pipeline.publisher.envelope["original_payload"]
    )
    assert carried == {"chats": bad}


@pytest.mark.rule("HIS-3")
@pytest.mark.parametrize("payload", [{"chats": []}, {}, None])
async def test_a_batch_without_items_is_acknowledged(payload: Any) -> None:
    pipeline, delivery = Pipeline(), FakeDelivery("v1.history.chats", payload)
    await pipeline.run(delivery, consumer_type="historical")
    assert delivery.outcome == "ack"
    assert pipeline.settled == [("ack_success", "none")]


@pytest.mark.rule("HIS-4")
async def test_a_passing_error_of_one_item_brings_the_whole_batch_again() -> None:
    pipeline = Pipeline(FakeTables(judge=rejecting(db.DatabaseError("odd", "XX000"), 1)))
    delivery = FakeDelivery("v1.history.chats", builders.history_chats(builders.chat(), {}, builders.chat()))
    await pipeline.run(delivery, consumer_type="historical")
    assert delivery.settlements == [("nak", 2.0)]
    assert pipeline.settled == [("nack_retryable", "database")]
    assert len(pipeline.tables.stored) == 1


# ---------------------------------------------------------------- onboarding


@pytest.mark.rule("OUT-2")
async def test_a_message_is_acknowledged_only_when_onboarding_is_done_with_it() -> None:
    pipeline = Pipeline()
    message, chat = FakeDelivery("v1.messages.upsert"), FakeDelivery(CHAT)
    await pipeline.run(message, chat)
    assert (message.settlements, chat.outcome) == ([], "ack")
    [[event]] = pipeline.stored
    assert event.incoming is not None
    assert event.incoming[:2] == (AGENT, builders.PHONE)
    assert event.incoming.jid == JID
    await pipeline.onboard()
    assert message.outcome == "ack"
    assert pipeline.settled == [("ack_success", "none")] * 2


@pytest.mark.parametrize(
    ("error", "settlement", "ending"),
    [
        (db.DataError("x"), ("ack", 0.0), ("dlq_published_ack_success", "database")),
        (db.DatabaseError("x"), ("nak", 1.0), ("nack_retryable", "database")),
    ],
)
async def test_a_message_that_cannot_be_onboarded_is_settled_by_its_error(
    error: Exception, settlement: tuple[str, float], ending: tuple[str, str]
) -> None:
    pipeline, message = Pipeline(FakeTables(onboarding_trouble=error)), FakeDelivery("v1.messages.upsert")
    await pipeline.run(message)
    await pipeline.onboard()
    assert message.settlements == [settlement]
    assert pipeline.settled == [ending]


@pytest.mark.parametrize(
    "changes", [{"flow": "OUT"}, {"from_phone": ""}, {"jid": "status@broadcast"}, {"jid": "1@newsletter"}]
)
async def test_other_messages_are_not_onboarded(changes: dict[str, Any]) -> None:
    pipeline, message = Pipeline(), FakeDelivery("v1.messages.upsert", builders.message(**changes))
    await pipeline.run(message)
    assert pipeline.stored == []
    assert message.outcome == "ack"


async def test_a_message_that_is_not_stored_is_not_onboarded() -> None:
    pipeline = Pipeline(FakeTables(judge=rejecting(db.DataError("x", "22003"), 0)))
    await pipeline.run(FakeDelivery("v1.messages.upsert"))
    assert pipeline.stored == []


@pytest.mark.rule("HIS-5")
async def test_history_is_not_onboarded_at_once() -> None:
    pipeline = Pipeline()
    await pipeline.run(FakeDelivery("v1.history.messages"), consumer_type="historical")
    assert pipeline.stored == []


async def test_a_real_time_message_from_the_consumer_of_history_is_onboarded() -> None:
    # An operator can give a consumer further subjects while the worker runs.
    pipeline, message = Pipeline(), FakeDelivery("v1.messages.upsert")
    await pipeline.run(message, consumer_type="historical")
    assert (len(pipeline.stored), message.settlements) == (1, [])
    await pipeline.onboard()
    assert message.outcome == "ack"


async def test_a_fault_of_onboarding_is_a_panic_dead_letter() -> None:
    async def fail(_: Sequence[ReceivedEvent]) -> None:
        raise LookupError("a fault of ours")

    pipeline, message, chat = Pipeline(send=fail), FakeDelivery("v1.messages.upsert"), FakeDelivery(CHAT)
    await pipeline.run(message, chat)
    assert (message.outcome, chat.outcome) == ("ack", "ack")
    assert sorted(pipeline.settled) == [("ack_success", "none"), ("dlq_published_ack_success", "panic")]


# ---------------------------------------------------------------- the loop


@pytest.mark.rule("OUT-7")
async def test_no_exception_leaves_the_agent_and_no_delivery_stays_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = Pipeline()

    async def fail(_: object) -> None:
        raise LookupError("a fault of ours")

    first, second = FakeDelivery(CHAT), FakeDelivery(CHAT)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.routing, "_decoded", fail)
        await pipeline.run(first, FakeDelivery(CHAT, failures=1))
    assert first.settlements == [("nak", 1.0)]
    await pipeline.run(second)
    assert second.outcome == "ack"


async def test_batches_of_different_sources_do_not_wait_for_each_other() -> None:
    pipeline = Pipeline(FakeTables(*[db.Unavailable("gone")] * 20))
    slow = batch(FakeDelivery(CHAT))
    fast = batch(FakeDelivery("v1.history.chats", data=b"{}"), consumer_type="historical")

    async def channel() -> AsyncIterator[Batch]:
        yield slow
        yield fast
        await until(lambda: pipeline.is_done(fast))
        assert not pipeline.is_done(slow)
        await until(lambda: pipeline.is_done(slow))

    assert [size async for size in pipeline.routing.run(channel())] == [1, 1]


@pytest.mark.rule("CON-9")
@pytest.mark.parametrize("event_type", [CHAT, "v1.history.chats"])
async def test_an_event_that_the_server_gave_up_is_dead_lettered_whole(event_type: str) -> None:
    pipeline, payload = Pipeline(), builders.BUILDERS[event_type]()
    delivery = FakeDelivery(event_type, payload, num_delivered=2)
    await pipeline.routing.on_max_deliveries(TENANT, "realtime", delivery)
    assert delivery.outcome == "ack"
    assert pipeline.publisher.envelope["original_payload"] == payload
    assert pipeline.tables.writes == []
    assert pipeline.settled == [("dlq_published_ack_success", "unknown")]


async def test_an_empty_batch_is_released() -> None:
    await Pipeline().run()


@pytest.mark.rule("MET-4")
async def test_every_delivery_counts_as_received_also_the_bad_ones() -> None:
    pipeline = Pipeline()
    await pipeline.run(
        FakeDelivery(CHAT, data=b""), FakeDelivery(CHAT, data=b"{}"), FakeDelivery(CHAT, num_delivered=11)
    )
    assert pipeline.meter.of("received") == [("received", COMPANY, CHAT, 3)]
    assert len(pipeline.settled) == 3


# ---------------------------------------------------------------- accounts


@pytest.mark.rule("MET-6")
@pytest.mark.parametrize(
    ("event_type", "payload", "seen"),
    [
        ("v1.messages.upsert", builders.message(), (AGENT, JID)),
        ("v1.messages.upsert", builders.message(flow="sideways"), (AGENT, JID)),
        ("v1.messages.upsert", builders.message(company_id="Other", jid=None), (AGENT, "")),
        ("v1.chats.update", builders.chat_update(), (AGENT, "")),
        ("v1.connection.update", builders.connection(), (AGENT, "")),
        ("v1.contacts.update", builders.contact_update(phone_number=""), (AGENT, "")),
        ("v1.messages.update", builders.message_update(), None),
        ("v1.messages.upsert", builders.message(agent_id=""), None),
        ("v1.messages.upsert", builders.message(agent_id=5), None),
        ("v1.history.messages", builders.history_messages(agent_id="top"), ("top", "")),
        ("v1.history.messages", builders.history_messages(), (AGENT, "")),
        ("v1.history.chats", builders.history_chats(builders.chat(jid="")), (AGENT, "")),
        ("v1.history.chats", {"chats": []}, None),
        ("v1.history.chats", {"chats": [{}]}, None),
    ],
)
async def test_an_agent_is_counted_once_for_each_delivery_that_names_it(
    event_type: str, payload: Any, seen: tuple[str, str] | None
) -> None:
    pipeline = Pipeline()
    await pipeline.run(FakeDelivery(event_type, payload))
    expected = [] if seen is None else [("agent_seen", COMPANY, event_type, *seen)]
    assert pipeline.meter.of("agent_seen") == expected


@pytest.mark.rule("ROW-1")
async def test_rows_remember_where_their_event_came_from() -> None:
    pipeline = Pipeline()
    delivery = FakeDelivery(CHAT, headers={"Nats-Msg-Id": "wa-1"})
    [event] = await pipeline.routing._decoded(batch(delivery))
    assert event.tenant == TENANT
    assert '"message_id":"wa-1"' in event.stamp.metadata
    assert f'"message_subject":"{CHAT}.{COMPANY}"' in event.stamp.metadata


async def test_imports_do_not_hold_back_for_real_time_events_that_wait_for_an_outage_of_their_tables() -> (
    None
):
    """It may be one company's outage, and the import another one's."""
    clock = 1000.0
    pipeline = Pipeline(
        FakeTables(*[db.Unavailable("permission denied", "42501")] * 10**5), clock=lambda: clock
    )
    item = batch(FakeDelivery())

    async def channel() -> AsyncIterator[Batch]:
        nonlocal clock
        yield item
        await until(lambda: len(pipeline.tables.troubles) < 10**5)
        while not pipeline.throttle.idle:
            await asyncio.sleep(0.001)
            clock += 2 * QUIET

    async with asyncio.timeout(30):
        assert [size async for size in pipeline.routing.run(channel())] == [1]
    assert not pipeline.is_done(item)
    await asyncio.sleep(0)
    clock += 2 * QUIET
    assert pipeline.throttle.idle


@pytest.mark.parametrize(
    ("event_type", "entity"),
    [("v1.messages.update", "message"), ("v1.chats.update", "chat"), ("v1.contacts.update", "contact")],
)
async def test_the_error_of_an_update_names_the_row_that_is_missing(event_type: str, entity: str) -> None:
    pipeline = Pipeline(FakeTables(judge=refusing("not_found", 0)))
    await pipeline.run(FakeDelivery(event_type, num_delivered=5))
    assert pipeline.publisher.envelope["error"] == f"fatal: {entity} to update not found"
