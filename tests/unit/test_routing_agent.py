"""The routing agent: every delivery is settled once, as contract 3.9 says, and counted once (9.3)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import pytest

from agents.batch_writer import BatchWriter
from agents.dead_letter_publisher import DeadLetterPublisher
from agents.history_throttle import QUIET, HistoryThrottle
from agents.onboarding import OnboardingJob
from agents.routing import ITEMS_A_TURN, ROWS_A_TURN, Routing
from events import errors
from events.delivery import Batch, ConsumerType, TooLarge
from events.errors import BrokerError, EventError
from tables import errors as db
from tables.mutations import ChatRow, Mutation, WriteRejection
from testkit import builders
from testkit.builders import AGENT, COMPANY, JID
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


class Office:
    """The routing agent with all that is around it."""

    def __init__(
        self,
        tables: FakeTables | None = None,
        publisher: FakePublisher | None = None,
        onboard: Callable[[OnboardingJob], Any] | None = None,
    ) -> None:
        self.tables = tables or FakeTables()
        self.publisher = publisher or FakePublisher()
        self.meter = RecordingMeter()
        self.jobs: list[OnboardingJob] = []
        self.routing = Routing(
            tables=self.tables.of,
            writer=BatchWriter("storing", RecordingMeter()),
            dead_letters=DeadLetterPublisher(
                publisher=self.publisher,
                stream="dlq_stream",
                subject="v1.dlq",
                tables=self.tables.of,
                meter=self.meter,
                health=RecordingMeter(),
                ended=lambda *ending: self.routing.ended(*ending),
            ),
            onboard=onboard or self._onboard,
            limits=LIMITS,
            meter=self.meter,
        )

    async def _onboard(self, job: OnboardingJob) -> None:
        self.jobs.append(job)

    async def run(self, *deliveries: FakeDelivery, role: ConsumerType = "realtime") -> Batch:
        """Let the agent handle one batch, all the way it goes on its channel."""
        item = batch(*deliveries, role=role)

        async def channel() -> AsyncIterator[Batch]:
            yield item
            await until(item.released.is_set)

        assert [size async for size in self.routing.run(channel())] == [len(deliveries)]
        assert item.released.is_set()
        return item

    @property
    def settled(self) -> list[tuple[str, str]]:
        """Action and error type of each delivery that was counted."""
        return [(action, error_type) for _, _, _, action, error_type in self.meter.of("settled")]


def refusing(reason: Any, *refs: int) -> Callable[[Sequence[Mutation]], Iterable[WriteRejection]]:
    def judge(changes: Sequence[Mutation]) -> Iterable[WriteRejection]:
        return [WriteRejection(change.ref, reason) for change in changes if change.ref in refs]

    return judge


def guilty(error: Exception, *refs: int) -> Callable[[Sequence[Mutation]], Iterable[WriteRejection]]:
    def judge(changes: Sequence[Mutation]) -> Iterable[WriteRejection]:
        if {change.ref for change in changes} & set(refs):
            raise error
        return ()

    return judge


# ---------------------------------------------------------------- success


@pytest.mark.parametrize("event_type", builders.BUILDERS)
async def test_a_stored_event_is_acknowledged_and_counted_as_processed(event_type: str) -> None:
    historical = "history" in event_type
    office, delivery = Office(), FakeDelivery(event_type, num_delivered=4)
    await office.run(delivery, role="historical" if historical else "realtime")
    for job in office.jobs:
        await job.done([None])
    assert delivery.outcome == "ack"
    assert office.tables.bulks == [historical]
    assert office.meter.of("received", "settled") == [
        ("received", COMPANY, event_type, 1),
        ("settled", COMPANY, event_type, "ack_success", "none"),
    ]


async def test_a_batch_is_one_write_in_order() -> None:
    office = Office()
    deliveries = [FakeDelivery(CHAT, builders.chat(chat_id=f"C{n}")) for n in range(20)]
    await office.run(*deliveries)
    [write] = office.tables.writes
    assert [change.chat_id for change in write if isinstance(change, ChatRow)] == [f"C{n}" for n in range(20)]
    assert {delivery.outcome for delivery in deliveries} == {"ack"}


async def test_what_the_source_prepared_is_not_prepared_again() -> None:
    office, delivery = Office(), FakeDelivery(CHAT)
    item = batch(delivery)
    item.prepared = await office.routing.prepare(item)
    await office.routing.handle(item)
    assert office.meter.count()["received"] == 1
    assert delivery.outcome == "ack"


@pytest.mark.parametrize(("deliveries", "items"), [(3, 1), (1, 2 * ITEMS_A_TURN + 1)])
async def test_others_have_their_turn_while_history_is_decoded(deliveries: int, items: int) -> None:
    office = Office()
    chats = [builders.chat(chat_id=f"C{number}") for number in range(items)]
    history = [FakeDelivery("v1.history.chats", builders.history_chats(*chats)) for _ in range(deliveries)]
    preparing = asyncio.create_task(office.routing.prepare(batch(*history, role="historical")))
    turns = 0
    while not preparing.done():
        await asyncio.sleep(0)
        turns += 1
    assert [len(work.units) for work in preparing.result()] == [items] * deliveries
    assert turns > 3


async def test_a_settled_history_batch_is_forgotten() -> None:
    office = Office()
    item = batch(FakeDelivery("v1.history.chats"), FakeDelivery("v1.history.messages"), role="historical")
    works = item.prepared = await office.routing.prepare(item)
    assert all(work.units for work in works)
    await office.routing.handle(item)
    assert not any(work.units or work.event.items for work in works)  # type: ignore[union-attr]


async def test_beside_real_time_events_history_is_stored_some_rows_a_transaction() -> None:
    office = Office()
    chats = [builders.chat(chat_id=f"C{number}") for number in range(ROWS_A_TURN + 1)]
    history = builders.history_chats(*chats)
    await office.run(FakeDelivery("v1.history.chats", history), role="historical")
    await office.run(*(FakeDelivery(CHAT, chat) for chat in chats))
    await office.run(FakeDelivery("v1.history.chats", history), role="historical")
    assert [len(write) for write in office.tables.writes] == [len(chats), len(chats), ROWS_A_TURN, 1]


async def test_an_ack_that_is_not_sent_is_not_counted_as_processed() -> None:
    office, first, second = Office(), FakeDelivery(CHAT, failures=1), FakeDelivery(CHAT)
    await office.run(first, second)
    assert (first.settlements, second.outcome) == ([], "ack")
    assert office.settled == [("ack_success", "none")]


# ---------------------------------------------------------------- what cannot pass


@pytest.mark.parametrize("name", BAD_INPUT)
@pytest.mark.parametrize("delivered", [1, 3])
async def test_bad_input_is_dead_lettered_and_holds_nothing_up(name: str, delivered: int) -> None:
    data, label = BAD_INPUT[name]
    office = Office()
    bad, good = FakeDelivery(CHAT, data=data, num_delivered=delivered), FakeDelivery(CHAT)
    await office.run(bad, good)
    assert (bad.outcome, good.outcome) == ("ack", "ack")
    assert office.publisher.envelope["error_type"] == "fatal"
    assert office.publisher.envelope["retry_count"] == delivered
    assert sorted(office.settled) == [("ack_success", "none"), ("dlq_published_ack_success", label)]
    assert len(office.tables.stored) == 1


async def test_a_row_of_another_company_is_a_validation_error() -> None:
    office, delivery = Office(FakeTables(judge=refusing("company", 0))), FakeDelivery("v1.chats.update")
    await office.run(delivery)
    assert office.settled == [("dlq_published_ack_success", "validation")]


async def test_data_that_the_database_refuses_is_dead_lettered_alone() -> None:
    office = Office(FakeTables(judge=guilty(db.DataError("SQLSTATE 22003", "22003"), 1)))
    deliveries = [FakeDelivery(CHAT) for _ in range(3)]
    await office.run(*deliveries)
    assert [delivery.outcome for delivery in deliveries] == ["ack"] * 3
    assert office.settled.count(("ack_success", "none")) == 2
    assert ("dlq_published_ack_success", "database") in office.settled
    assert office.publisher.envelope["error"] == "fatal: database: SQLSTATE 22003"


async def test_an_unexpected_exception_while_storing_is_a_panic_dead_letter() -> None:
    office, delivery = Office(FakeTables(judge=guilty(LookupError("a fault of ours"), 0))), FakeDelivery(CHAT)
    await office.run(delivery, FakeDelivery(CHAT))
    assert delivery.outcome == "ack"
    assert sorted(office.settled) == [("ack_success", "none"), ("dlq_published_ack_success", "panic")]
    assert office.publisher.envelope["error_type"] == "fatal"
    assert "a fault of ours" not in office.publisher.envelope["error"]


async def test_a_fault_outside_the_database_is_a_panic_dead_letter_of_all() -> None:
    """Here: a refusal of a change that nobody asked for."""
    office = Office(FakeTables(judge=lambda _: [WriteRejection(99, "not_found")]))
    deliveries = [FakeDelivery(CHAT), FakeDelivery("v1.history.chats")]
    await office.run(*deliveries)
    assert [delivery.outcome for delivery in deliveries] == ["ack", "ack"]
    assert office.settled == [("dlq_published_ack_success", "panic")] * 2
    assert len(office.publisher.letters[1][1]["original_payload"]["chats"]) == 2


# ---------------------------------------------------------------- what may pass


@pytest.mark.parametrize(
    ("role", "event_type", "delays"),
    [("realtime", CHAT, [1.0, 2.0, 4.0, 8.0]), ("historical", "v1.history.chats", [2.0, 4.0])],
)
@pytest.mark.parametrize(
    ("trouble", "label"),
    [(db.DatabaseError("odd", "XX000"), "database"), (db.QueryTimeout("slow", "57014"), "timeout")],
)
async def test_a_passing_error_is_tried_again_later_then_dead_lettered(
    role: ConsumerType, event_type: str, delays: list[float], trouble: Exception, label: str
) -> None:
    payload = builders.history_chats(builders.chat()) if role == "historical" else builders.chat()
    for attempt, delay in enumerate(delays, start=1):
        office, delivery = (
            Office(FakeTables(judge=guilty(trouble, 0))),
            FakeDelivery(event_type, payload, num_delivered=attempt),
        )
        await office.run(delivery, role=role)
        assert delivery.settlements == [("nak", delay)]
        assert office.settled == [("nack_retryable", label)]
        assert office.publisher.letters == []
    office = Office(FakeTables(judge=guilty(trouble, 0)))
    last = FakeDelivery(event_type, payload, num_delivered=len(delays) + 1)
    await office.run(last, role=role)
    assert last.outcome == "ack"
    assert office.settled == [("dlq_published_ack_success", label)]
    assert office.publisher.envelope["retry_count"] == len(delays) + 1
    assert office.publisher.envelope["max_retry"] == len(delays) + 1


async def test_a_missing_row_is_waited_for_and_its_envelope_starts_at_one() -> None:
    office, first = Office(FakeTables(judge=refusing("not_found", 0))), FakeDelivery("v1.messages.update")
    await office.run(first)
    assert first.settlements == [("nak", 1.0)]
    assert office.settled == [("nack_retryable", "not_found")]
    last = FakeDelivery("v1.messages.update", num_delivered=5)
    await office.run(last)
    assert last.outcome == "ack"
    assert office.settled[1:] == [("dlq_published_ack_success", "not_found")]
    assert office.publisher.envelope["retry_count"] == 1
    assert office.publisher.envelope["error"] == "fatal: message to update not found"


@pytest.mark.parametrize("trouble", [db.Unavailable("gone", "57P03"), db.SerializationFailure("x", "40P01")])
async def test_an_outage_fills_neither_the_dead_letters_nor_the_counters(trouble: Exception) -> None:
    office = Office(FakeTables(*[trouble] * 5))
    deliveries = [FakeDelivery(CHAT, num_delivered=5) for _ in range(3)]
    await office.run(*deliveries)
    assert {delivery.outcome for delivery in deliveries} == {"ack"}
    assert office.settled == [("ack_success", "none")] * 3
    assert office.publisher.attempts == 0


async def test_a_nak_that_is_not_sent_leaves_the_others_alone() -> None:
    office = Office(FakeTables(judge=guilty(db.DatabaseError("odd", "XX000"), 0)))
    first, second = FakeDelivery(CHAT, failures=1), FakeDelivery(CHAT)
    await office.run(first, second)
    assert (first.settlements, second.outcome) == ([], "ack")
    assert office.settled == [("ack_success", "none")]


# ---------------------------------------------------------------- dead letters in trouble


async def test_a_failed_publish_is_told_once_and_the_event_fails_once() -> None:
    office = Office(publisher=FakePublisher(*[BrokerError("no answer")] * 3))
    bad, good = FakeDelivery(CHAT, data=b"{}"), FakeDelivery(CHAT)
    await office.run(bad, good)
    assert (bad.settlements, good.outcome) == ([], "ack")
    await until(lambda: bad.settlements)
    assert bad.outcome == "ack"
    assert office.meter.of("stuck") == [("stuck", COMPANY, CHAT, "nak_dlq_publish_fail")]
    assert office.settled == [("ack_success", "none"), ("dlq_published_ack_success", "validation")]


async def test_an_event_too_large_for_an_envelope_ends_in_exhausted_events() -> None:
    office, delivery = Office(publisher=FakePublisher(TooLarge("1 MiB"))), FakeDelivery(CHAT, data=b"{}")
    await office.run(delivery)
    assert delivery.outcome == "term"
    assert office.settled == [("nack_fatal", "validation")]
    assert office.meter.count()["dlq_dropped"] == 1
    assert office.tables.row.original_payload == "{}"


async def test_an_event_of_unknown_subject_ends_in_exhausted_events() -> None:
    office, delivery = Office(), FakeDelivery(subject=f"v1.foo.bar.{COMPANY}", data=b"{}")
    await office.run(delivery)
    assert delivery.outcome == "term"
    assert office.settled == [("nack_fatal", "unknown")]
    assert office.publisher.attempts == 0
    assert office.tables.row.source_subject == delivery.subject


@pytest.mark.parametrize("subject", [f"{CHAT}.Other", f"{CHAT}.{COMPANY.lower()}", f"{CHAT}.*", CHAT])
async def test_an_event_of_another_companys_subject_is_not_stored(subject: str) -> None:
    """Somebody changed our consumer's filter: a payload without company would be taken for ours."""
    office = Office()
    delivery = FakeDelivery(subject=subject, payload=builders.chat(company_id=""))
    await office.run(delivery)
    assert delivery.outcome == "term"
    assert office.settled == [("nack_fatal", "unknown")]
    assert office.tables.writes == []
    assert office.tables.row.source_subject == subject


