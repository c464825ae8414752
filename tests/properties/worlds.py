"""Worlds to try: a few keys, the events about them, and the ways in which each event is delivered.

Everything is drawn as small numbers, so that a case is cheap and shrinks well; the values of an event name it.
"""

from __future__ import annotations

import enum
import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from events.subjects import HISTORICAL, REALTIME
from testkit.items import HISTORY, Payload, good, refused
from testkit.oracle import NS, Published, Version
from testkit.traffic import Publication
from tests.properties.outcome import Adopted

ROUNDS: Final = 3
REPLICAS: Final = 2
BASE: Final = 1_795_500_000  # seconds
OTHER_MONTH: Final = 40 * 86_400
COMPANY: Final = "KopiNusa01"

Kinds = dict[str, tuple[str, ...]]
FAMILIES: Final[Kinds] = {
    "messages": ("v1.messages.upsert", "v1.messages.update", "v1.history.messages"),
    "chats": ("v1.chats.upsert", "v1.chats.update", "v1.chats.update", "v1.history.chats"),
    "contacts": (
        "v1.contacts.upsert",
        "v1.messages.upsert",
        "v1.contacts.update",
        "v1.messages.upsert",
        "v1.history.contacts",
    ),
    "agents": ("v1.connection.update",),
    "everything": (*REALTIME, *HISTORICAL),
}


class Arrival(NamedTuple):
    """One time that an event comes: in which round, to which replica, as itself or as a dead letter."""

    round: int
    replica: int
    letter: bool = False


Arrivals = tuple[Arrival, ...]


class Order(NamedTuple):
    """What a stream does to a world's second half: later by so many seconds, and its sequences given out `again`.

    `made`: which stream each half is in (0: nobody knows when that was made). `forward`: no time steps back.
    """

    later: int = 0
    made: tuple[int, int] = (1, 1)
    again: bool = False
    forward: bool = False


class Clock(enum.Enum):
    """What the streams do about the versions of a world's events. Within these bounds the order is a total one."""

    # Nobody knows when the stream was made: times alone, in any order.
    UNKNOWN = Order(made=(0, 0))
    # One stream: times step back by up to 7 s.
    STEPS = Order()
    # Restored from a backup: sequences are given out again, later by more than 10 s.
    AGAIN = Order(later=20, again=True)
    # Made anew: another stream with the same sequences, all of it later.
    ANEW = Order(later=8, made=(1, 2), again=True)
    # Events of a release that did not know it, then times that step back.
    OLDER = Order(later=8, made=(0, 1))
    # One replica does not know when the stream was made; times go forward.
    HALF = Order(forward=True)


class Spec(NamedTuple):
    """An event to be built: `items` are (key, bits), one for a real-time event."""

    kind: str
    second: int
    items: Sequence[tuple[int, int]]
    arrivals: Arrivals


@dataclass(frozen=True)
class World:
    """What is drawn. `adopted` says which rows the existing service left (bits)."""

    specs: list[Spec]
    adopted: int
    clock: Clock = Clock.UNKNOWN


class Built(NamedTuple):
    """An event and the ways in which it is delivered."""

    event: Published
    arrivals: Arrivals
    half_known: bool = False


def _ways() -> list[Arrivals]:
    """Simple ones first: hypothesis shrinks towards them."""
    once: list[Arrivals] = [
        (Arrival(turn, replica, letter),)
        for letter in (False, True)
        for turn, replica in itertools.product(range(ROUNDS), range(REPLICAS))
    ]
    chance = random.Random(5)
    arrivals = [arrival for (arrival,) in once]
    several = [tuple(sorted(chance.sample(arrivals, chance.choice((2, 2, 3))))) for _ in range(24)]
    return once + several


def worlds(family: str, most: int) -> st.SearchStrategy[World]:
    """Worlds of one family of events, with up to `most` events."""
    item = st.tuples(st.integers(0, 1), st.integers(0, 2**20 - 1))
    arrivals = st.sampled_from(_ways())
    second = st.integers(0, 7)

    def spec(kind: str) -> st.SearchStrategy[Spec]:
        items = st.lists(item, min_size=1, max_size=3) if kind in HISTORY else item.map(lambda one: [one])
        return st.builds(Spec, st.just(kind), second, items, arrivals)

    specs = st.one_of([spec(kind) for kind in FAMILIES[family]])
    adopted = st.sampled_from((0, 0, 1, 2, 3)) if family in ("messages", "chats") else st.just(0)
    clock = st.sampled_from(Clock)
    return st.builds(World, st.lists(specs, min_size=2, max_size=most), adopted, clock)


