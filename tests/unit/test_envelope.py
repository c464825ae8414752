"""The dead-letter envelope (DLQ-1)."""

from __future__ import annotations

import base64
import datetime
import json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events import envelope
from events.envelope import Envelope
from events.errors import Malformed
from events.sanitize import sanitize
from tests import builders
from tests.builders import ABSENT, body

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=10,
)


def dead_letter(payload: bytes = b'{"a":1}', encoding: str | None = None) -> Envelope:
    return Envelope(
        source_subject="v1.chats.upsert.KopiNusa01",
        company="KopiNusa01",
        original_payload=msgspec.Raw(payload),
        original_payload_encoding=encoding,
        error="fatal: the cause",
        error_type="fatal",
        retry_count=1,
        max_retry=5,
        ts="2026-11-24T07:15:30.123456Z",
        event_version="1795500123000000000-7",
    )


def embedded(payload: bytes) -> bytes:
    """What a replay makes of an event that was given up."""
    written = envelope.encode(dead_letter(*envelope.embed(payload)))
    json.loads(written)
    return envelope.original(envelope.decode(written))


@given(
    st.builds(
        Envelope,
        source_subject=TEXT,
        company=TEXT,
        original_payload=JSON.filter(lambda value: value is not None).map(
            lambda value: msgspec.Raw(json.dumps(value).encode())
        ),
        error=TEXT,
        error_type=st.sampled_from(["fatal", "retryable"]),
        retry_count=st.integers(0, 2**31 - 1),
        max_retry=st.integers(0, 2**31 - 1),
        ts=TEXT.filter(bool),
        event_version=st.none() | TEXT,
        original_payload_encoding=st.none() | TEXT,
    )
)
def test_a_letter_that_is_written_can_be_read_back(written: Envelope) -> None:
    assert envelope.decode(envelope.encode(written)) == written


@given(st.dictionaries(TEXT, JSON).map(lambda value: json.dumps(value).encode()))
def test_a_json_event_comes_back_byte_for_byte(payload: bytes) -> None:
    assert embedded(payload) == payload


@pytest.mark.rule("OUT-6")
@given(st.binary())
@example(b"")
@example(b"not json")
@example(b"{")
@example(b"\xff\xfe")
@example(b'{"a":"\x00"}')
@example(b"\x00")
@example(b'{"a":"\\u00\\u000000"}')
def test_any_bytes_make_an_envelope_and_come_back(payload: bytes) -> None:
    """Byte for byte if they are no JSON; cleaned if they are. A JSON string loses its quotes."""
    again = embedded(payload)
    try:
        value = json.loads(sanitize(payload))
    except ValueError:
        assert again == payload
    else:
        # What is no object is malformed either way.
        assert again in (sanitize(payload), str(value).encode(), b"")


def test_twenty_thousand_levels_come_back_as_they_are() -> None:
    payload = b"[" * 20_000 + b"]" * 20_000
    assert embedded(payload) == payload


@pytest.mark.rule("DLQ-1")
@pytest.mark.parametrize(
    ("payload", "held", "encoding"),
    [
        (b'{"a": 1}', {"a": 1}, None),
        (b"null", None, None),
        (b"[1]", [1], None),
        (b"", "", None),
        (b"{oops", "{oops", None),
        (b'{"a":"x\ny"}', '{"a":"x\ny"}', None),
        (b"caf\xc3\xa9", "caf\u00e9", None),
        (b"\xff{", base64.b64encode(b"\xff{").decode(), "base64"),
        (b"a\x00b", base64.b64encode(b"a\x00b").decode(), "base64"),
        (rb'{"a":"\u0000\ud800"}', {"a": "\ufffd"}, None),
        (b'{"a":"\xff"}', {"a": "\ufffd"}, None),
    ],
)
def test_a_payload_is_embedded_as_json_text_or_base64(
    payload: bytes, held: object, encoding: str | None
) -> None:
    text, named = envelope.embed(payload)
    assert json.loads(text) == held
    assert named == encoding


def test_huge_numbers_are_embedded_exactly() -> None:
    payload = b'{"a":12345678901234567890,"b":1e400}'
    assert envelope.embed(payload) == (payload, None)
    assert embedded(payload) == payload


@pytest.mark.rule("DLQ-1")
def test_the_envelope_has_the_documented_fields_and_no_null() -> None:
    assert json.loads(envelope.encode(dead_letter())) == {
        "source_subject": "v1.chats.upsert.KopiNusa01",
        "company": "KopiNusa01",
        "original_payload": {"a": 1},
        "error": "fatal: the cause",
        "error_type": "fatal",
        "retry_count": 1,
        "max_retry": 5,
        "event_version": "1795500123000000000-7",
        "ts": "2026-11-24T07:15:30.123456Z",
    }


def test_the_present_is_written_in_utc() -> None:
    moment = envelope.now()
    assert moment.endswith("Z")
    distance = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(moment)
    assert abs(distance) < datetime.timedelta(minutes=1)


def test_a_moment_of_another_zone_is_written_in_utc() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=7))
    assert (
        envelope.written(datetime.datetime(2026, 11, 24, 14, 15, 30, tzinfo=zone)) == "2026-11-24T07:15:30Z"
    )


@pytest.mark.rule("DLQ-3")
@pytest.mark.parametrize("field", [*builders.envelope()])
@pytest.mark.parametrize("missing", [ABSENT, None])
def test_every_field_may_be_missing(field: str, missing: object) -> None:
    read = envelope.decode(body(builders.envelope(**{field: missing})))
    assert not getattr(read, "payload" if field == "original_payload" else field)


@pytest.mark.rule("DLQ-3")
def test_an_envelope_of_the_existing_service_is_read() -> None:
    read = envelope.decode(body(builders.envelope(event_version=ABSENT, next_retry_at="x", more=[1])))
    assert read.event_version is None
    assert json.loads(envelope.original(read)) == builders.message_update()


@pytest.mark.parametrize(
    "text", [b"", b"oops", b"[]", b"1", b"null x", b'{"retry_count":"1"}', b'{"company":1}']
)
def test_what_is_no_envelope_is_malformed(text: bytes) -> None:
    with pytest.raises(Malformed):
        envelope.decode(text)


def test_an_envelope_of_twenty_thousand_levels_is_malformed() -> None:
    with pytest.raises(Malformed):
        envelope.decode(b'{"original_payload":' + b"[" * 20_000 + b"]" * 20_000 + b"}")


@pytest.mark.parametrize("payload", [{"a": 1}, "===", "a", 7])
def test_a_payload_that_is_not_in_its_encoding_is_malformed(payload: object) -> None:
    read = envelope.decode(body(builders.envelope(payload, original_payload_encoding="base64")))
    with pytest.raises(Malformed):
        envelope.original(read)


def test_a_missing_payload_is_empty() -> None:
    assert envelope.original(envelope.decode(b"{}")) == b""
