"""The stored row is the same whatever the order of the events, however often each came, and in whatever batches.

Every order of a set of events is played on a key of its own, all at the same time: step by step, in one batch,
and in random batches with repeats. An update that comes before its row is refused and comes again later, as
JetStream would bring it.
"""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from itertools import permutations
from typing import Any

import pytest

from tables.accounts import Accounts
from tables.chats import Chats
from tables.connection.pool import Database
from tables.last_writer_wins import EventStamp, Version
from tables.messages import Messages
from tables.mutations import AccountRow, ChatPatch, ChatRow, MessagePatch, MessageRow, WriteRejection

TODAY = datetime.datetime.now(datetime.UTC).date()
# Not promised: when it was first and last written, and under which id.
NOT_COMPARED = {"id", "created_at", "updated_at"}
MOST_ORDERS = 720

Event = Any  # a row or patch; its key and ref are replaced for each order
Write = Callable[[Any, Sequence[Any]], Awaitable[list[WriteRejection]]]
Batches = list[list[Event]]


def at(ns: int, *, history: bool = False) -> EventStamp:
    metadata = {"stream": "wa_events_stream", "stream_sequence": ns, "message_id": f"msg-{ns}"}
    return EventStamp(Version(ns, ns), json.dumps(metadata), history)


def message(stamp: EventStamp, **changes: Any) -> MessageRow:
    values: dict[str, Any] = {
        "from_phone": "6281", "to_phone": "6289", "chat_id": "c", "jid": "j", "flow": "IN",
        "message_text": "", "message_url": "", "message_type": "", "agent_id": "a", "company_id": "Kopi",
        "message_obj": None, "key": None, "status": "", "message_timestamp": 1795500123,
        "message_date": TODAY,
    }  # fmt: skip
    return MessageRow(0, stamp, "", **{**values, **changes})


def message_update(stamp: EventStamp, **changes: Any) -> MessagePatch:
    values: dict[str, Any] = {
        "company_id": "Kopi", "status": "", "edited_message_obj": None, "is_deleted": None, "message_url": "",
    }  # fmt: skip
    return MessagePatch(0, stamp, "", **{**values, **changes})


def chat(stamp: EventStamp, **changes: Any) -> ChatRow:
    values: dict[str, Any] = {
        "jid": "j", "company_id": "Kopi", "agent_id": "a", "phone_number": "6281", "push_name": "",
        "is_group": False, "group_name": "", "last_message": None, "conversation_timestamp": 0,
        "unread_count": 0, "not_spam": False,
    }  # fmt: skip
    return ChatRow(0, stamp, "", **{**values, **changes})


def chat_update(stamp: EventStamp, unread_count: int, **changes: Any) -> ChatPatch:
    values: dict[str, Any] = {"company_id": "Kopi", "conversation_timestamp": 0, "last_message": None}
    is_step = unread_count == 1
    count = None if is_step else max(0, unread_count)
    return ChatPatch(0, stamp, "", is_step=is_step, unread_count=count, **{**values, **changes})


def agent(stamp: EventStamp, **changes: str) -> AccountRow:
    values = dict.fromkeys(("qr_code", "status", "agent_name", "phone_number", "host_name", "version"), "")
    return AccountRow(0, stamp, "", "Kopi", **{**values, **changes})


