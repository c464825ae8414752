"""The fields of the ten event types, and the decoding rules (MSG-4, PAY-9)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from events import fields, models, payloads
from events.errors import EventError, Invalid, Malformed
from events.history import History, Item
from events.sanitize import sanitize
from events.subjects import EVENT_TYPES, HISTORICAL, REALTIME
from tests import builders
from tests.builders import ABSENT, COMPANY, SENT_AT, body

REQUIRED = {
    "v1.messages.upsert": ("message_id", "chat_id", "jid", "flow", "agent_id"),
    "v1.messages.update": ("message_id",),
    "v1.chats.upsert": ("chat_id", "jid", "agent_id", "phone_number"),
    "v1.chats.update": ("chat_id", "agent_id"),
    "v1.contacts.upsert": ("chat_id", "phone_number", "agent_id", "push_name"),
    "v1.contacts.update": ("phone_number", "agent_id"),
    "v1.connection.update": ("agent_id",),
}
TEXTS = {
    "v1.messages.upsert": ("from_phone", "to_phone", "message_type", "message_text", "message_url", "status"),
    "v1.messages.update": ("status", "message_url"),
    "v1.chats.upsert": ("push_name", "group_name"),
    "v1.connection.update": ("qr_code", "status", "agent_name", "host_name", "version", "phone_number"),
}
OBJECTS = {
    "v1.messages.upsert": ("message_obj",),
    "v1.messages.update": ("edited_message_obj",),
    "v1.chats.upsert": ("last_message",),
    "v1.chats.update": ("last_message",),
}
FLAGS = {
    "v1.messages.update": ("is_deleted",),
    "v1.chats.upsert": ("is_group", "not_spam"),
}
COUNTS = {"v1.chats.upsert": ("unread_count",), "v1.chats.update": ("unread_count",)}
TIMES = {
    "v1.messages.upsert": ("message_timestamp",),
    "v1.chats.upsert": ("conversation_timestamp",),
    "v1.chats.update": ("conversation_timestamp",),
}


def of(table: Mapping[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(event_type, field) for event_type, fields in table.items() for field in fields]


def decode(event_type: str, **changes: Any) -> Any:
    return payloads.decode(event_type, body(builders.BUILDERS[event_type](**changes)), COMPANY)


def raw(event_type: str, field: str, value: str, **changes: Any) -> Any:
    """Decode with `value`, JSON text, as the field."""
    rest = body(builders.BUILDERS[event_type](**{field: ABSENT, **changes}))
    return payloads.decode(event_type, b'{"%s":%s,' % (field.encode(), value.encode()) + rest[1:], COMPANY)


# ---------------------------------------------------------------- each field


@pytest.mark.parametrize("event_type", REALTIME)
def test_a_complete_event_is_taken_with_all_its_fields(event_type: str) -> None:
    payload = builders.BUILDERS[event_type]()
    event = payloads.decode(event_type, body(payload), COMPANY)
    for name, value in payload.items():
        held = getattr(event, name)
        if isinstance(held, msgspec.Raw):
            held = msgspec.json.decode(held)
        elif isinstance(held, fields.Key):
            held = {"id": held.id, "fromMe": held.fromMe, "remoteJid": held.remoteJid}
        assert held == value, name


@pytest.mark.rule("PAY-5")
@pytest.mark.parametrize(("event_type", "field"), of(REQUIRED))
@pytest.mark.parametrize("missing", [ABSENT, None, ""])
def test_a_required_field_must_be_there_and_not_be_empty(event_type: str, field: str, missing: Any) -> None:
    with pytest.raises(Invalid, match=rf"\b{field} is required"):
        decode(event_type, **{field: missing})


@pytest.mark.rule("PAY-5")
@pytest.mark.parametrize("event_type", REALTIME)
def test_all_failing_fields_are_named_in_one_error(event_type: str) -> None:
    with pytest.raises(Invalid) as caught:
        payloads.decode(event_type, b'{"company_id":"SomebodyElse"}', COMPANY)
    for field in (*REQUIRED[event_type], "company_id"):
        assert f"{field} is" in str(caught.value)


@pytest.mark.rule("PAY-4")
@pytest.mark.parametrize(("event_type", "field"), [*of(REQUIRED), *of(TEXTS)])
@pytest.mark.parametrize("value", [1, 1.5, True, {}, [], {"a": 1}])
def test_only_a_string_is_taken_for_a_string(event_type: str, field: str, value: Any) -> None:
    with pytest.raises(Malformed, match=field):
        decode(event_type, **{field: value})


@pytest.mark.rule("PAY-3")
@pytest.mark.parametrize(("event_type", "field"), of(TEXTS))
@pytest.mark.parametrize("value", [ABSENT, None, "", "any text"])
def test_an_optional_text_may_be_absent_null_or_empty(event_type: str, field: str, value: Any) -> None:
    held = getattr(decode(event_type, **{field: value}), field)
    assert (held or "") == (value if isinstance(value, str) else "")


@pytest.mark.rule("PAY-4")
@pytest.mark.parametrize(("event_type", "field"), of(OBJECTS))
@pytest.mark.parametrize("value", ['"text"', "1", "[]", "[{}]", "true", "false"])
def test_only_an_object_is_taken_for_an_object(event_type: str, field: str, value: str) -> None:
    with pytest.raises(Malformed, match=f"{field} must be an object"):
        raw(event_type, field, value)


@pytest.mark.rule("PAY-10")
@pytest.mark.parametrize(("event_type", "field"), of(OBJECTS))
@pytest.mark.parametrize(
    ("value", "held"), [("null", None), ("{}", "{}"), (' {"a":1}', '{"a":1}'), ('{"b":[1]}', '{"b":[1]}')]
)
def test_an_object_is_kept_as_it_came_and_null_is_absent(
    event_type: str, field: str, value: str, held: str | None
) -> None:
    assert fields.object_text(getattr(raw(event_type, field, value), field)) == held
    assert fields.object_text(getattr(decode(event_type, **{field: ABSENT}), field)) is None


@pytest.mark.rule("PAY-10")
@pytest.mark.parametrize(("event_type", "field"), of(OBJECTS))
def test_numbers_inside_free_objects_are_kept_exactly(event_type: str, field: str) -> None:
    """Beyond 2^53 the existing service rounds them (PAY-10)."""
    text = '{"n":12345678901234567890,"x":0.1234567890123456789,"big":1e400}'
    assert fields.object_text(getattr(raw(event_type, field, text), field)) == text


@pytest.mark.rule("PAY-4")
@pytest.mark.parametrize(("event_type", "field"), of(FLAGS))
def test_a_flag_is_true_false_or_absent_and_nothing_else(event_type: str, field: str) -> None:
    for value in (True, False, None):
        assert getattr(decode(event_type, **{field: value}), field) is value
    assert getattr(decode(event_type, **{field: ABSENT}), field) is None
    wrong: Any
    for wrong in (0, 1, "true", {}):
        with pytest.raises(Malformed, match=field):
            decode(event_type, **{field: wrong})


@pytest.mark.parametrize(("event_type", "field"), of(COUNTS))
@pytest.mark.parametrize(
    ("value", "held"),
    [
        ("0", 0),
        ("-0", 0),
        ("null", 0),
        ("1", 1),
        ("-3", -3),
        ("2.0", 2),
        ("1e2", 100),
        ("2147483647", 2**31 - 1),
    ],
)
def test_a_count_is_any_integral_number_of_32_bits(
    event_type: str, field: str, value: str, held: int
) -> None:
    assert raw(event_type, field, value).unread_count == held


@pytest.mark.rule("PAY-3")
@pytest.mark.parametrize(("event_type", "field"), of(COUNTS))
def test_an_absent_count_is_zero(event_type: str, field: str) -> None:
    assert decode(event_type, **{field: ABSENT}).unread_count == 0


@pytest.mark.rule("PAY-7")
@pytest.mark.parametrize(("event_type", "field"), of(COUNTS))
@pytest.mark.parametrize(
    "value", ['"3"', "1.5", "true", "{}", "[]", "2147483648", "-2147483649", "1e10", "1e999", "9" * 400]
)
def test_what_is_no_32_bit_integer_is_no_count(event_type: str, field: str, value: str) -> None:
    with pytest.raises(Malformed, match=field):
        raw(event_type, field, value)


# ---------------------------------------------------------------- times

SECONDS = [
    ("0", 0),
    ("null", 0),
    ("1795500123", SENT_AT),
    ("1795500123.0", SENT_AT),
    ("1.795500123e9", SENT_AT),
    ('"1795500123"', SENT_AT),
    ("1795500123456", SENT_AT),
    ('"1795500123456"', SENT_AT),
    ("99999999999", 99_999_999_999),
    ("100000000000", 100_000_000),
    ("9223372036854775807", 9_223_372_036_854_775),
    ('{"low":1730000000,"high":0,"unsigned":true}', 1_730_000_000),
    ('{"low":1730000000}', 1_730_000_000),
    ('{"low":-1,"high":0,"unsigned":true}', 4_294_967_295),
    ('{"low":5,"high":1,"unsigned":false}', 2**32 + 5),
    ('{"low":192979904,"high":418,"unsigned":false}', (418 * 2**32 + 192_979_904) // 1000),
]
NO_SECONDS = [
    '"text"',
    '""',
    '"1.5"',
    '" 1"',
    '"0x10"',
    '"\u0661"',
    '"--1"',
    "1.5",
    "true",
    "[]",
    "{}",
    '{"seconds":1}',
    '{"low":"1"}',
    "9223372036854775808",
    "1e30",
    "1e999",
    '"99999999999999999999"',
    '"' + "9" * 5000 + '"',
    '{"low":-1,"high":-1,"unsigned":true}',
]


@pytest.mark.rule("PAY-8")
@pytest.mark.parametrize(("event_type", "field"), of(TIMES))
@pytest.mark.parametrize(("value", "held"), SECONDS)
def test_a_time_is_seconds_however_it_is_written(event_type: str, field: str, value: str, held: int) -> None:
    """A number, digits or a protobuf Long; milliseconds are divided (MSG-4, PAY-8)."""
    assert getattr(raw(event_type, field, value), field) == held


@pytest.mark.rule("PAY-3")
@pytest.mark.parametrize(("event_type", "field"), of(TIMES))
def test_an_absent_time_is_zero(event_type: str, field: str) -> None:
    assert getattr(decode(event_type, **{field: ABSENT}), field) == 0


@pytest.mark.rule("PAY-7")
@pytest.mark.parametrize(("event_type", "field"), of(TIMES))
@pytest.mark.parametrize("value", NO_SECONDS)
def test_what_is_no_64_bit_integer_is_no_time(event_type: str, field: str, value: str) -> None:
    with pytest.raises(Malformed, match=field):
        raw(event_type, field, value)


@pytest.mark.parametrize("value", ["-1", '"-1"', '{"low":-1,"high":-1,"unsigned":false}'])
def test_a_negative_time_is_kept_but_for_a_new_chat(value: str) -> None:
    assert raw("v1.messages.upsert", "message_timestamp", value).message_timestamp == -1
    assert raw("v1.chats.update", "conversation_timestamp", value).conversation_timestamp == -1
    with pytest.raises(Invalid, match="conversation_timestamp must not be negative"):
        raw("v1.chats.upsert", "conversation_timestamp", value)


# ---------------------------------------------------------------- rules of single events


@pytest.mark.rule("PAY-12")
@pytest.mark.parametrize("flow", ["in", "Out", "INOUT", " IN"])
def test_flow_is_in_or_out_exactly(flow: str) -> None:
    with pytest.raises(Invalid, match="flow must be IN or OUT"):
        decode("v1.messages.upsert", flow=flow)
    assert decode("v1.messages.upsert", flow="OUT").flow == "OUT"


@pytest.mark.rule("PAY-13")
@pytest.mark.parametrize("key", [{}, {"fromMe": True}, {"id": ""}, {"id": None}])
def test_a_key_needs_its_id(key: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match=r"key\.id is required"):
        decode("v1.messages.upsert", key=key)


@pytest.mark.parametrize("key", ["text", 1, [], {"id": 1}, {"id": "a", "fromMe": "yes"}])
def test_a_key_has_the_promised_types(key: Any) -> None:
    with pytest.raises(Malformed, match="key"):
        decode("v1.messages.upsert", key=key)


@pytest.mark.rule("PAY-13")
def test_a_key_may_be_absent_and_written_in_snake_case() -> None:
    assert decode("v1.messages.upsert", key=ABSENT).key is None
    assert decode("v1.messages.upsert", key=None).key is None
    key = decode("v1.messages.upsert", key={"id": "a", "from_me": True, "remote_jid": "b"}).key
    assert (key.from_me, key.remote_jid) == (True, "b")


def test_a_campaign_has_the_promised_types() -> None:
    campaign = decode("v1.messages.upsert", campaign={"is_campaign": True, "tags": "a,b"}).campaign
    assert (campaign.is_campaign, campaign.tags, campaign.origin) == (True, "a,b", None)
    wrong: Any
    for wrong in ("promo", [], {"is_campaign": "yes"}, {"tags": ["a"]}):
        with pytest.raises(Malformed, match="campaign"):
            decode("v1.messages.upsert", campaign=wrong)


def test_a_new_contact_name_must_be_there_but_may_be_empty() -> None:
    assert decode("v1.contacts.update", push_name="").push_name == ""
    for missing in (ABSENT, None):
        with pytest.raises(Invalid, match="push_name is required"):
            decode("v1.contacts.update", push_name=missing)


@pytest.mark.parametrize(
    ("event_type", "payload", "missing"),
    [
        ("v1.messages.update", {"id": "M", "status": "read"}, "message_id"),
        ("v1.chats.update", {"id": "C", "agent_id": "A"}, "chat_id"),
        (
            "v1.contacts.upsert",
            {"id": "C", "phone_number": "1", "agent_id": "A", "push_name": "x"},
            "chat_id",
        ),
        ("v1.chats.upsert", {"chat_id": "C", "jid": "1@g.us", "agent_id": "A"}, "phone_number"),
        ("v1.chats.upsert", {"chat_id": "C", "jid": "j", "phone_number": "1"}, "agent_id"),
        ("v1.chats.update", {"chat_id": "C"}, "agent_id"),
    ],
)
def test_other_descriptions_of_the_fields_do_not_count(
    event_type: str, payload: dict[str, Any], missing: str
) -> None:
    """`id` is no key, groups need their phone number, chats their agent."""
    with pytest.raises(Invalid, match=f"{missing} is required"):
        payloads.decode(event_type, body(payload), COMPANY)


@pytest.mark.rule("PAY-2")
def test_old_names_of_phones_and_unknown_fields_are_ignored() -> None:
    message = decode(
        "v1.messages.upsert", **{"from": "1", "to": "2", "from_phone": ABSENT, "custom_name": [1]}
    )
    assert message.from_phone is None
    assert decode("v1.chats.upsert", custom_name="x", assigned_to="y").chat_id
    assert decode("v1.chats.update", push_name=7).chat_id


# ---------------------------------------------------------------- decoding


@pytest.mark.rule("PAY-1")
@pytest.mark.parametrize("event_type", EVENT_TYPES)
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"  ",
        b"not json",
        b"{",
        b'{"a":1',
        b"{'a':1}",
        b"{}x",
        b"{}{}",
        b"[]",
        b'"text"',
        b"1",
        b"true",
        b"nul",
        b"NaN",
        b'{"agent_id":NaN}',
        b'{"agent_id":"a\x00b"}',
        b'{"agent_id":"a\nb"}',
        b'{"agent_id":"\\x"}',
        b'{"agent_id":"\\u12"}',
        b"\x00",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_json_object_is_malformed(event_type: str, text: bytes) -> None:
    with pytest.raises(Malformed):
        payloads.decode(event_type, text, COMPANY)


@pytest.mark.rule("PAY-1")
@pytest.mark.parametrize("event_type", EVENT_TYPES)
@pytest.mark.parametrize("field", ["agent_id", "unknown", "message_obj", "messages", "chats", "contacts"])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_twenty_thousand_levels_are_malformed(event_type: str, field: str, brackets: str) -> None:
    opening, closing = ("[", "]") if brackets == "[]" else ('{"a":', "}")
    text = f'{{"{field}":{opening * 20_000}1{closing * 20_000}}}'
    with pytest.raises(Malformed):
        payloads.decode(event_type, text.encode(), COMPANY)


@pytest.mark.rule("PAY-1")
@pytest.mark.parametrize("event_type", REALTIME)
def test_null_counts_as_an_empty_object(event_type: str) -> None:
    with pytest.raises(Invalid):
        payloads.decode(event_type, b" null\n", COMPANY)


@pytest.mark.rule("PAY-2")
def test_the_last_of_repeated_fields_wins() -> None:
    assert raw("v1.chats.upsert", "push_name", '"first","push_name":"last"').push_name == "last"


@pytest.mark.rule("PAY-2")
def test_field_names_are_matched_by_case() -> None:
    with pytest.raises(Invalid, match="chat_id is required"):
        decode("v1.chats.upsert", chat_id=ABSENT, Chat_ID="C")


@pytest.mark.rule("PAY-9")
def test_nul_is_removed_and_half_a_surrogate_pair_replaced() -> None:
    chat = raw("v1.chats.upsert", "push_name", r'"Sa\u0000ri \ud83d"', last_message={"a\0": ["\0b"]})
    assert chat.push_name == "Sari \ufffd"
    assert fields.object_text(chat.last_message) == '{"a": ["b"]}'


@pytest.mark.rule("PAY-9")
def test_bytes_that_are_no_text_are_replaced() -> None:
    text = body(builders.chat(push_name="Sari?")).replace(b"?", b"\xff")
    assert payloads.decode("v1.chats.upsert", text, COMPANY).push_name == "Sari\ufffd"  # type: ignore[union-attr]


def test_an_id_of_nul_alone_is_missing() -> None:
    with pytest.raises(Invalid, match="chat_id is required"):
        decode("v1.chats.upsert", chat_id="\0")


@pytest.mark.rule("PAY-14")
def test_an_error_text_never_repeats_a_value() -> None:
    wrong: dict[str, Any]
    for wrong in (
        {"push_name": 4711_4711},
        {"company_id": "4711_4711"},
        {"conversation_timestamp": "4711x4711"},
    ):
        with pytest.raises(EventError) as caught:
            decode("v1.chats.upsert", **wrong)
        assert "4711" not in str(caught.value)


# ---------------------------------------------------------------- company


@pytest.mark.rule("PAY-6")
@pytest.mark.parametrize("event_type", REALTIME)
@pytest.mark.parametrize("company", [ABSENT, None, ""])
def test_an_absent_company_is_that_of_the_subject(event_type: str, company: Any) -> None:
    assert decode(event_type, company_id=company).company_id == COMPANY


@pytest.mark.rule("PAY-6")
@pytest.mark.parametrize("event_type", REALTIME)
@pytest.mark.parametrize("company", ["Other", COMPANY.lower(), COMPANY + " "])
def test_another_company_is_refused_whatever_its_case(event_type: str, company: str) -> None:
    with pytest.raises(Invalid, match="company_id"):
        decode(event_type, company_id=company)


@pytest.mark.rule("PAY-6")
@pytest.mark.parametrize("event_type", HISTORICAL)
def test_a_history_item_gets_the_company_too(event_type: str) -> None:
    """The existing service refuses the whole batch (PAY-6)."""
    item = ITEMS[event_type](company_id=ABSENT)
    [held] = history(event_type, [item]).items
    assert held.event.company_id == COMPANY  # type: ignore[union-attr]


# ---------------------------------------------------------------- agent of an invalid event (9.5)


@pytest.mark.parametrize("event_type", [name for name in REALTIME if name != "v1.messages.update"])
def test_an_invalid_event_names_its_agent(event_type: str) -> None:
    with pytest.raises(Invalid) as caught:
        decode(event_type, company_id="Other")
    assert caught.value.account[0] == builders.AGENT
    assert caught.value.account[1] == builders.BUILDERS[event_type]().get("jid", "")


def test_an_invalid_event_without_an_agent_names_none() -> None:
    with pytest.raises(Invalid) as caught:
        payloads.decode("v1.messages.upsert", b"{}", COMPANY)
    assert caught.value.account == ("", "")


# ---------------------------------------------------------------- history

ITEMS: dict[str, Any] = {
    "v1.history.messages": builders.message,
    "v1.history.chats": builders.chat,
    "v1.history.contacts": builders.contact,
}


def history(event_type: str, items: Any, **more: Any) -> History:
    field = event_type.rpartition(".")[2]
    batch = payloads.decode(event_type, body({field: items, **more}), COMPANY)
    assert isinstance(batch, History)
    batch.unpack()
    return batch


@pytest.mark.rule("HIS-1")
@pytest.mark.parametrize("event_type", HISTORICAL)
def test_every_item_of_a_batch_is_an_event(event_type: str) -> None:
    batch = payloads.decode(event_type, body(builders.BUILDERS[event_type]()), COMPANY)
    assert isinstance(batch, History)
    assert batch.field == event_type.rpartition(".")[2]
    assert not [item for item in batch.unpack() if isinstance(item.event, EventError)]


@pytest.mark.rule("HIS-3")
@pytest.mark.parametrize("event_type", HISTORICAL)
@pytest.mark.parametrize("text", [b"{}", b"null", b'{"F":null}', b'{"F":[]}', b'{"F":[ ],"other":1}'])
def test_a_batch_without_items_is_no_error(event_type: str, text: bytes) -> None:
    text = text.replace(b"F", event_type.rpartition(".")[2].encode())
    batch = payloads.decode(event_type, text, COMPANY)
    assert isinstance(batch, History)
    assert batch.unpack() == []


@pytest.mark.parametrize("event_type", HISTORICAL)
@pytest.mark.parametrize("items", ["text", 1, {}, {"0": {}}, True])
def test_a_batch_whose_items_are_no_array_is_malformed(event_type: str, items: Any) -> None:
    with pytest.raises(Malformed):
        history(event_type, items)


@pytest.mark.rule("HIS-1")
@pytest.mark.parametrize("event_type", HISTORICAL)
def test_a_bad_item_carries_its_own_error_and_its_text(event_type: str) -> None:
    good = ITEMS[event_type]()
    bad = [None, {}, "text", 1, [], ITEMS[event_type](agent_id=7), ITEMS[event_type](company_id="Other")]
    batch = history(event_type, [good, *bad, good])
    kinds = [type(item.event) for item in batch.items]
    assert kinds[1:-1] == [Invalid, Invalid, Malformed, Malformed, Malformed, Malformed, Invalid]
    assert kinds[0] is kinds[-1] is type(batch.items[0].event)
    assert [json.loads(item.raw) for item in batch.items] == [good, *bad, good]


def _seen(item: Item) -> tuple[bytes, type, bytes]:
    event = item.event
    return (
        item.raw,
        type(event),
        str(event).encode() if isinstance(event, EventError) else msgspec.json.encode(event),
    )


@pytest.mark.parametrize("event_type", HISTORICAL)
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_a_batch_unpacked_in_pieces_is_the_one_unpacked_at_once(event_type: str, count: int) -> None:
    items = [ITEMS[event_type](), None, "text", ITEMS[event_type](agent_id=7), {}, ITEMS[event_type](), 1]
    text = body({event_type.rpartition(".")[2]: items})
    whole = payloads.decode(event_type, text, COMPANY)
    batch = payloads.decode(event_type, text, COMPANY)
    assert isinstance(whole, History)
    whole.unpack()
    assert isinstance(batch, History)
    pieces = []
    while not batch.unpacked:
        pieces.append(batch.unpack(count))
    assert [len(piece) for piece in pieces[:-1]] == [count] * (len(pieces) - 1)
    assert batch.items == [item for piece in pieces for item in piece]
    assert [_seen(item) for item in batch.items] == [_seen(item) for item in whole.items]
    assert batch.unpack(count) == []


@pytest.mark.rule("PSS-1")
def test_only_a_messages_batch_asks_for_the_later_look() -> None:
    batch = history("v1.history.messages", [], is_last_batch=True, agent_id="A")
    assert (batch.is_last_batch, batch.agent_id) == (True, "A")
    batch = history("v1.history.chats", [], is_last_batch=True, agent_id="A")
    assert (batch.is_last_batch, batch.agent_id) == (False, "")
    for wrong in ({"is_last_batch": "yes"}, {"agent_id": 1}):
        with pytest.raises(Malformed):
            history("v1.history.messages", [], **wrong)


def test_a_number_out_of_range_in_an_item_spoils_only_that_item() -> None:
    batch = history("v1.history.chats", [builders.chat(unread_count=2**40), builders.chat()])
    assert [type(item.event) for item in batch.items] == [Malformed, models.ChatUpsert]


def test_an_item_of_a_cleaned_batch_is_clean() -> None:
    [item] = history("v1.history.contacts", [builders.contact(push_name="a\0b")]).items
    assert item.raw == sanitize(item.raw)
    assert item.event.push_name == "ab"  # type: ignore[union-attr]
