"""What the soak test publishes: a company's day without end."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Final

from testkit import traffic
from tests.bench.events import Event

# How often each kind comes among a hundred events. So many are of phones that were never seen that the worker's
# memory of phones is full, and forgets, long before the first third of 300,000 events.
DECK: Final = {
    "outgoing": 20,
    "incoming": 15,
    "newcomer": 30,
    "status": 15,
    "chat": 5,
    "unread": 7,
    "contact": 5,
    "rename": 3,
}
# One history batch of messages after so many real-time events.
HISTORY_EVERY: Final = 500


class Traffic:
    """Draws events of one company, the same for the same seed but for times; none has to wait for another one."""

    def __init__(self, company: str, seed: int) -> None:
        self._traffic = traffic.Traffic(company, seed, start=0, agents=10, broken_share=0.0)
        self._rng = random.Random(seed)
        self._number = 0

    def events(self, count: int) -> Iterator[Event]:
        """`count` real-time events with the history batches among them; what is drawn has to be published."""
        for _ in range(count):
            yield self._event(self._rng.choices(list(DECK), list(DECK.values()))[0])
            self._number += 1
            if self._number % HISTORY_EVERY == 0:
                yield self._event("history messages")

    def _event(self, kind: str) -> Event:
        return Event(self._traffic.make(kind, at=time.time()), ())