MESSAGE_EVENTS: dict[str, list[Event]] = {
    "statuses": [
        message(at(10), status="sent", message_text="halo"),
        message_update(at(20), status="delivered"),
        message_update(at(30), status="read", message_url="u30"),
        message_update(at(40), message_url="u40", is_deleted=True),
        message_update(at(50), is_deleted=False, edited_message_obj='{"e": 50}'),
    ],
    "stub and content": [
        message(at(10), message_type="stub"),
        message(at(20), message_type="conversation", message_text="halo", message_obj='{"t": 20}'),
        message(at(30), message_type="stub", status="sent"),
        message_update(at(25), edited_message_obj="{}", is_deleted=True),
        message_update(at(5), status="early"),
    ],
    "history": [
        message(at(10), status="sent", message_text="live"),
        message(at(15, history=True), status="history 15", message_url="h15"),
        message(at(5, history=True), status="history 5", message_url="h5", message_type="h5"),
        message(at(0, history=True), message_text="h0", message_obj='{"h": 0}'),
        message_update(at(12), status="delivered"),
        message_update(at(20), message_url="u20"),
    ],
}
CHAT_EVENTS: dict[str, list[Event]] = {
    "steps": [
        chat(at(10), unread_count=2, push_name="Sari", conversation_timestamp=100),
        chat_update(at(20), 1, conversation_timestamp=300),
        chat_update(at(25), 1, last_message='{"n": 25}'),
        chat_update(at(30), 5, conversation_timestamp=200),
        chat_update(at(40), 1),
        chat_update(at(50), 1),
    ],
    "cleared": [
        chat(at(10), unread_count=7, push_name="Sari"),
        chat(at(35), group_name="Tim", last_message='{"n": 35}', conversation_timestamp=7),
        chat_update(at(20), 1),
        chat_update(at(30), 0, last_message='{"n": 30}'),
        chat_update(at(40), 1),
        chat_update(at(5), 9),
    ],
    "history": [
        chat(at(10), unread_count=2, push_name="live"),
        chat(at(25, history=True), unread_count=4, push_name="h25", conversation_timestamp=25),
        chat(at(0, history=True), unread_count=9, group_name="h0"),
        chat_update(at(20), 1),
        chat_update(at(30), 1, last_message='{"n": 30}'),
        chat_update(at(22), 3),
    ],
}
AGENT_EVENTS: list[Event] = [
    agent(at(10), status="pairing", qr_code="q10"),
    agent(at(20), status="connected", phone_number="628"),
    agent(at(30), host_name="h30", version="2.14"),
    agent(at(40), status="disconnected", host_name="h40"),
    agent(at(50)),
]
# What the existing service left, without versions.
ADOPTED_MESSAGE = {"status": "adopted", "message_text": "adopted", "is_deleted": True}
ADOPTED_CHAT = {"push_name": "adopted", "unread_count": 6, "conversation_timestamp": 150}
LAST_EVENT_OF_OLD = {"stream": "wa_events_stream", "stream_sequence": 20}


def orders(events: Sequence[Event], seed: int) -> list[list[Event]]:
    """Every order, or a random choice of them."""
    every = [list(order) for order in permutations(events)]
    return random.Random(seed).sample(every, min(MOST_ORDERS, len(every)))


def one_by_one(order: list[Event], _: random.Random) -> Batches:
    return [[event] for event in order]


def one_batch(order: list[Event], _: random.Random) -> Batches:
    return [order]


def batches_with_repeats(order: list[Event], chance: random.Random) -> Batches:
    events = list(order)
    for event in chance.choices(order, k=4):
        events.insert(chance.randint(0, len(events)), event)
    cuts = sorted(chance.sample(range(1, len(events)), 3))
    return [events[start:end] for start, end in zip([0, *cuts], [*cuts, len(events)], strict=True)]


WAYS = (one_by_one, one_batch, batches_with_repeats)
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


async def play(connection: Any, write: Write, key_field: str, plays: dict[str, Batches]) -> None:
    """Play every key's batches, side by side; what is refused comes again with the next batch."""
    again: dict[str, list[Event]] = {key: [] for key in plays}
    for turn in range(max(len(batches) for batches in plays.values()) + 1):
        changes: list[Event] = []
        for key, batches in plays.items():
            batch = again[key] + (batches[turn] if turn < len(batches) else [])
            again[key] = []
            changes += [event._replace(**{key_field: key}) for event in batch]
        changes = [change._replace(ref=ref) for ref, change in enumerate(changes)]
        for refusal in await write(connection, changes):
            assert refusal.reason == "not_found"
            change = changes[refusal.ref]
            again[getattr(change, key_field)].append(change)
    assert not any(again.values())


async def outcomes(connection: Any, schema: str, table: str, key_field: str) -> list[dict[str, Any]]:
    """The distinct rows, without what differs by nature."""
    distinct: dict[str, dict[str, Any]] = {}
    for record in await connection.fetch(f"SELECT * FROM {schema}.{table}"):
        row = {column: value for column, value in record.items() if column not in {*NOT_COMPARED, key_field}}
        row["last_metadata"] = json.loads(row["last_metadata"])
        distinct[repr(row)] = row
    return list(distinct.values())


