"""The JSON Schemas and the AsyncAPI document say what the decoder does, and the examples are events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from events import envelope
from events.errors import EventError
from events.history import History
from events.payloads import decode
from events.subjects import EVENT_TYPES
from tests import builders
from tools import schemas

EXAMPLES = schemas.examples()
SCHEMAS = {name: json.loads((schemas.ROOT / "schemas" / f"{name}.json").read_text()) for name in EXAMPLES}
DOCUMENT = json.loads((schemas.ROOT / "asyncapi.json").read_text())


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(SCHEMAS[name])


@pytest.mark.parametrize("path", [path for path, _ in schemas.documents()], ids=lambda path: path.name)
def test_document_is_in_step_with_the_models(path: Path) -> None:
    assert dict(schemas.documents())[path] == path.read_text("utf-8"), "make format writes it"


def test_there_is_a_schema_and_an_example_of_each_payload() -> None:
    assert set(EXAMPLES) == {*EVENT_TYPES, "dead-letter"}
    assert {path.stem for path in (schemas.ROOT / "schemas").iterdir()} == set(EXAMPLES)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_schema_is_valid_and_takes_its_example(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    validator(name).validate(EXAMPLES[name])


@pytest.mark.rule("SUB-1")
@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_example_is_an_event_without_a_fault(event_type: str) -> None:
    event = decode(event_type, json.dumps(EXAMPLES[event_type]).encode(), "KopiNusa01")
    items = event.unpack() if isinstance(event, History) else []
    assert not [item for item in items if isinstance(item.event, EventError)]


@pytest.mark.rule("DLQ-1")
def test_example_of_an_envelope_is_read() -> None:
    read = envelope.decode(json.dumps(EXAMPLES["dead-letter"]).encode())
    assert read.source_subject == "v1.messages.update.KopiNusa01"
    assert json.loads(envelope.original(read))["message_id"] == "3EB0FFFF00"


@pytest.mark.rule("PAY-2", "PAY-3")
@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_schema_takes_what_the_builders_of_the_tests_make(event_type: str) -> None:
    validator(event_type).validate(builders.BUILDERS[event_type](unknown={"field": 1}))


@pytest.mark.rule("PAY-4", "PAY-5")
@pytest.mark.parametrize("event_type", [name for name in EVENT_TYPES if "history" not in name])
def test_schema_and_decoder_refuse_the_same_faults_of_a_required_field(event_type: str) -> None:
    for name in SCHEMAS[event_type]["required"]:
        faults: tuple[Any, ...] = (7, None, {}, [])
        for fault in faults:
            broken = EXAMPLES[event_type] | {name: fault}
            assert not validator(event_type).is_valid(broken), (name, fault)
            with pytest.raises(EventError):
                decode(event_type, json.dumps(broken).encode(), "KopiNusa01")
        del broken[name]
        assert not validator(event_type).is_valid(broken)


def test_schema_refuses_a_bad_item_of_a_history_batch() -> None:
    assert not validator("v1.history.chats").is_valid({"chats": [{"chat_id": "c"}]})


def test_schema_takes_each_form_of_a_timestamp() -> None:
    for value in (1713135736, 1.73e9, "1713135736", {"low": 1, "high": 2, "unsigned": True}, None):
        validator("v1.messages.upsert").validate(
            EXAMPLES["v1.messages.upsert"] | {"message_timestamp": value}
        )


# The rules of AsyncAPI 3 that this document can break; the official meta schema is not part of the repository.


def test_asyncapi_has_its_required_fields_and_no_others() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(DOCUMENT["info"])
    assert set(DOCUMENT) <= {
        "asyncapi",
        "id",
        "info",
        "servers",
        "defaultContentType",
        "channels",
        "operations",
        "components",
    }
    assert all(re.fullmatch(r"[\w.-]+", name) for name in DOCUMENT["components"]["messages"])


def test_asyncapi_has_a_channel_for_each_subject_with_its_parameter() -> None:
    assert set(DOCUMENT["channels"]) == {*EVENT_TYPES, "v1.dlq"}
    for subject, channel in DOCUMENT["channels"].items():
        assert set(channel) <= {"address", "title", "description", "messages", "parameters", "servers"}
        assert channel["address"] == f"{subject}.{{company}}"
        assert set(channel["parameters"]) == set(re.findall(r"\{(\w+)\}", channel["address"]))
        # In AsyncAPI 3 a parameter is a text: it has no schema.
        assert all(set(each) <= {"description", "enum", "default"} for each in channel["parameters"].values())


def test_asyncapi_operations_name_messages_of_their_own_channel() -> None:
    for operation in DOCUMENT["operations"].values():
        assert set(operation) <= {"action", "channel", "messages", "title", "description"}
        assert operation["action"] in ("send", "receive")
        channel = operation["channel"]["$ref"]
        assert [each["$ref"].startswith(f"{channel}/messages/") for each in operation["messages"]] == [True]


def test_every_reference_of_asyncapi_leads_somewhere() -> None:
    for reference in references(DOCUMENT):
        if not reference.startswith("#/"):
            assert (schemas.ROOT / reference).exists(), reference
            continue
        found = DOCUMENT
        for part in reference[2:].split("/"):
            found = found[part]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from references(each)
