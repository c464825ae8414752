"""What looks like a credential leaves the process neither in a log line nor in the reason of a dead letter."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import msgspec
import pytest

from events import envelope, payloads
from events.errors import DatabaseError, EventError, Rejected
from events.history import History
from events.redaction import redacted, redacted_value
from streams import logs
from tables.errors import translate
from tests import builders

SECRET = "hunter2hunter2"
FIELDS = {
    "apikey": SECRET,
    "token": SECRET,
    "Authorization": f"Bearer {SECRET}",
    "password": SECRET,
    "client_secret": SECRET,
    "sessionToken": {"value": SECRET},
}


@pytest.mark.parametrize(
    "text",
    [
        f'{{"apikey":"{SECRET}","message_id":"M"}}',
        f'{{"apikey" : "a\\"{SECRET}"}}',
        f"{{'Authorization': 'Bearer {SECRET}', 'k': 1}}",
        f"authorization: Basic {SECRET}",
        f"GET /?token={SECRET}&x=1",
        f"X-Api-Key: {SECRET}",
        f'quoted {{\\"access_token\\":\\"{SECRET}\\"}} once more',
        f'"credentials": {{ "user": "{SECRET}" }} behind',
        f"tokens = ['{SECRET}', '{SECRET}']",
        f"sent bearer {SECRET}",
        f"nats://user:{SECRET}@nats:4222, postgres://u:p@{SECRET}@db/wa",
        f"PASSWORD={SECRET}",
        f"password: {SECRET}",
    ],
)
def test_a_credential_is_blotted_out(text: str) -> None:
    assert SECRET not in redacted(text)
    assert "***" in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "validation failed: message_id is required; key.id is required",
        "cannot decode: Expected `str`, got `int` - at `$.status`",
        'SQLSTATE 28P01: password authentication failed for user "app"',
        "messages[3]: validation failed: flow must be IN or OUT",
        "mail to sari@example.org",
        "",
    ],
)
def test_other_texts_are_left_alone(text: str) -> None:
    assert redacted(text) == text


def test_what_is_around_a_credential_stays() -> None:
    text = redacted(f'{{"apikey":"{SECRET}","message_id":"M1"}}')

    assert text == '{"apikey":***,"message_id":"M1"}'


def test_nested_fields_are_blotted_out_by_their_names() -> None:
    value = {"list": [{"token": 12}, f"apikey={SECRET}"], "count": 3, "none": None}

    assert redacted_value("event", value) == {
        "list": [{"token": "***"}, "apikey=***"],
        "count": 3,
        "none": None,
    }


def test_a_long_hostile_text_takes_no_longer_than_its_length_says() -> None:
    began = time.perf_counter()
    for text in ("token" + "a" * 200_000, "token\\" * 50_000, 'token":"' + "\\" * 200_000, "token " * 50_000):
        redacted(text)

    assert time.perf_counter() - began < 30  # some milliseconds, were it not for busy machines


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure("info", stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.rule("RUN-18")
def test_a_log_line_shows_no_credential_wherever_it_stands(output: io.StringIO) -> None:
    logger = logging.getLogger("streams.x")
    logger.warning(
        "got %s", json.dumps(FIELDS), extra={"event_": FIELDS, "apikey": SECRET, "subject": "v1.x"}
    )
    try:
        raise RuntimeError(f"gateway said {FIELDS}")
    except RuntimeError:
        logger.exception("trouble with %r", FIELDS)

    assert SECRET not in output.getvalue()
    assert json.loads(output.getvalue().splitlines()[0])["subject"] == "v1.x"


@pytest.mark.rule("PAY-14")
@pytest.mark.parametrize("event_type", builders.BUILDERS)
@pytest.mark.parametrize("value", [SECRET, {"a": SECRET}, [SECRET], 1, True])
def test_the_reason_of_a_refused_event_holds_no_value_of_it(event_type: str, value: Any) -> None:
    """Whatever field is of the wrong type: msgspec's texts and ours name fields."""
    payload = {**builders.BUILDERS[event_type](), **FIELDS}
    for name in payload:
        told = _told(event_type, {**payload, name: value, "flow": SECRET, "key": {"id": "", "token": SECRET}})
        assert SECRET not in told


@pytest.mark.parametrize("body", [f'{{"apikey":"{SECRET}"', f'"{SECRET}"', f'{{"message_id":{SECRET}}}'])
def test_the_reason_of_what_is_no_json_holds_nothing_of_it(body: str) -> None:
    with pytest.raises(EventError) as caught:
        payloads.decode("v1.messages.upsert", body.encode(), builders.COMPANY)

    assert SECRET not in str(caught.value)


def _told(event_type: str, payload: dict[str, Any]) -> str:
    try:
        event = payloads.decode(event_type, builders.body(payload), builders.COMPANY)
    except EventError as error:
        return str(error)
    items = event.unpack() if isinstance(event, History) else []
    return " ".join(str(item.event) for item in items if isinstance(item.event, EventError))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (asyncpg.UniqueViolationError, f'duplicate key: Key (apikey)=("{SECRET}")'),
        (asyncpg.InvalidTextRepresentationError, f'invalid input syntax for type json: "{SECRET}"'),
        (asyncpg.DataError, f"invalid input for query argument $1: '{SECRET}'"),
        (asyncpg.RaiseError, f"trigger refuses {SECRET}"),
        (asyncpg.ExternalRoutineError, SECRET),
    ],
)
def test_the_reason_of_a_database_error_holds_no_row_value(
    kind: type[asyncpg.PostgresError], message: str
) -> None:
    error = kind(message)
    error.detail = f"Failing row contains ({SECRET})."

    told = translate(error)

    assert told is not None
    assert SECRET not in str(told)
    assert f"SQLSTATE {kind.sqlstate}" in str(told)
    assert kind.__name__ in str(told)


@pytest.mark.rule("PAY-14")
def test_an_error_is_blotted_out_when_it_is_made_and_the_payload_stays_whole() -> None:
    body = builders.body({**builders.message(), **FIELDS})
    error = DatabaseError(f"database: {FIELDS}")
    letter = envelope.Envelope(
        source_subject=f"v1.messages.upsert.{builders.COMPANY}",
        company=builders.COMPANY,
        original_payload=msgspec.Raw(envelope.embed(body)[0]),
        error=str(error),
        error_type=error.error_type,
        retry_count=1,
        max_retry=5,
    )
    sent = json.loads(envelope.encode(letter))

    assert SECRET not in sent["error"]
    assert sent["original_payload"] == json.loads(body)
    assert str(Rejected("database: SQLSTATE 22P02")) == "fatal: database: SQLSTATE 22P02"
