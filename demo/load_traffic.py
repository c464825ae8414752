"""What the load generator sends: event types drawn by weight, a share of them invalid (pure)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

from demo.load_options import Options
from testkit.traffic import COMPANY_HEADER, DECK, MESSAGE_ID_HEADER, Publication, Traffic

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


class LoadTraffic:
    """The events of one company.

    The same seed gives the same kinds of events about the same rows; times are those of the sending. `run` makes
    the `Nats-Msg-Id` of this run its own.
    """

    def __init__(self, company: str, run: str, options: Options) -> None:
        self._company = company
        self._run = run
        self._invalid = options.invalid
        self._rng = random.Random(f"load {company} {options.seed}")
        self._traffic = Traffic(company, options.seed, start=0, agents=options.agents, broken_share=0.0)
        self._types = tuple(options.mix)
        self._weights = tuple(options.mix.values())

    def event(self, now: float) -> Publication:
        """The next event; `now` is Unix seconds."""
        event_type = self._rng.choices(self._types, self._weights)[0]
        if self._rng.random() < self._invalid:
            made = self._traffic.spoil(event_type, at=now)
        else:
            cards = _CARDS[event_type]
            card = self._rng.choices(cards, [DECK[name] for name in cards])[0]
            made = self._traffic.make(card, at=now)
        message_id = f"{self._run}-{self._company}-{made.number}"
        return made._replace(headers={MESSAGE_ID_HEADER: message_id, COMPANY_HEADER: self._company})