async def test_an_event_of_unknown_subject_waits_for_a_database_that_is_gone() -> None:
    office = Office(FakeTables(exhausted_troubles=[db.Unavailable("gone")] * 2))
    delivery = FakeDelivery(subject=f"v1.foo.bar.{COMPANY}", data=b"{}")
    await office.run(delivery)
    await until(lambda: delivery.settlements)
    assert delivery.outcome == "term"
    assert office.settled == [("nack_fatal", "unknown")]


@pytest.mark.parametrize(
    ("role", "event_type", "delivered"), [("realtime", CHAT, 11), ("historical", "v1.history.chats", 7)]
)
async def test_an_event_that_seems_to_kill_its_worker_is_dead_lettered_unhandled(
    role: ConsumerType, event_type: str, delivered: int
) -> None:
    office, delivery = Office(), FakeDelivery(event_type, num_delivered=delivered)
    await office.run(delivery, role=role)
    assert delivery.outcome == "ack"
    assert office.tables.writes == []
    assert office.settled == [("dlq_published_ack_success", "unknown")]
    assert office.publisher.envelope["original_payload"] == builders.BUILDERS[event_type]()
    survivor = FakeDelivery(event_type, num_delivered=delivered - 1)
    await Office().run(survivor, role=role)
    assert survivor.outcome == "ack"


