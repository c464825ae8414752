"""What the tables hold for some worlds, and where that differs from the model."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tables.queries import quoted
from tests.properties.model import Contact, Expected, Pair, Row, Version, seconds

Record = dict[str, Any]

_KEYS: Final = {"messages": ("message_id", "m"), "chats": ("chat_id", "c"), "agents": ("agent_id", "a")}
_JSON: Final = (
    "message_obj",
    "edited_message_obj",
    "key",
    "last_message",
    "last_metadata",
    "dlq_payload",
    "original_payload",
)
_EMPTY: Final = ("", None, False, 0)


@dataclass
class Stored:
    """The rows of some worlds, by table and key."""

    rows: dict[str, dict[str, list[Record]]]
    contacts: dict[Pair, list[Record]]
    logs: dict[Pair, list[Record]]
    steps: dict[str, set[Version]]
    keys: dict[str, Any]
    exhausted: dict[str, list[Record]]


async def read(connection: Any, schema: str, prefixes: Sequence[str], since: int) -> Stored:
    """Everything about the worlds with these prefixes, and the exhausted events behind the id `since`."""

    async def rows(table: str, condition: str, argument: object) -> list[Record]:
        records = await connection.fetch(
            f"SELECT * FROM {quoted(schema)}.{table} WHERE {condition}", argument
        )
        return [_decoded(record) for record in records]

    def names(letter: str) -> list[str]:
        return [f"{prefix}-{letter}{number}" for prefix in prefixes for number in (0, 1)]

    tables = {
        table: _grouped(await rows(table, f"{column} = ANY ($1)", names(letter)), column)
        for table, (column, letter) in _KEYS.items()
    }
    exhausted: dict[str, list[Record]] = defaultdict(list)
    for record in await rows("exhausted_events", "id > $1", since):
        exhausted["-".join(record["dlq_payload"]["event_version"].split("-")[:2])].append(record)
    steps: dict[str, set[Version]] = defaultdict(set)
    for step in await rows("chat_steps", "chat_id = ANY ($1)", names("c")):
        steps[step["chat_id"]].add(Version(step["ns"], step["sequence"]))
    keys = await rows("message_keys", "message_id = ANY ($1)", names("m"))
    return Stored(
        rows=tables,
        contacts=_paired(await rows("contacts", "agent_id = ANY ($1)", names("a"))),
        logs=_paired(await rows("onboarding_log", "agent_id = ANY ($1)", names("a"))),
        steps=steps,
        keys={key["message_id"]: key["message_date"] for key in keys},
        exhausted=exhausted,
    )


def _decoded(record: Mapping[str, Any]) -> Record:
    return {
        column: json.loads(value) if column in _JSON and value is not None else value
        for column, value in record.items()
    }


def _grouped(records: Iterable[Record], column: str) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record[column]].append(record)
    return groups


def _paired(records: Iterable[Record]) -> dict[Pair, list[Record]]:
    groups: dict[Pair, list[Record]] = defaultdict(list)
    for record in records:
        phone = record["phone_number"].translate(str.maketrans("", "", "+ ()"))
        groups[record["agent_id"], phone].append(record)
    return groups


def differences(expected: Expected, stored: Stored, prefix: str) -> Iterator[str]:
    """Each way in which the tables differ from what the events of one world ask for."""
    for table, rows in stored.rows.items():
        wanted = expected.rows[table]
        there = {key for key in rows if key.startswith(f"{prefix}-")}
        yield from (f"{table} {key}: no event asks for it" for key in there - wanted.keys())
        for key, row in wanted.items():
            found = rows.get(key, [])
            if len(found) != 1:
                yield f"{table} {key}: {len(found)} rows"
                continue
            for difference in _of_row(table, row, found[0]):
                yield f"{table} {key} {difference}"
            if table == "chats" and stored.steps.get(key, set()) != row.open_steps:
                yield f"chat_steps {key}: {stored.steps.get(key)} for {row.open_steps}"
            if table == "messages" and row.newest and stored.keys.get(key) != found[0]["message_date"]:
                yield f"message_keys {key}: {stored.keys.get(key)} for {found[0]['message_date']}"
    yield from _of_contacts(expected, stored, prefix)


def _of_row(table: str, row: Row, found: Record) -> Iterator[str]:
    for column, value in _values(table, row).items():
        if found[column] != value:
            yield f"{column}: {found[column]!r} for {value!r}"
    for column, choices in row.kept.items():
        if found[column] not in choices:
            yield f"{column}: {found[column]!r} is none of {choices!r}"
    if row.days and not row.closed:
        day = found["message_date"].toordinal() - 719_163  # 1970-01-01
        if (found["message_timestamp"], day) not in row.days:
            yield f"day: {found['message_timestamp']}, {day} is none of {row.days}"
    metadata = found["last_metadata"] or {}
    if not _is(metadata.get("version"), row.newest):
        yield f"version: {metadata.get('version')} for {row.newest}"
    for column, (value, version) in row.columns.items():
        known = metadata.get("versions", {}).get(column, metadata.get("version")) or None
        if value not in _EMPTY and not _is(known, version):
            yield f"version of {column}: {known} for {version}"


def _values(table: str, row: Row) -> Record:
    """What the columns that follow the newest event must hold: nothing, unless an event fed them."""
    empties: dict[str, Record] = {
        "messages": {
            "status": "", "message_text": "", "message_url": "", "message_type": "", "message_obj": None,
            "edited_message_obj": None, "is_deleted": False,
        },
        "chats": {"push_name": "", "group_name": "", "last_message": None},
        "agents": dict.fromkeys(
            ("qr_code", "status", "agent_name", "phone_number", "host_name", "version"), ""
        ),
    }  # fmt: skip
    empty = empties[table]
    values: Record = {
        column: row.columns[column][0] if column in row.columns else nothing
        for column, nothing in empty.items()
    }
    if table == "chats":
        values |= {"unread_count": row.unread, "conversation_timestamp": row.talked_at}
    return values


def _is(text: str | None, version: Version | None) -> bool:
    """Whether this is the version as it is written. Where the stream's age is known, some may not know it."""
    if version is None:
        return text is None
    return text == version.event or (version.made > 0 and text == f"{version.event}-{version.made}")


