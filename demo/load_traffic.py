"""What the load generator sends: event types drawn by weight, a share of them invalid (pure)."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from events.subjects import EVENT_TYPES
from testkit.traffic import DECK, MESSAGE_ID_HEADER, Publication, Traffic

COMPANY_HEADER: Final = "CompanyID"
Mix = Mapping[str, float]

# A usual working day: mostly messages and what becomes of them; history comes when a phone is linked.
DEFAULT_MIX: Final[Mix] = {
    "v1.messages.upsert": 50,
    "v1.messages.update": 20,
    "v1.chats.upsert": 7,
    "v1.chats.update": 12,
    "v1.contacts.upsert": 5,
    "v1.contacts.update": 2,
    "v1.connection.update": 1,
    "v1.history.messages": 1,
    "v1.history.chats": 1,
    "v1.history.contacts": 1,
}
# The kinds of the demo's deck by event type. Left out: repeats and updates that come before their row.
_CARDS: Final[Mapping[str, tuple[str, ...]]] = {
    "v1.messages.upsert": ("incoming", "outgoing", "group", "campaign"),
    "v1.messages.update": ("status", "edit", "delete"),
    "v1.chats.upsert": ("chat",),
    "v1.chats.update": ("unread", "read", "unread many"),
    "v1.contacts.upsert": ("contact",),
    "v1.contacts.update": ("rename",),
    "v1.connection.update": ("connection",),
    "v1.history.messages": ("history messages",),
    "v1.history.chats": ("history chats",),
    "v1.history.contacts": ("history contacts",),
}
_WEIGHT: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def short(event_type: str) -> str:
    """An event type without its version, as operators write it."""
    return event_type.removeprefix("v1.")


def mix(text: str) -> Mix:
    """The weights in `messages.upsert=70,messages.update=30`; what is not named is not sent.

    Raises `ValueError` with what is wrong and what is expected.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = (piece.strip() for piece in part.partition("="))
        event_type = f"v1.{short(name)}"
        if event_type not in EVENT_TYPES:
            raise ValueError(f"unknown event type {name!r}: expected {', '.join(map(short, EVENT_TYPES))}")
        if event_type in weights:
            raise ValueError(f"names {name!r} twice: expected each event type once")
        if not _WEIGHT.fullmatch(weight):
            raise ValueError(f"{weight!r} is not a weight of {name!r}: expected for example {name}=70")
        weights[event_type] = float(weight)
    if not any(weights.values()):
        raise ValueError("all weights are 0: expected at least one above 0")
    return {event_type: weight for event_type, weight in weights.items() if weight}


class LoadTraffic:
    """The events of one company.

    The same seed gives the same kinds of events about the same rows; times are those of the sending. `run` makes
    the `Nats-Msg-Id` of this run its own. `invalid` is a share from 0 to 1.
    """

    def __init__(self, company: str, *, run: str, seed: int, mix: Mix, invalid: float, agents: int) -> None:
        self._company = company
        self._run = run
        self._rng = random.Random(f"load {company} {seed}")
        self._traffic = Traffic(company, seed, start=0, agents=agents, broken_share=0.0)
        self._types = tuple(mix)
        self._weights = tuple(itertools.accumulate(mix.values()))
        self._invalid = invalid

    def event(self, now: float) -> Publication:
        """The next event; `now` is Unix seconds."""
        event_type = self._rng.choices(self._types, cum_weights=self._weights)[0]
        if self._rng.random() < self._invalid:
            made = self._traffic.spoil(event_type, at=now)
        else:
            cards = _CARDS[event_type]
            card = self._rng.choices(cards, [DECK[name] for name in cards])[0]
            made = self._traffic.make(card, at=now)
        message_id = f"{self._run}-{self._company}-{made.number}"
        return made._replace(headers={MESSAGE_ID_HEADER: message_id, COMPANY_HEADER: self._company})


def in_turns(companies: Sequence[LoadTraffic]) -> Iterator[LoadTraffic]:
    """Whose event comes next, without end."""
    return itertools.cycle(companies)