# ---------------------------------------------------------------- history


async def test_the_good_items_of_a_batch_are_stored_before_one_envelope_with_the_bad_ones() -> None:
    stored_before: list[int] = []

    class Publisher(FakePublisher):
        async def publish(self, *values: Any) -> None:
            stored_before.append(len(office.tables.stored))
            assert delivery.settlements == []
            await super().publish(*values)

    office = Office(FakeTables(judge=guilty(db.DataError("SQLSTATE 22003", "22003"), 2)), Publisher())
    bad = [{"chat_id": "B"}, builders.chat(unread_count="x"), builders.chat(company_id="Other")]
    items = [builders.chat(chat_id="1"), *bad, builders.chat(chat_id="2"), builders.chat(chat_id="3")]
    delivery = FakeDelivery("v1.history.chats", builders.history_chats(*items))
    await office.run(delivery, role="historical")
    assert stored_before == [2]
    assert office.publisher.envelope["original_payload"] == {"chats": [*bad, items[5]]}
    text = office.publisher.envelope["error"]
    assert all(f"chats[{index}]: " in text for index in (1, 2, 3, 5))
    assert "jid is required" in text
    assert delivery.outcome == "ack"
    assert office.settled == [("dlq_published_ack_success", "validation")]


@pytest.mark.parametrize("trouble", [BrokerError("full"), TooLarge("1 MiB")])
async def test_bad_items_are_in_the_letter_that_is_published_after_their_batch_is_released(
    trouble: Exception,
) -> None:
    tables = FakeTables(exhausted_troubles=[db.Unavailable("gone")] * 3)
    office = Office(tables, FakePublisher(*[trouble] * 4))
    bad = [{"chat_id": "B"}, builders.chat(unread_count="x")]
    delivery = FakeDelivery("v1.history.chats", builders.history_chats(builders.chat(), *bad))
    item = await office.run(delivery, role="historical")
    assert item.released.is_set()
    assert delivery.settlements == []
    await until(lambda: office.settled)
    carried = (
        json.loads(office.tables.row.original_payload or "")
        if isinstance(trouble, TooLarge)
        else office.publisher.envelope["original_payload"]
    )
    assert carried == {"chats": bad}


