"""Events as rows: what is stored for each field."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from agents.rows import message_date, mutation
from events import payloads
from events.history import History
from events.models import MessageUpsert
from tables.last_writer_wins import EventStamp, Version
from tables.mutations import MessageRow
from tests import builders
from tests.builders import ABSENT, COMPANY, SENT_AT, body

STAMP = EventStamp(Version(5, 7), '{"stream":"s"}')
STORED = datetime.date(2026, 11, 25)
STORED_NS = int(datetime.datetime(2026, 11, 25, 23, 59, 59, tzinfo=datetime.UTC).timestamp()) * 10**9


def row(event_type: str, **changes: Any) -> dict[str, Any]:
    event = payloads.decode(event_type, body(builders.BUILDERS[event_type](**changes)), COMPANY)
    assert not isinstance(event, History)
    held = mutation(3, event, STAMP, STORED_NS)._asdict()
    assert (held.pop("ref"), held.pop("stamp")) == (3, STAMP)
    return held


@pytest.mark.rule("MSG-1")
def test_every_field_of_a_message_reaches_its_column() -> None:
    held = row("v1.messages.upsert")
    assert json.loads(held.pop("message_obj")) == {"conversation": "Apakah stok kopi gayo masih ada?"}
    assert json.loads(held.pop("key")) == {"id": "3EB0A1F2C4", "fromMe": False, "remoteJid": builders.JID}
    assert held.pop("message_date") == datetime.date(2026, 11, 24)
    assert held == builders.message(message_obj=ABSENT, key=ABSENT, message_url="")


OPTIONAL: dict[str, dict[str, Any]] = {
    "v1.messages.upsert": {
        **dict.fromkeys(
            ("from_phone", "to_phone", "message_type", "message_text", "message_url", "status"), ""
        ),
        "message_obj": None,
        "key": None,
        "message_timestamp": 0,
    },
    "v1.messages.update": {"status": "", "edited_message_obj": None, "is_deleted": None, "message_url": ""},
    "v1.chats.upsert": {
        "push_name": "",
        "is_group": False,
        "group_name": "",
        "last_message": None,
        "conversation_timestamp": 0,
        "unread_count": 0,
        "not_spam": False,
    },
    "v1.chats.update": {"unread_count": 0, "last_message": None, "conversation_timestamp": 0},
    "v1.connection.update": dict.fromkeys(
        ("qr_code", "status", "agent_name", "host_name", "version", "phone_number"), ""
    ),
}


@pytest.mark.rule("PAY-3")
@pytest.mark.parametrize("event_type", OPTIONAL)
@pytest.mark.parametrize("missing", [ABSENT, None])
def test_absent_and_null_fields_have_the_zero_value(event_type: str, missing: Any) -> None:
    zeros = OPTIONAL[event_type]
    held = row(event_type, **dict.fromkeys(zeros, missing))
    assert {field: held[field] for field in zeros} == zeros


@pytest.mark.parametrize(
    ("sent", "step", "value"), [(0, False, 0), (-3, False, 0), (1, True, None), (2, False, 2), (7, False, 7)]
)
def test_an_unread_count_of_a_chat_update_is_a_step_or_a_value(
    sent: int, step: bool, value: int | None
) -> None:
    held = row("v1.chats.update", unread_count=sent)
    assert (held["is_step"], held["unread_count"]) == (step, value)


def test_every_field_of_the_other_events_reaches_its_column() -> None:
    held = row("v1.messages.update", edited_message_obj={}, is_deleted=False, message_url="u")
    assert held == {
        **builders.message_update(),
        "edited_message_obj": "{}",
        "is_deleted": False,
        "message_url": "u",
    }
    held = row("v1.chats.upsert", is_group=True, group_name="g")
    assert json.loads(held.pop("last_message")) == builders.chat()["last_message"]
    assert held == builders.chat(last_message=ABSENT, is_group=True, group_name="g")
    held = row("v1.chats.update")
    assert json.loads(held.pop("last_message")) == builders.chat_update()["last_message"]
    assert (held.pop("is_step"), held.pop("unread_count")) == (True, None)
    assert held == builders.chat_update(last_message=ABSENT, agent_id=ABSENT, unread_count=ABSENT)
    assert row("v1.contacts.upsert") == builders.contact()
    assert row("v1.contacts.update") == builders.contact_update()
    assert row("v1.connection.update", qr_code="q") == builders.connection(qr_code="q")


@pytest.mark.rule("PAY-13")
@pytest.mark.parametrize(
    ("key", "held"),
    [
        ({"id": "a"}, {"id": "a", "fromMe": False, "remoteJid": ""}),
        ({"id": "a", "from_me": True, "remote_jid": "b"}, {"id": "a", "fromMe": True, "remoteJid": "b"}),
        ({"id": "a", "fromMe": True, "participant": "p"}, {"id": "a", "fromMe": True, "remoteJid": ""}),
        ({"id": 'q"\n\u2713'}, {"id": 'q"\n\u2713', "fromMe": False, "remoteJid": ""}),
    ],
)
def test_a_stored_key_has_exactly_its_three_members(key: Any, held: Any) -> None:
    assert json.loads(row("v1.messages.upsert", key=key)["key"]) == held


@pytest.mark.rule("MSG-4")
@pytest.mark.parametrize("sent_at", [0, -1, -86_400, ABSENT, None, "0", "-5"])
def test_a_message_without_a_real_time_has_the_day_of_its_store_time(sent_at: Any) -> None:
    held = row("v1.messages.upsert", message_timestamp=sent_at)
    assert held["message_date"] == STORED
    assert held["message_timestamp"] == int(sent_at if isinstance(sent_at, int | str) else 0)


@pytest.mark.rule("PAY-8", "MSG-4")
@pytest.mark.parametrize(
    "sent_at",
    [
        SENT_AT,
        str(SENT_AT),
        SENT_AT * 1000,
        SENT_AT * 1000 + 999,
        {"low": SENT_AT, "high": 0, "unsigned": False},
    ],
)
def test_seconds_milliseconds_digits_and_longs_give_the_same_day_and_column(sent_at: Any) -> None:
    held = row("v1.messages.upsert", message_timestamp=sent_at)
    assert (held["message_timestamp"], held["message_date"]) == (SENT_AT, datetime.date(2026, 11, 24))


@pytest.mark.rule("MSG-4")
@pytest.mark.parametrize(
    ("sent_at", "day"),
    [
        (1, datetime.date(1970, 1, 1)),
        (86_399, datetime.date(1970, 1, 1)),
        (86_400, datetime.date(1970, 1, 2)),
        (7_258_118_399, datetime.date(2199, 12, 31)),
        (7_258_118_400, STORED),
        (99_999_999_999, STORED),
        (9_223_372_036_854_775, STORED),
    ],
)
def test_a_day_outside_1970_to_2199_is_that_of_the_store_time(sent_at: int, day: datetime.date) -> None:
    assert message_date(sent_at, STORED_NS) == day


def test_the_day_is_the_same_on_every_redelivery() -> None:
    event = payloads.decode("v1.messages.upsert", body(builders.message(message_timestamp=0)), COMPANY)
    assert isinstance(event, MessageUpsert)
    first, second = (mutation(ref, event, STAMP, STORED_NS) for ref in (1, 2))
    assert isinstance(first, MessageRow)
    assert isinstance(second, MessageRow)
    assert first.message_date == second.message_date == STORED