def _of_contacts(expected: Expected, stored: Stored, prefix: str) -> Iterator[str]:
    there = {pair for pair in (*stored.contacts, *stored.logs) if pair[0].startswith(f"{prefix}-")}
    yield from (f"contact {pair}: no event asks for it" for pair in there - expected.contacts.keys())
    for pair, contact in expected.contacts.items():
        found, logs = stored.contacts.get(pair, []), stored.logs.get(pair, [])
        if len(found) != 1:
            yield f"contacts {pair}: {len(found)} rows"
            continue
        if len(logs) != (contact.first is not None):
            yield f"onboarding_log {pair}: {len(logs)} rows"
        for difference in (*_of_contact(contact, found[0]), *_of_logs(contact, logs)):
            yield f"contacts {pair} {difference}"


def _of_contact(contact: Contact, found: Record) -> Iterator[str]:
    first = contact.first
    said = {} if first is None else first.said
    wanted = {
        "push_name": contact.push_name[0] if contact.push_name else "",
        "assigned_to": contact.assigned_to[0] if contact.assigned_to else "",
        "origin": contact.origin or "",
        "first_message_id": said.get("message_id", ""),
        "first_message_timestamp": seconds(said.get("message_timestamp")),
    }
    for column, value in wanted.items():
        if found[column] != value:
            yield f"{column}: {found[column]!r} for {value!r}"
    tags = [tag.strip() for tag in found["tags"].split(",") if tag.strip()]
    if len(tags) != len(set(tags)) or set(tags) != contact.tags:
        yield f"tags: {tags} for {contact.tags}"
    derived = f"{found['agent_id']}_{found['phone_number'].translate(str.maketrans('', '', '+ ()-'))}"
    if found["chat_id"] not in {*contact.chat_ids, derived, None}:
        yield f"chat_id: {found['chat_id']} is none of {contact.chat_ids}"
    if found["phone_number"] not in contact.phones:
        yield f"phone_number: {found['phone_number']} is none of {contact.phones}"
    metadata = found["last_metadata"]
    for column, fed in (("push_name", contact.push_name), ("assigned_to", contact.assigned_to)):
        known = metadata.get("versions", {}).get(column, metadata["version"])
        if fed and not _is(known, fed[1]):
            yield f"version of {column}: {known} for {fed[1]}"


def _of_logs(contact: Contact, logs: Sequence[Record]) -> Iterator[str]:
    for log in logs:
        first = contact.first
        if first is None:
            continue
        wanted = (
            first.said["message_id"],
            seconds(first.said.get("message_timestamp")),
        )
        found = (log["message_id"], log["timestamp"])
        version = log["last_metadata"].get("version")
        if found != wanted or not _is(version, first.version):
            yield f"onboarding_log: {found}, {version} for {wanted}, {first.version}"