@pytest.mark.parametrize("payload", [{"chats": []}, {}, None])
async def test_a_batch_without_items_is_acknowledged(payload: Any) -> None:
    office, delivery = Office(), FakeDelivery("v1.history.chats", payload)
    await office.run(delivery, role="historical")
    assert delivery.outcome == "ack"
    assert office.settled == [("ack_success", "none")]


async def test_a_passing_error_of_one_item_brings_the_whole_batch_again() -> None:
    office = Office(FakeTables(judge=guilty(db.DatabaseError("odd", "XX000"), 1)))
    delivery = FakeDelivery("v1.history.chats", builders.history_chats(builders.chat(), {}, builders.chat()))
    await office.run(delivery, role="historical")
    assert delivery.settlements == [("nak", 2.0)]
    assert office.settled == [("nack_retryable", "database")]
    assert len(office.tables.stored) == 1


# ---------------------------------------------------------------- onboarding


async def test_a_message_is_acknowledged_only_when_onboarding_is_done_with_it() -> None:
    office = Office()
    message, chat = FakeDelivery("v1.messages.upsert"), FakeDelivery(CHAT)
    await office.run(message, chat)
    assert (message.settlements, chat.outcome) == ([], "ack")
    [job] = office.jobs
    [task] = job.tasks
    assert (task.agent_id, task.from_phone, task.jid) == (AGENT, builders.PHONE, JID)
    await job.done([None])
    assert message.outcome == "ack"
    assert office.settled == [("ack_success", "none")] * 2