def newest(events: Sequence[Event], column: str, *, history: bool = True) -> Any:
    """The value that the rule asks for: of the events that feed a column the one with the highest version."""
    feeding = [
        event
        for event in events
        if getattr(event, column, None) not in ("", None) and (history or not event.stamp.history)
    ]
    return getattr(max(feeding, key=_age), column) if feeding else None


def _age(event: Event) -> tuple[int, int]:
    return event.stamp.version.event if event.stamp.version else (0, 0)


def unread(events: Sequence[Event]) -> int:
    """The newest absolute value, and the steps newer than it."""
    steps = [event for event in events if isinstance(event, ChatPatch) and event.is_step]
    base = max((e for e in events if e not in steps), key=_age)
    newer = {_age(step) for step in steps if _age(step) > _age(base)}
    return int(base.unread_count) + len(newer)


def ignored(*_: object) -> None:
    """An observer that does not care."""


@pytest.fixture
def messages(schema: str) -> Messages:
    return Messages(schema, ignored)


@ways
@pytest.mark.parametrize("case", MESSAGE_EVENTS)
async def test_a_message_ends_the_same_in_every_order(
    database: Database, schema: str, messages: Messages, case: str, way: Any
) -> None:
    events, chance = MESSAGE_EVENTS[case], random.Random(7)
    plays = {f"M{n:03d}": way(order, chance) for n, order in enumerate(orders(events, 1))}
    async with database.transaction() as connection:
        await play(connection, messages.write, "message_id", plays)
        (row,) = await outcomes(connection, schema, "messages", "message_id")
        assert await connection.fetchval(f"SELECT count(*) FROM {schema}.messages") == len(plays)
    for column in ("status", "message_text", "message_url", "message_type", "message_obj"):
        expected = newest(events, column)
        assert row[column] == ((None if column == "message_obj" else "") if expected is None else expected)
    assert row["edited_message_obj"] == newest(events, "edited_message_obj")
    assert row["is_deleted"] == bool(newest(events, "is_deleted"))
    last = max(event.stamp.version.ns for event in events)
    assert row["last_metadata"]["stream_sequence"] == last
    assert row["last_metadata"]["version"] == f"{last}-{last}"


@ways
@pytest.mark.parametrize("case", MESSAGE_EVENTS)
async def test_an_adopted_message_ends_the_same_in_every_order(
    database: Database, schema: str, messages: Messages, case: str, way: Any
) -> None:
    events, chance = MESSAGE_EVENTS[case], random.Random(8)
    plays = {f"M{n:03d}": way(order, chance) for n, order in enumerate(orders(events, 2)[:240])}
    messages.keys_complete = False
    async with database.transaction() as connection:
        fixed = {"company_id": "Kopi", "chat_id": "c", "message_date": TODAY, "last_metadata": "{}"}
        await adopt(connection, schema, "messages", "message_id", plays, fixed | ADOPTED_MESSAGE)
        await play(connection, messages.write, "message_id", plays)
        (row,) = await outcomes(connection, schema, "messages", "message_id")
        assert await connection.fetchval(f"SELECT count(*) FROM {schema}.messages") == len(plays)
    for column in ("status", "message_text"):
        assert row[column] == (newest(events, column, history=False) or ADOPTED_MESSAGE[column])
    assert row["message_url"] == newest(events, "message_url")


@ways
@pytest.mark.parametrize("case", CHAT_EVENTS)
async def test_a_chat_ends_the_same_in_every_order(
    database: Database, schema: str, case: str, way: Any
) -> None:
    events, chance = CHAT_EVENTS[case], random.Random(9)
    plays = {f"C{n:03d}": way(order, chance) for n, order in enumerate(orders(events, 3))}
    async with database.transaction() as connection:
        await play(connection, Chats(schema, ignored).write, "chat_id", plays)
        (row,) = await outcomes(connection, schema, "chats", "chat_id")
        steps = await steps_of_each(connection, schema)
        assert await connection.fetchval(f"SELECT count(*) FROM {schema}.chats") == len(plays)
    assert row["unread_count"] == unread(events)
    assert len(steps) == 1
    assert row["conversation_timestamp"] == max(event.conversation_timestamp for event in events)
    assert row["push_name"] == (newest(events, "push_name") or "")
    assert row["group_name"] == (newest(events, "group_name") or "")
    assert row["last_message"] == newest(events, "last_message")
    assert row["last_metadata"]["stream_sequence"] == max(event.stamp.version.ns for event in events)


