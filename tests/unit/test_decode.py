"""A delivery as the writes it asks for, and what remains of it for a dead letter."""

from __future__ import annotations

import gc
import itertools
import json
import math
import weakref
from typing import Any

import pytest

from agents.dead_letter import remaining_payload
from agents.decode import decode, last_metadata
from agents.received_event import ReceivedEvent
from events import errors
from events.delivery import Delivery, MessageMetadata
from events.history import History
from tables.last_writer_wins import EventStamp, Version
from tables.mutations import ChatRow, MessageRow, Mutation, PostScanRequest
from tests import builders
from tests.unit.fakes import LIMITS, STORED_NS, TENANT, FakeDelivery

STAMP = EventStamp(Version(STORED_NS, 7), '{"stream":"s"}')


def received(delivery: Delivery, event_type: str) -> ReceivedEvent:
    return ReceivedEvent(TENANT, delivery, LIMITS["realtime"], event_type, STAMP)


def decoded(event_type: str, payload: Any = builders.ABSENT, data: bytes | None = None) -> ReceivedEvent:
    event = received(FakeDelivery(event_type, payload, data=data), event_type)
    decode(event, event.delivery.data, itertools.count())
    return event


def concluded(event: ReceivedEvent, *guilty: Mutation, error: errors.EventError | None = None) -> str:
    """Its outcome, if the database refuses some of its writes with `error`."""
    event.conclude({write.ref: error for write in guilty if error is not None})
    return "" if event.error is None else str(event.error)


@pytest.mark.rule("VER-1")
@pytest.mark.parametrize("event_type", [name for name in builders.BUILDERS if "history" not in name])
def test_a_realtime_event_is_one_write_with_the_version_of_its_delivery(event_type: str) -> None:
    event = decoded(event_type)
    [write] = event.writes
    assert event.error is None
    assert write.stamp.version == Version(STORED_NS, 7)  # type: ignore[union-attr]
    assert write.stamp.history is False  # type: ignore[union-attr]


@pytest.mark.rule("VER-6")
def test_a_history_item_has_its_own_time_as_version_but_never_a_later_one_than_the_batch() -> None:
    times = [1_700_000_000, 0, -5, STORED_NS // 10**9 + 999]
    event = decoded(
        "v1.history.messages",
        builders.history_messages(*(builders.message(message_timestamp=t) for t in times)),
    )
    rows = event.writes
    assert all(isinstance(row, MessageRow) and row.stamp.history for row in rows)
    assert [row.stamp.version.ns for row in rows] == [1_700_000_000 * 10**9, 0, 0, STORED_NS]  # type: ignore[union-attr]


def test_history_contacts_are_older_than_anything_and_chats_as_old_as_their_last_talk() -> None:
    [contact] = decoded("v1.history.contacts").writes
    assert contact.stamp.version == Version(0, 7)  # type: ignore[union-attr]
    chat = decoded("v1.history.chats").writes[0]
    assert isinstance(chat, ChatRow)
    assert chat.stamp.version == Version(builders.SENT_AT * 10**9, 7)


@pytest.mark.rule("PSS-1")
def test_the_last_batch_asks_for_a_later_look_at_its_agent() -> None:
    event = decoded("v1.history.messages", builders.history_messages(is_last_batch=True, agent_id="A"))
    request = event.writes[-1]
    assert isinstance(request, PostScanRequest)
    assert (request.agent_id, request.stored_at.timestamp()) == ("A", STORED_NS / 1e9)
    for changes in ({"is_last_batch": True}, {"agent_id": "A"}, {"is_last_batch": False, "agent_id": "A"}):
        assert len(decoded("v1.history.messages", builders.history_messages(**changes)).writes) == 2


def test_refs_number_the_writes_of_all_events_together() -> None:
    refs = itertools.count()
    events = []
    for event_type in ("v1.history.messages", "v1.chats.upsert"):
        delivery = FakeDelivery(event_type)
        events.append(received(delivery, event_type))
        decode(events[-1], delivery.data, refs)
    assert [write.ref for event in events for write in event.writes] == [0, 1, 2]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("items", [1, 2, 3, 4, 5])
def test_a_history_batch_decoded_in_steps_is_the_one_decoded_at_once(items: int, last: bool) -> None:
    messages = [builders.message(message_id=f"M{number}") for number in range(3)]
    payload = builders.history_messages(messages[0], {}, *messages[1:], is_last_batch=last, agent_id="A")
    whole = decoded("v1.history.messages", payload)
    event = received(whole.delivery, whole.event_type)
    refs, steps = itertools.count(), 1
    while not decode(event, whole.delivery.data, refs, items):
        steps += 1
    assert steps == math.ceil(4 / items)
    assert event.writes == whole.writes
    assert concluded(event) == concluded(whole)
    assert remaining_payload(event) == remaining_payload(whole)


@pytest.mark.parametrize("data", [b"{oops", b'{"messages":1}', b"{}", b'{"messages":[]}'])
def test_a_history_batch_without_items_is_decoded_in_one_step(data: bytes) -> None:
    whole = decoded("v1.history.messages", data=data)
    event = received(whole.delivery, whole.event_type)
    assert decode(event, data, itertools.count(), 1)
    assert (event.writes, str(event.error)) == ([], str(whole.error))


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_history_batch_is_released_in_steps(count: int) -> None:
    event = decoded("v1.history.messages", builders.history_messages(*[builders.message()] * 3, {}))
    event.conclude({})
    assert event.failures
    steps = 1
    while not event.release_items(count):
        steps += 1
    assert steps == math.ceil(4 / count)
    assert isinstance(event.payload, History)
    assert (event.writes, event.payload.items, event.failures) == ([], [], [])


@pytest.mark.parametrize("event_type", ["v1.chats.upsert", "v1.history.chats"])
def test_an_event_that_waits_for_its_dead_letter_keeps_neither_payload_nor_errors_of_items(
    event_type: str,
) -> None:
    event = decoded(event_type, data=b'{"chats":[null,null]}')
    event.conclude({})
    event.release()
    assert (event.payload, event.writes, event.failures) == (None, [], [])
    assert event.error is not None


@pytest.mark.parametrize("event_type", ["v1.chats.upsert", "v1.history.chats"])
@pytest.mark.parametrize("data", [b"{oops", b"{}", b'{"chats":[{},1]}', b'{"chats":1}'])
def test_a_refused_event_is_freed_without_the_garbage_collector(event_type: str, data: bytes) -> None:
    """A flood of large ones would fill the memory before it comes."""
    gc.disable()
    try:
        event = decoded(event_type, data=data)
        event.conclude({})
        delivery = weakref.ref(event.delivery)
        del event
        assert delivery() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("data", "kind"), [(b"{oops", errors.Malformed), (b"{}", errors.Invalid)])