@pytest.mark.parametrize(
    ("error", "settlement", "ending"),
    [
        (errors.Rejected("x"), ("ack", 0.0), ("dlq_published_ack_success", "database")),
        (errors.DatabaseError("x"), ("nak", 1.0), ("nack_retryable", "database")),
    ],
)
async def test_a_message_that_cannot_be_onboarded_is_settled_by_its_error(
    error: EventError, settlement: tuple[str, float], ending: tuple[str, str]
) -> None:
    office, message = Office(), FakeDelivery("v1.messages.upsert")
    await office.run(message)
    await office.jobs[0].done([error])
    assert message.settlements == [settlement]
    assert office.settled == [ending]


async def test_a_job_tells_how_many_bytes_of_messages_wait_with_it() -> None:
    """Thousands may wait: they are bounded by it."""
    office = Office()
    messages = [FakeDelivery("v1.messages.upsert", builders.message(message_id=f"M{n}")) for n in range(3)]
    await office.run(*messages, FakeDelivery(CHAT))
    [job] = office.jobs
    assert job.bodies == sum(len(message.data) for message in messages)
    assert job.load.size > job.bodies


@pytest.mark.parametrize(
    "changes", [{"flow": "OUT"}, {"from_phone": ""}, {"jid": "status@broadcast"}, {"jid": "1@newsletter"}]
)
async def test_other_messages_are_not_onboarded(changes: dict[str, Any]) -> None:
    office, message = Office(), FakeDelivery("v1.messages.upsert", builders.message(**changes))
    await office.run(message)
    assert office.jobs == []
    assert message.outcome == "ack"


async def test_a_message_that_is_not_stored_is_not_onboarded() -> None:
    office = Office(FakeTables(judge=guilty(db.DataError("x", "22003"), 0)))
    await office.run(FakeDelivery("v1.messages.upsert"))
    assert office.jobs == []