@ways
@pytest.mark.parametrize("case", CHAT_EVENTS)
async def test_an_adopted_chat_ends_the_same_in_every_order(
    database: Database, schema: str, case: str, way: Any
) -> None:
    """Step 20 is the last event that the existing service handled: its count is in the stored value."""
    events, chance = CHAT_EVENTS[case], random.Random(10)
    plays = {f"C{n:03d}": way(order, chance) for n, order in enumerate(orders(events, 4)[:240])}
    async with database.transaction() as connection:
        fixed = {"company_id": "Kopi", "jid": "j", "last_metadata": json.dumps(LAST_EVENT_OF_OLD)}
        await adopt(connection, schema, "chats", "chat_id", plays, fixed | ADOPTED_CHAT)
        await play(connection, Chats(schema, ignored).write, "chat_id", plays)
        (row,) = await outcomes(connection, schema, "chats", "chat_id")
        assert len(await steps_of_each(connection, schema)) == 1
    live = [event for event in events if not event.stamp.history]
    assert row["unread_count"] == unread(live)
    assert row["push_name"] == (newest(events, "push_name", history=False) or "adopted")
    assert row["conversation_timestamp"] == max(150, *(event.conversation_timestamp for event in events))


@ways
async def test_steps_alone_end_the_same_on_an_adopted_chat(database: Database, schema: str, way: Any) -> None:
    """No absolute value ever comes: the stored one is the base, steps 5 and 20 are in it already."""
    events, chance = [chat_update(at(ns), 1) for ns in (5, 20, 30, 40, 50)], random.Random(11)
    plays = {f"C{n:03d}": way(order, chance) for n, order in enumerate(orders(events, 5))}
    async with database.transaction() as connection:
        fixed = {"company_id": "Kopi", "jid": "j", "last_metadata": json.dumps(LAST_EVENT_OF_OLD)}
        await adopt(connection, schema, "chats", "chat_id", plays, fixed | ADOPTED_CHAT)
        await play(connection, Chats(schema, ignored).write, "chat_id", plays)
        (row,) = await outcomes(connection, schema, "chats", "chat_id")
    assert row["unread_count"] == 6 + 3


@ways
async def test_an_agent_ends_the_same_in_every_order(database: Database, schema: str, way: Any) -> None:
    chance = random.Random(12)
    plays = {f"A{n:03d}": way(order, chance) for n, order in enumerate(orders(AGENT_EVENTS, 6))}
    async with database.transaction() as connection:
        await play(connection, Accounts(schema, ignored).write, "agent_id", plays)
        (row,) = await outcomes(connection, schema, "agents", "agent_id")
    for column in ("qr_code", "status", "agent_name", "phone_number", "host_name", "version"):
        assert row[column] == (newest(AGENT_EVENTS, column) or "")
    assert row["last_metadata"]["version"] == "50-50"


async def adopt(
    connection: Any, schema: str, table: str, key_field: str, keys: dict[str, Any], columns: dict[str, Any]
) -> None:
    """Rows as the existing service leaves them."""
    places = ", ".join(f"${n}" for n in range(2, 2 + len(columns)))
    await connection.execute(
        f"INSERT INTO {schema}.{table} ({key_field}, {', '.join(columns)})"
        f" SELECT key, {places} FROM unnest($1::text[]) AS key",
        list(keys),
        *columns.values(),
    )


async def steps_of_each(connection: Any, schema: str) -> set[Any]:
    """The distinct sets of steps that the chats remember."""
    rows = await connection.fetch(
        f"SELECT array_agg(s.ns ORDER BY s.ns) AS steps FROM {schema}.chats AS c"
        f" LEFT JOIN {schema}.chat_steps AS s USING (chat_id) GROUP BY c.chat_id"
    )
    return {tuple(row["steps"]) for row in rows}
