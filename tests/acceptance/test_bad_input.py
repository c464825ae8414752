"""Whatever is published, the worker goes on: each event is a row, a dead letter or an exhausted row."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.client import Client

from testkit.worker import Worker
from tests import builders
from tests.acceptance.company_probe import DLQ_STREAM, CompanyProbe, comes_to, stream_of
from tests.acceptance.conftest import Shared, visited

_MESSAGES = "v1.messages.upsert"
_DEEP = b"[" * 20_000 + b"]" * 20_000


@pytest.fixture
async def served(sharing: Shared, nc: Client, postgres_dsn: str) -> AsyncIterator[CompanyProbe]:
    """One company for all tests, emptied after each: nothing is counted here, and making schemas takes long."""
    async with visited(sharing.any_company(), nc, postgres_dsn) as probe:
        yield probe
        tables = "messages message_keys chats chat_steps contacts onboarding_log agents exhausted_events"
        await probe.execute(f"TRUNCATE {', '.join(f'{{schema}}.{table}' for table in tables.split())}")
        await probe.js.purge_stream(DLQ_STREAM, subject=probe.tenant.subject("v1.dlq"))


def _body(probe: CompanyProbe, **changes: Any) -> bytes:
    return builders.body(probe.of_us(builders.message(**changes)))


def _spliced(probe: CompanyProbe, name: str, raw: bytes) -> bytes:
    """A message in which one field has this very text as its value."""
    return _body(probe, **{name: "<here>"}).replace(b'"<here>"', raw)


async def _goes_on(worker: Worker, probe: CompanyProbe) -> None:
    """The worker lives, is ready, never restarted an agent, and stores the next event."""
    await probe.publish("v1.connection.update", builders.connection())
    await probe.holds("agents", 1)
    assert worker.running
    assert worker.ready()["status"] == "READY"
    told = [line for line in worker.lines() if "estart" in line["msg"] or line.get("stacktrace")]
    assert not told


async def _dead_letter(probe: CompanyProbe, event_type: str) -> dict[str, Any]:
    await comes_to(1, probe.letters)
    await probe.settled(stream_of(event_type))
    letter = await probe.letter()
    assert letter["source_subject"] == probe.tenant.subject(event_type)
    assert letter["company"] == probe.company
    return letter


@pytest.mark.rule("OUT-15", "PAY-1")
@pytest.mark.parametrize(
    ("event_type", "body"),
    [
        (_MESSAGES, b""),
        (_MESSAGES, b"{"),
        (_MESSAGES, b'{"message_id": "1"} {}'),
        (_MESSAGES, b"[]"),
        (_MESSAGES, b'"text"'),
        (_MESSAGES, b"17"),
        (_MESSAGES, b"\xff\xfe\x00"),
        ("v1.chats.update", b"nonsense"),
        ("v1.history.messages", b'{"messages": {}}'),
        ("v1.history.chats", b"{"),
    ],
)
async def test_what_is_no_json_object_is_an_unmarshal_dead_letter_with_its_text(
    shared: Worker, served: CompanyProbe, event_type: str, body: bytes
) -> None:
    await served.publish(event_type, body)
    letter = await _dead_letter(served, event_type)
    assert letter["error_type"] == "fatal"
    assert letter["error"].startswith("fatal: ")
    await _goes_on(shared, served)


@pytest.mark.rule("PAY-4")
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"message_id": ""}, "message_id"),
        ({"message_id": None}, "message_id"),
        ({"message_id": 17}, "message_id"),
        ({"chat_id": ["c"]}, "chat_id"),
        ({"jid": builders.ABSENT}, "jid"),
        ({"flow": "in"}, "flow"),
        ({"agent_id": {}}, "agent_id"),
        ({"company_id": "Somebody"}, "company_id"),
        ({"message_text": True}, "message_text"),
        ({"message_obj": "text"}, "message_obj"),
        ({"key": {"fromMe": True}}, "key"),
        ({"key": []}, "key"),
        ({"message_timestamp": 1.5}, "message_timestamp"),
        ({"message_timestamp": 2**63}, "message_timestamp"),
        ({"campaign": {"is_campaign": "yes"}}, "campaign"),
        ({"message_id": "\0"}, "message_id"),
    ],
)
async def test_a_field_of_the_wrong_kind_is_a_dead_letter_whose_reason_names_it(
    shared: Worker, served: CompanyProbe, changes: dict[str, Any], field: str
) -> None:
    await served.publish(_MESSAGES, builders.message(**changes))
    letter = await _dead_letter(served, _MESSAGES)
    assert field in letter["error"]
    assert await served.count("messages") == 0
    await _goes_on(shared, served)


@pytest.mark.parametrize(
    ("event_type", "payload", "field"),
    [
        ("v1.messages.update", {"status": "read"}, "message_id"),
        ("v1.messages.update", {"message_id": "1", "is_deleted": "no"}, "is_deleted"),
        ("v1.chats.upsert", {"chat_id": "c", "jid": "j", "agent_id": "a"}, "phone_number"),
        ("v1.chats.upsert", builders.chat(unread_count="3"), "unread_count"),
        ("v1.chats.upsert", builders.chat(unread_count=2**31), "unread_count"),
        ("v1.chats.upsert", builders.chat(conversation_timestamp=-1), "conversation_timestamp"),
        ("v1.chats.update", {"id": "c", "agent_id": "a"}, "chat_id"),
        ("v1.contacts.upsert", builders.contact(push_name=builders.ABSENT), "push_name"),
        ("v1.contacts.update", builders.contact_update(phone_number=""), "phone_number"),
        ("v1.connection.update", {"status": "connected"}, "agent_id"),
        ("v1.history.contacts", builders.history_contacts({}), "contacts[0]"),
        ("v1.history.messages", builders.history_messages(None), "messages[0]"),
    ],
)
async def test_a_bad_field_of_any_event_type_is_named(
    shared: Worker, served: CompanyProbe, event_type: str, payload: Any, field: str
) -> None:
    await served.publish(event_type, payload)
    assert field in (await _dead_letter(served, event_type))["error"]
    await _goes_on(shared, served)


@pytest.mark.rule("PAY-9")
async def test_nul_is_removed_and_the_event_stored(shared: Worker, served: CompanyProbe) -> None:
    """In texts, and nested in values and keys."""
    await served.publish(
        _MESSAGES, builders.message(message_text="a\0b", message_obj={"k\0ey": [{"deep\0er": "x\0y"}]})
    )
    await served.holds("messages", 1)
    [row] = await served.rows("messages")
    assert row["message_text"] == "ab"
    assert row["message_obj"] == {"key": [{"deeper": "xy"}]}
    assert await served.letters() == 0
    await _goes_on(shared, served)


@pytest.mark.rule("PAY-9")
async def test_lone_surrogates_and_bad_utf_8_are_replaced_and_the_event_stored(
    shared: Worker, served: CompanyProbe
) -> None:
    await served.publish(_MESSAGES, _spliced(served, "message_text", rb'"a\ud800b"'))
    await served.publish("v1.chats.upsert", _chat_body(served, b'"a\xffb"'))
    await served.holds("messages", 1)
    await served.holds("chats", 1)
    assert (await served.rows("messages"))[0]["message_text"] == "a\ufffdb"
    assert (await served.rows("chats"))[0]["push_name"] == "a\ufffdb"
    await _goes_on(shared, served)


def _chat_body(probe: CompanyProbe, name: bytes) -> bytes:
    return builders.body(probe.of_us(builders.chat(push_name="<here>"))).replace(b'"<here>"', name)


@pytest.mark.rule("PAY-10")
async def test_numbers_beyond_a_double_are_kept_exactly(shared: Worker, served: CompanyProbe) -> None:
    await served.publish(_MESSAGES, builders.message(message_obj={"n": 12345678901234567890123}))
    await served.holds("messages", 1)
    text = await served.value("SELECT message_obj->>'n' FROM {schema}.messages")
    assert text == "12345678901234567890123"
    await _goes_on(shared, served)


@pytest.mark.parametrize("number", [b"1e400000", b"-1e400000"])
async def test_a_number_that_no_column_holds_is_a_database_dead_letter(
    shared: Worker, served: CompanyProbe, number: bytes
) -> None:
    await served.publish(_MESSAGES, _spliced(served, "message_obj", b'{"n": ' + number + b"}"))
    letter = await _dead_letter(served, _MESSAGES)
    assert "SQLSTATE 22" in letter["error"]
    await _goes_on(shared, served)


@pytest.mark.parametrize("event_type", [_MESSAGES, "v1.history.messages"])
async def test_twenty_thousand_levels_of_nesting_are_a_dead_letter(
    shared: Worker, served: CompanyProbe, event_type: str
) -> None:
    body = _spliced(served, "message_obj", b'{"x": ' + _DEEP + b"}")
    await served.publish(event_type, body if event_type == _MESSAGES else b'{"messages": [' + body + b"]}")
    await _dead_letter(served, event_type)
    assert await served.count("messages") == 0
    await _goes_on(shared, served)


async def test_a_body_of_the_servers_limit_is_stored(shared: Worker, served: CompanyProbe) -> None:
    event = served.of_us(builders.message(message_text=""))
    event["message_text"] = "x" * (served.nc.max_payload - len(builders.body(event)))
    await served.publish(_MESSAGES, event)
    await served.holds("messages", 1)
    assert await served.value("SELECT length(message_text) FROM {schema}.messages") == len(
        event["message_text"]
    )
    await _goes_on(shared, served)


@pytest.mark.rule("OUT-9")
async def test_a_bad_body_of_the_servers_limit_is_an_exhausted_row(
    shared: Worker, served: CompanyProbe
) -> None:
    """Also when it is no JSON, so that its text only gets longer."""
    await served.publish(_MESSAGES, b'{"' * (served.nc.max_payload // 2))
    await served.holds("exhausted_events", 1)
    await served.settled()
    [row] = await served.rows("exhausted_events")
    assert row["source_subject"] == served.tenant.subject(_MESSAGES)
    assert len(json.dumps(row["original_payload"])) > served.nc.max_payload
    await _goes_on(shared, served)


@pytest.mark.rule("OUT-4")
async def test_fifty_bad_events_do_not_hold_up_the_good_one_behind_them(
    shared: Worker, served: CompanyProbe
) -> None:
    for number in range(50):
        await served.publish(_MESSAGES, b"{" if number % 2 else builders.message(flow=""))
    await _goes_on(shared, served)
    await comes_to(50, served.letters)


@pytest.mark.rule("OUT-1")
async def test_every_bad_event_ends_where_an_operator_finds_it(shared: Worker, served: CompanyProbe) -> None:
    """Whole way: what stays broken is an exhausted row after its last try; nothing is left open."""
    del shared
    await served.publish(
        "v1.dlq",
        builders.envelope(
            {"flow": "?"},
            company=served.company,
            retry_count=5,
            source_subject=served.tenant.subject(_MESSAGES),
        ),
    )
    await served.holds("exhausted_events", 1)
    await served.settled(DLQ_STREAM)
    [row] = await served.rows("exhausted_events")
    for field in ("message_id", "chat_id", "jid", "flow", "agent_id"):
        assert field in row["last_error"]