async def test_history_is_not_onboarded_at_once() -> None:
    office = Office()
    await office.run(FakeDelivery("v1.history.messages"), role="historical")
    assert office.jobs == []


async def test_a_fault_of_onboarding_is_a_panic_dead_letter() -> None:
    async def fail(_: OnboardingJob) -> None:
        raise LookupError("a fault of ours")

    office, message, chat = Office(onboard=fail), FakeDelivery("v1.messages.upsert"), FakeDelivery(CHAT)
    await office.run(message, chat)
    assert (message.outcome, chat.outcome) == ("ack", "ack")
    assert sorted(office.settled) == [("ack_success", "none"), ("dlq_published_ack_success", "panic")]


# ---------------------------------------------------------------- the loop


async def test_no_exception_leaves_the_agent_and_no_delivery_stays_in_its_hands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    office = Office()

    async def fail(_: object) -> None:
        raise LookupError("a fault of ours")

    first, second = FakeDelivery(CHAT), FakeDelivery(CHAT)
    with monkeypatch.context() as patch:
        patch.setattr(office.routing, "prepare", fail)
        await office.run(first, FakeDelivery(CHAT, failures=1))
    assert first.settlements == [("nak", 1.0)]
    await office.run(second)
    assert second.outcome == "ack"


async def test_batches_of_different_sources_do_not_wait_for_each_other() -> None:
    office = Office(FakeTables(*[db.Unavailable("gone")] * 20))
    slow, fast = batch(FakeDelivery(CHAT)), batch(FakeDelivery(CHAT, data=b"{}"))

    async def channel() -> AsyncIterator[Batch]:
        yield slow
        yield fast
        await until(fast.released.is_set)
        assert not slow.released.is_set()
        await until(slow.released.is_set)

    assert [size async for size in office.routing.run(channel())] == [1, 1]


@pytest.mark.parametrize("event_type", [CHAT, "v1.history.chats"])
async def test_an_event_that_the_server_gave_up_is_dead_lettered_whole(event_type: str) -> None:
    office, payload = Office(), builders.BUILDERS[event_type]()
    delivery = FakeDelivery(event_type, payload, num_delivered=2)
    await office.routing.on_max_deliveries(TENANT, "realtime", delivery)
    assert delivery.outcome == "ack"
    assert office.publisher.envelope["original_payload"] == payload
    assert office.tables.writes == []
    assert office.settled == [("dlq_published_ack_success", "unknown")]


async def test_an_empty_batch_is_released() -> None:
    await Office().run()


async def test_every_delivery_counts_as_received_also_the_bad_ones() -> None:
    office = Office()
    await office.run(
        FakeDelivery(CHAT, data=b""), FakeDelivery(CHAT, data=b"{}"), FakeDelivery(CHAT, num_delivered=11)
    )
    assert office.meter.of("received") == [("received", COMPANY, CHAT, 3)]
    assert len(office.settled) == 3


# ---------------------------------------------------------------- metric 4 (contract 9.5)


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
    office = Office()
    await office.run(FakeDelivery(event_type, payload))
    expected = [] if seen is None else [("agent_seen", COMPANY, event_type, *seen)]
    assert office.meter.of("agent_seen") == expected


async def test_rows_remember_where_their_event_came_from() -> None:
    office = Office()
    delivery = FakeDelivery(CHAT, headers={"Nats-Msg-Id": "wa-1"})
    [work] = await office.routing.prepare(batch(delivery))
    assert work.tenant == TENANT
    assert '"message_id":"wa-1"' in work.source.metadata
    assert f'"message_subject":"{CHAT}.{COMPANY}"' in work.source.metadata


async def test_imports_do_not_hold_back_for_real_time_events_that_wait_for_an_outage_of_their_tables() -> (
    None
):
    """It may be one company's outage, and the import another one's."""
    office = Office(FakeTables(*[db.Unavailable("permission denied", "42501")] * 10**5))
    clock = 1000.0
    office.routing._precedence = order = HistoryThrottle(lambda: clock)
    handling = asyncio.create_task(office.routing.handle(batch(FakeDelivery())))
    async with asyncio.timeout(30):
        await until(lambda: len(office.tables.troubles) < 10**5)
        while not order.idle:
            await asyncio.sleep(0.001)
            clock += 2 * QUIET
    assert not handling.done()
    handling.cancel()
    await asyncio.gather(handling, return_exceptions=True)
    clock += 2 * QUIET
    assert order.idle
