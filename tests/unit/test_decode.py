"""One delivery as units of work, and what remains of it for a dead letter (contract 3.1, 3.7, B1)."""

from __future__ import annotations

import gc
import itertools
import json
import math
import weakref
from typing import Any

import pytest

from agents import received_event as module
from agents.received_event import EventMetadata, ReceivedEvent, advance, metadata, plan, remainder
from events import errors, models
from events.delivery import MessageMetadata
from tables.last_writer_wins import Version
from tables.mutations import ChatRow, MessageRow, PostScanRequest
from testkit import builders
from tests.unit.fakes import STORED_NS, TENANT, FakeDelivery


def planned(event_type: str, payload: Any = builders.ABSENT, data: bytes | None = None) -> ReceivedEvent:
    delivery = FakeDelivery(event_type, payload, data=data)
    source = EventMetadata(event_type, '{"stream":"s"}', STORED_NS, 7, Version(STORED_NS, 7))
    return plan(ReceivedEvent(TENANT, delivery, source), delivery.data, itertools.count())


@pytest.mark.parametrize("event_type", [name for name in builders.BUILDERS if "history" not in name])
def test_a_realtime_event_is_one_unit_with_the_version_of_its_delivery(event_type: str) -> None:
    work = planned(event_type)
    [unit] = work.units
    assert work.error is None
    assert unit.change.stamp.version == Version(STORED_NS, 7)  # type: ignore[union-attr]
    assert unit.change.stamp.history is False  # type: ignore[union-attr]


def test_a_history_item_has_its_own_time_as_version_but_never_a_later_one_than_the_batch() -> None:
    times = [1_700_000_000, 0, -5, STORED_NS // 10**9 + 999]
    work = planned(
        "v1.history.messages",
        builders.history_messages(*(builders.message(message_timestamp=t) for t in times)),
    )
    rows = [unit.change for unit in work.units]
    assert all(isinstance(row, MessageRow) and row.stamp.history for row in rows)
    assert [row.stamp.version.ns for row in rows] == [1_700_000_000 * 10**9, 0, 0, STORED_NS]  # type: ignore[union-attr]


def test_history_contacts_are_older_than_anything_and_chats_as_old_as_their_last_talk() -> None:
    [contact] = planned("v1.history.contacts").units
    assert contact.change.stamp.version == Version(0, 7)  # type: ignore[union-attr]
    chat = planned("v1.history.chats").units[0].change
    assert isinstance(chat, ChatRow)
    assert chat.stamp.version == Version(builders.SENT_AT * 10**9, 7)


def test_the_last_batch_asks_for_a_later_look_at_its_agent() -> None:
    work = planned("v1.history.messages", builders.history_messages(is_last_batch=True, agent_id="A"))
    request = work.units[-1].change
    assert isinstance(request, PostScanRequest)
    assert (request.agent_id, request.stored_at.timestamp()) == ("A", STORED_NS / 1e9)
    for changes in ({"is_last_batch": True}, {"agent_id": "A"}, {"is_last_batch": False, "agent_id": "A"}):
        assert len(planned("v1.history.messages", builders.history_messages(**changes)).units) == 2


def test_refs_number_the_units_of_all_works_together() -> None:
    refs = itertools.count()
    works = []
    for event_type in ("v1.history.messages", "v1.chats.upsert"):
        delivery = FakeDelivery(event_type)
        source = EventMetadata(event_type, "{}", STORED_NS, 7, None)
        works.append(plan(ReceivedEvent(TENANT, delivery, source), delivery.data, refs))
    assert [unit.change.ref for work in works for unit in work.units] == [0, 1, 2]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("items", [1, 2, 3, 4, 5])
def test_a_history_batch_planned_in_steps_is_the_one_planned_at_once(items: int, last: bool) -> None:
    messages = [builders.message(message_id=f"M{number}") for number in range(3)]
    payload = builders.history_messages(messages[0], {}, *messages[1:], is_last_batch=last, agent_id="A")
    whole = planned("v1.history.messages", payload)
    work = ReceivedEvent(TENANT, whole.delivery, whole.source)
    refs, steps = itertools.count(), 1
    while not advance(work, whole.delivery.data, refs, items):
        steps += 1
    assert steps == math.ceil(4 / items)
    assert [(unit.change, unit.index) for unit in work.units] == [
        (unit.change, unit.index) for unit in whole.units
    ]
    assert str(work.conclude()) == str(whole.conclude())
    assert remainder(work) == remainder(whole)


@pytest.mark.parametrize("data", [b"{oops", b'{"messages":1}', b"{}", b'{"messages":[]}'])
def test_a_history_batch_without_items_is_planned_in_one_step(data: bytes) -> None:
    whole = planned("v1.history.messages", data=data)
    work = ReceivedEvent(TENANT, whole.delivery, whole.source)
    assert advance(work, data, itertools.count(), 1)
    assert (work.units, str(work.error)) == ([], str(whole.error))


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_history_batch_is_forgotten_in_steps(count: int) -> None:
    work = planned("v1.history.messages", builders.history_messages(*[builders.message()] * 3, {}))
    steps = 1
    while not work.forget(count):
        steps += 1
    assert steps == math.ceil(4 / count)
    assert isinstance(work.event, models.History)
    assert (work.units, work.event.items) == ([], [])


@pytest.mark.parametrize("event_type", ["v1.chats.upsert", "v1.history.chats"])
@pytest.mark.parametrize("data", [b"{oops", b"{}", b'{"chats":[{},1]}', b'{"chats":1}'])
def test_a_refused_event_is_freed_without_the_garbage_collector(event_type: str, data: bytes) -> None:
    """A flood of large ones would fill the memory before it comes."""
    gc.disable()
    try:
        work = planned(event_type, data=data)
        work.conclude()
        delivery = weakref.ref(work.delivery)
        del work
        assert delivery() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("data", "kind"), [(b"{oops", errors.Malformed), (b"{}", errors.Invalid)])
