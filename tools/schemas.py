"""The machine-readable part of the specification: JSON Schemas of all payloads, and an AsyncAPI 3 document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import msgspec

from events.envelope import Envelope
from events.fields import Key
from events.history import HISTORICAL
from events.models import REALTIME
from events.subjects import EVENT_TYPES
from streams.version import VERSION
from tools.reference import keep_in_step

ROOT: Final = Path(__file__).parents[1] / "docs" / "specification"
ENVELOPE: Final = "dead-letter"
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def schemas() -> dict[str, Schema]:
    """Name -> JSON Schema of each event type and of the dead-letter envelope."""
    found = {name: _event(kind) for name, kind in REALTIME.items()}
    for name, history in HISTORICAL.items():
        item, found[name] = _event(history.item), _plain(history.batch)
        found[name]["$defs"] = item.pop("$defs", {})
        items = {"anyOf": [{"type": "array", "items": item}, {"type": "null"}]}
        found[name]["properties"][history.field] = items
    found[ENVELOPE] = _plain(Envelope)
    # Read by the tables (PRK-2).
    found[ENVELOPE]["properties"]["exhausted_id"] = {"type": "integer", "minimum": 1}
    return {name: {"$schema": _DIALECT, "title": name, **found[name]} for name in (*EVENT_TYPES, ENVELOPE)}


def _event(kind: type[msgspec.Struct]) -> Schema:
    schema = _plain(kind)
    _require(schema, getattr(kind, "required", ()))
    for name in getattr(kind, "present", ()):
        schema["required"].append(name)
        schema["properties"][name] = {"type": "string"}
    if key := schema.get("$defs", {}).get(Key.__name__):
        _require(key, Key.required)
    return schema


def _plain(kind: type[msgspec.Struct]) -> Schema:
    # msgspec cannot describe a default of raw text. One of null is the same as absent (PAY-3), and left out.
    with patch(
        "msgspec._json_schema.to_builtins", lambda value, **_: value if value != msgspec.Raw() else None
    ):
        (reference,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    name = reference["$ref"].rpartition("/")[2]
    schema: Schema = {key: value for key, value in components.pop(name).items() if key != "title"}
    for each in (schema, *components.values()):
        for described in each["properties"].values():
            if described.get("default", 0) is None:
                del described["default"]
    schema["description"] = " ".join((kind.__doc__ or "").split("\n\n")[0].replace("`", "").split())
    if components:
        schema["$defs"] = components
    return schema


def _require(schema: Schema, names: Iterable[str]) -> None:
    """Make `names` texts that are present and not empty."""
    schema["required"] = list(names)
    for name in names:
        allowed = schema["properties"][name].get("enum")
        schema["properties"][name] = {"enum": allowed} if allowed else {"type": "string", "minLength": 1}


def asyncapi(examples: Mapping[str, Any]) -> Schema:
    """The AsyncAPI document: a channel for each base subject, a message for each payload."""
    channels: Schema = {}
    operations: Schema = {}
    messages: Schema = {}
    for schema in (*EVENT_TYPES, ENVELOPE):
        name, letter = schema.removeprefix("v1."), schema == ENVELOPE
        subject = "v1.dlq" if letter else schema
        channels[subject] = {
            "address": f"{subject}.{{company}}",
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "parameters": {"company": {"description": "The company as in COMPANY_ID; its case counts."}},
        }
        for action in ("receive", "send") if letter else ("receive",):
            operations[f"{action}.{name}"] = {
                "action": action,
                "channel": {"$ref": f"#/channels/{subject}"},
                "messages": [{"$ref": f"#/channels/{subject}/messages/{name}"}],
            }
        headers = ["Nats-Msg-Id", *(["Original-Nats-Msg-Id"] if letter else [])]
        messages[name] = {
            "name": schema,
            "headers": {
                "type": "object",
                "description": "Headers of NATS. JetStream drops a repeat of Nats-Msg-Id within two minutes.",
                "properties": {header: {"type": "string"} for header in headers},
            },
            "payload": {"$ref": f"schemas/{schema}.json"},
            "examples": [{"payload": examples[schema]}],
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "WhatsApp events processor",
            "version": VERSION,
            "description": "Events that are read from NATS JetStream, and dead letters that are written to it.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }


def examples() -> dict[str, Any]:
    """Name -> an example of each payload, as docs/producers.md shows it."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in (ROOT / "examples").glob("*.json")}


def documents() -> Iterator[tuple[Path, str]]:
    """Path and text of every document that is generated."""
    for name, schema in schemas().items():
        yield ROOT / "schemas" / f"{name}.json", _text(schema)
    yield ROOT / "asyncapi.json", _text(asyncapi(examples()))


def _text(document: Schema) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(keep_in_step(documents(), sys.argv[1:]))