class Builder:
    """Builds a world on keys that no other world has; its times are those of the seconds after `base`."""

    _numbers = itertools.count(1)
    _names = itertools.count(1)
    _sequences = itertools.count(1)

    def __init__(self, world: World, base: int = BASE, company: str = COMPANY) -> None:
        self.base = base
        self._company = company
        self.prefix = f"w{next(self._numbers)}"
        self._clock = world.clock
        self.events = [
            self._build(spec, version)
            for spec, version in zip(world.specs, self._versions(world.specs), strict=True)
        ]
        self.adopted = [
            adopted for number in range(2) if world.adopted & 1 << number for adopted in self._leave(number)
        ]

    def _versions(self, specs: Sequence[Spec]) -> list[Version]:
        """What the streams make of the events, in the order in which these are published."""
        order = self._clock.value
        sequences = [next(self._sequences) for _ in specs]
        half = len(specs) // 2
        if order.again:
            for place, spec in enumerate(specs[half : 2 * half], half):
                # Two history items of one time, or of none, would be told apart by nothing.
                again = spec.kind not in HISTORY
                sequences[place] = sequences[place - half] if again else next(self._sequences)
        seconds = [spec.second for spec in specs]
        if order.forward:
            seconds.sort()
        return [
            self._version(second + order.later * part, sequence, order.made[part])
            for second, sequence, part in zip(
                seconds, sequences, [0] * half + [1] * (len(specs) - half), strict=True
            )
        ]

    def _version(self, second: int, sequence: int, made: int) -> Version:
        return Version(
            (self.base + second) * NS + 5, sequence, made and (self.base - 3600 + made) * 1_000_000
        )

    def _build(self, spec: Spec, version: Version) -> Built:
        name = next(self._names)
        parts = [
            self._payload(spec.kind, key, bits, f"{name}.{place}", spec.second)
            for place, (key, bits) in enumerate(spec.items)
        ]
        payload = {HISTORY[spec.kind][0]: parts} if spec.kind in HISTORY else parts[0]
        items = tuple(
            refused(spec.kind, payload=part) if _spoiled(bits) else good(spec.kind, part)
            for part, (_, bits) in zip(parts, spec.items, strict=True)
        )
        subject, body = f"{spec.kind}.{self._company}", json.dumps(payload).encode()
        event = Published(Publication(name, subject, body, {}, spec.kind, items), version)
        return Built(event, spec.arrivals, self._clock is Clock.HALF)

    def _payload(self, kind: str, key: int, bits: int, name: str, second: int) -> Payload:
        # An own time between those of two events whose times step back would make the order no total one.
        own = kind in HISTORY and self._clock not in (Clock.UNKNOWN, Clock.HALF)
        kind = HISTORY[kind][1] if kind in HISTORY else kind
        moment = Moment(self.base - 1000 if own else self.base, second)
        said = _FIELDS[kind](_Bits(bits), key, name, moment)
        said = {field: value for field, value in said.items() if value is not None}
        if _spoiled(bits):
            said.update([("company_id", "Other")] if bits & 1 else [("agent_id", ""), ("message_id", "")])
        for field in ("agent_id", "chat_id", "message_id"):
            if said.get(field):
                said[field] = f"{self.prefix}-{said[field]}"
        return said

    def _leave(self, number: int) -> list[Adopted]:
        message = {
            "status": "left",
            "message_text": "left",
            "message_url": "",
            "message_type": "",
            "is_deleted": True,
        }
        chat = {
            "push_name": "left",
            "group_name": "",
            "unread_count": 6,
            "conversation_timestamp": self.base + 3,
        }
        return [
            Adopted("messages", f"{self.prefix}-m{number}", message),
            Adopted("chats", f"{self.prefix}-c{number}", chat),
        ]


def _spoiled(bits: int) -> bool:
    """Whether the item is not valid: one in sixteen."""
    return bits >> 16 == 15


class Moment(NamedTuple):
    """When an event says that it was."""

    base: int
    second: int

    @property
    def at(self) -> int:
        """Unix seconds."""
        return self.base + self.second


class _Bits:
    """Takes choices out of a number, lowest bits first."""

    def __init__(self, bits: int) -> None:
        self._left = bits

    def of(self, *choices: Any) -> Any:
        """One of two, four or eight choices."""
        self._left, place = divmod(self._left, len(choices))
        return choices[place]