def test_a_bad_event_has_its_error_and_no_writes(data: bytes, kind: type[errors.EventError]) -> None:
    event = decoded("v1.chats.upsert", data=data)
    event.conclude({})
    assert isinstance(event.error, kind)
    assert event.writes == []
    assert remaining_payload(event) == data


@pytest.mark.parametrize("event_type", ["v1.chats.upsert", "v1.history.chats"])
def test_an_unexpected_exception_gives_the_whole_event_up(
    event_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise LookupError("a fault of ours")

    monkeypatch.setattr("agents.rows.mutation", fail)
    event = decoded(event_type)
    event.conclude({})
    assert isinstance(event.error, errors.UnexpectedError)
    assert remaining_payload(event) == event.delivery.data


@pytest.mark.rule("HIS-1")
def test_only_the_bad_items_of_a_batch_remain_and_the_error_names_each() -> None:
    items = [
        builders.chat(),
        {"chat_id": "B"},
        builders.chat(chat_id="C"),
        "text",
        builders.chat(chat_id="E"),
    ]
    event = decoded("v1.history.chats", builders.history_chats(*items))
    text = concluded(event, event.writes[1], error=errors.Rejected("database: SQLSTATE 22003"))
    assert isinstance(event.error, errors.Invalid)
    assert text.startswith("fatal: chats[1]: validation failed: jid is required")
    assert "; chats[2]: database: SQLSTATE 22003; chats[3]: cannot decode" in text
    assert json.loads(remaining_payload(event)) == {"chats": [items[1], items[2], items[3]]}


@pytest.mark.rule("HIS-4")
def test_one_item_that_may_pass_keeps_all_bad_ones_in_line() -> None:
    event = decoded(
        "v1.history.chats", builders.history_chats({}, builders.chat(), builders.chat(chat_id="C"))
    )
    text = concluded(event, event.writes[1], error=errors.DatabaseError("database: gone"))
    assert isinstance(event.error, errors.DatabaseError)
    assert "chats[0]: validation failed" in text
    assert text.startswith("retryable: ")


def test_a_batch_without_failures_has_no_error() -> None:
    event = decoded("v1.history.chats")
    event.conclude({})
    assert event.error is None


def test_a_later_look_that_could_not_be_noted_remains_alone() -> None:
    event = decoded("v1.history.messages", builders.history_messages(is_last_batch=True, agent_id='A"'))
    concluded(event, event.writes[-1], error=errors.Rejected("x"))
    assert json.loads(remaining_payload(event)) == {"messages": [], "is_last_batch": True, "agent_id": 'A"'}


def test_a_remainder_of_items_does_not_ask_for_the_later_look_again() -> None:
    payload = builders.history_messages(builders.message(), {}, is_last_batch=True, agent_id="A")
    event = decoded("v1.history.messages", payload)
    event.conclude({})
    assert json.loads(remaining_payload(event)) == {"messages": [{}]}


def test_the_text_of_very_many_bad_items_stays_short() -> None:
    event = decoded("v1.history.chats", {"chats": [None] * 50_000})
    text = concluded(event)
    assert len(text) < 200_000
    assert text.endswith("; and 49000 more")


def test_only_a_realtime_message_is_onboarded() -> None:
    assert decoded("v1.messages.upsert").incoming is not None
    for event_type in ("v1.history.messages", "v1.messages.update", "v1.chats.upsert"):
        assert decoded(event_type).incoming is None


@pytest.mark.rule("ROW-1")
def test_last_metadata_is_json_whatever_the_names() -> None:
    position = MessageMetadata('st"ream', "consumer", "hub", 7, 3, 1, STORED_NS, 0)
    assert json.loads(last_metadata(position, "id\n\u2713", "v1.chats.upsert.C", "2026-11-24T07:15:30Z")) == {
        "stream": 'st"ream',
        "consumer": "consumer",
        "stream_sequence": 7,
        "consumer_sequence": 3,
        "domain": "hub",
        "message_id": "id\n\u2713",
        "message_subject": "v1.chats.upsert.C",
        "processed_at": "2026-11-24T07:15:30Z",
    }