def test_a_bad_event_has_its_error_and_no_units(data: bytes, kind: type[errors.EventError]) -> None:
    work = planned("v1.chats.upsert", data=data)
    assert isinstance(work.conclude(), kind)
    assert work.units == []
    assert remainder(work) == data


@pytest.mark.parametrize("event_type", ["v1.chats.upsert", "v1.history.chats"])
def test_an_unexpected_exception_gives_the_whole_event_up(
    event_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise LookupError("a fault of ours")

    monkeypatch.setattr(module, "change", fail)
    work = planned(event_type)
    assert isinstance(work.conclude(), errors.UnexpectedError)
    assert remainder(work) == work.delivery.data


def test_only_the_bad_items_of_a_batch_remain_and_the_error_names_each() -> None:
    items = [
        builders.chat(),
        {"chat_id": "B"},
        builders.chat(chat_id="C"),
        "text",
        builders.chat(chat_id="E"),
    ]
    work = planned("v1.history.chats", builders.history_chats(*items))
    work.units[1].error = errors.Rejected("database: SQLSTATE 22003")
    error = work.conclude()
    assert isinstance(error, errors.Invalid)
    text = str(error)
    assert text.startswith("fatal: chats[1]: validation failed: jid is required")
    assert "; chats[2]: database: SQLSTATE 22003; chats[3]: cannot decode" in text
    assert json.loads(remainder(work)) == {"chats": [items[1], items[2], items[3]]}


def test_one_item_that_may_pass_keeps_all_bad_ones_in_line() -> None:
    work = planned(
        "v1.history.chats", builders.history_chats({}, builders.chat(), builders.chat(chat_id="C"))
    )
    work.units[1].error = errors.DatabaseError("database: gone")
    error = work.conclude()
    assert isinstance(error, errors.DatabaseError)
    assert "chats[0]: validation failed" in str(error)
    assert str(error).startswith("retryable: ")


def test_a_batch_without_failures_has_no_error() -> None:
    work = planned("v1.history.chats")
    assert work.conclude() is None


def test_a_later_look_that_could_not_be_noted_remains_alone() -> None:
    work = planned("v1.history.messages", builders.history_messages(is_last_batch=True, agent_id='A"'))
    work.units[-1].error = errors.Rejected("x")
    work.conclude()
    assert json.loads(remainder(work)) == {"messages": [], "is_last_batch": True, "agent_id": 'A"'}


def test_a_remainder_of_items_does_not_ask_for_the_later_look_again() -> None:
    payload = builders.history_messages(builders.message(), {}, is_last_batch=True, agent_id="A")
    work = planned("v1.history.messages", payload)
    work.conclude()
    assert json.loads(remainder(work)) == {"messages": [{}]}


def test_the_text_of_very_many_bad_items_stays_short() -> None:
    work = planned("v1.history.chats", {"chats": [None] * 50_000})
    text = str(work.conclude())
    assert len(text) < 200_000
    assert text.endswith("; and 49000 more")


def test_only_a_realtime_message_is_an_incoming_one() -> None:
    assert isinstance(planned("v1.messages.upsert").incoming, models.MessageUpsert)
    for event_type in ("v1.history.messages", "v1.messages.update", "v1.chats.upsert"):
        assert planned(event_type).incoming is None


def test_metadata_is_the_json_of_the_contract_whatever_the_names() -> None:
    origin = MessageMetadata('st"ream', "consumer", "hub", 7, 3, 1, STORED_NS, 0)
    assert json.loads(metadata(origin, "id\n\u2713", "v1.chats.upsert.C", "2026-11-24T07:15:30Z")) == {
        "stream": 'st"ream',
        "consumer": "consumer",
        "stream_sequence": 7,
        "consumer_sequence": 3,
        "domain": "hub",
        "message_id": "id\n\u2713",
        "message_subject": "v1.chats.upsert.C",
        "processed_at": "2026-11-24T07:15:30Z",
    }