def _message(bits: _Bits, key: int, name: str, when: Moment) -> Payload:
    phone = bits.of("6281", "6281", "+62 81", "6282")
    kind = bits.of("person", "person", "group", "status")
    jid = {"person": f"{phone}@s.whatsapp.net", "group": "120@g.us", "status": "status@broadcast"}[kind]
    at = when.at
    return {
        "message_id": f"m{key}",
        "chat_id": f"c{bits.of(0, 1)}",
        "agent_id": "a0",
        "jid": jid,
        "flow": bits.of("IN", "IN", "IN", "OUT"),
        "from_phone": phone,
        "message_timestamp": bits.of(at, at - 2, 0, at * 1000 + 7, at - OTHER_MONTH, at + 3, -at, at + 2),
        "campaign": _campaign(bits, name),
        "message_text": bits.of(None, f"text {name}"),
        "status": bits.of(f"status {name}", None),
        "message_url": f"url {name}" if when.second % 2 else None,
        "message_type": f"type {name}" if when.second % 3 else "",
        "message_obj": {"at": name} if when.second % 3 == 1 else None,
        "key": {"id": f"key {name}", "fromMe": False, "remoteJid": jid} if when.second % 2 else None,
    }


def _campaign(bits: _Bits, name: str) -> Payload | None:
    if bits.of(False, True):
        return None
    tags = bits.of("ig", f"tag {name}, ig")
    return {
        "is_campaign": True,
        "tags": tags,
        "assigned_to": f"user {name}" if tags == "ig" else "",
        "origin": bits.of(f"origin {name}", ""),
    }


def _message_update(bits: _Bits, key: int, name: str, when: Moment) -> Payload:
    return {
        "message_id": f"m{key}",
        "status": bits.of(None, f"status {name}"),
        "edited_message_obj": bits.of(None, {}, {"at": name}, None),
        "is_deleted": bits.of(None, True, False, None),
        "message_url": bits.of("", f"url {name}"),
    }


def _chat(bits: _Bits, key: int, name: str, when: Moment) -> Payload:
    return {
        "chat_id": f"c{key}",
        "agent_id": "a0",
        "jid": "6281@s.whatsapp.net",
        "phone_number": "6281",
        "unread_count": bits.of(None, 4, 1, 2**31 - 2),
        "push_name": bits.of(None, f"name {name}"),
        "group_name": bits.of(f"group {name}", ""),
        "last_message": bits.of(None, {"at": name}),
        "conversation_timestamp": bits.of(when.at, None, (when.at - 2) * 1000, when.base + 100),
        "is_group": bits.of(None, True),
    }


def _chat_update(bits: _Bits, key: int, name: str, when: Moment) -> Payload:
    return {
        "chat_id": f"c{key}",
        "agent_id": "a0",
        "unread_count": bits.of(1, 1, 1, 1, None, 5, -2, 0),
        "last_message": bits.of(None, {"at": name}, {}, None),
        "conversation_timestamp": bits.of(None, when.at, when.base + 9, None),
    }


def _contact(bits: _Bits, key: int, name: str, when: Moment) -> Payload:
    return {
        "chat_id": f"c{bits.of(0, 0, 0, 1)}",
        "agent_id": "a0",
        "phone_number": bits.of("6281", "+6281") if not key else "6282",
        "push_name": f"name {name}",
    }


def _contact_update(bits: _Bits, key: int, name: str, when: Moment) -> Payload:
    return {
        "agent_id": "a0",
        "phone_number": "62 81" if not key else "6282",
        "push_name": bits.of(f"name {name}", f"name {name}", f"name {name}", ""),
    }


def _connection(bits: _Bits, key: int, name: str, when: Moment) -> Payload:
    columns = ("qr_code", "status", "agent_name", "phone_number", "host_name", "version")
    return {"agent_id": f"a{key}", **{column: bits.of("", f"{column} {name}") for column in columns}}


_FIELDS: Final[dict[str, Callable[[_Bits, int, str, Moment], Payload]]] = {
    "v1.messages.upsert": _message,
    "v1.messages.update": _message_update,
    "v1.chats.upsert": _chat,
    "v1.chats.update": _chat_update,
    "v1.contacts.upsert": _contact,
    "v1.contacts.update": _contact_update,
    "v1.connection.update": _connection,
}
