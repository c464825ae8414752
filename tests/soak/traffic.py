"""What the soak test publishes: a company's day without end, and the counts that it must leave in the tables."""

from __future__ import annotations

import json
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from testkit import builders
from tests.bench.events import Author, Event

# How often each kind comes among a hundred events. So many are of phones that were never seen that the worker's
# memory of phones is full, and forgets, long before the first third of 300,000 events.
DECK: Final = {
    "outgoing": 20,
    "known phone": 15,
    "new phone": 30,
    "status": 15,
    "new chat": 5,
    "unread": 7,
    "new contact": 5,
    "rename": 3,
}
# How the new name of a contact begins.
RENAMED: Final = "renamed"
# One history batch of so many messages after so many real-time events.
HISTORY_ITEMS: Final = 50
HISTORY_EVERY: Final = 500
# Their numbers; real-time events have lower ones.
_HISTORY: Final = 50_000_000
# Updates are about what came not long ago.
_RECENT: Final = 5_000


class Traffic:
    """Draws events of one company, the same for the same seed but for ids; none has to wait for another one."""

    def __init__(self, company: str, seed: int) -> None:
        self._author = Author([company], seed)
        self._rng = random.Random(seed)
        self._number = 0
        self._cards: list[str] = []
        self._messages: deque[int] = deque(maxlen=_RECENT)
        self._chats: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._contacts: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._counts: Counter[str] = Counter()
        self._read: set[int] = set()
        self._renamed: set[str] = set()
        self._phones: set[str] = set()
        self._kinds: dict[str, Callable[[], Event]] = {
            "outgoing": self._outgoing,
            "known phone": lambda: self._incoming(None),
            "new phone": lambda: self._incoming(self._author.phone(self._number)),
            "status": self._status,
            "new chat": self._new_chat,
            "unread": self._unread,
            "new contact": self._new_contact,
            "rename": self._rename,
        }

    def events(self, count: int) -> Iterator[Event]:
        """`count` real-time events with the history batches among them; what is drawn has to be published."""
        for _ in range(count):
            yield self._kinds[self._draw()]()
            self._number += 1
            if self._number % HISTORY_EVERY == 0:
                yield self._history()

    def expected(self) -> dict[str, int]:
        """What `tests.soak.counting.counts` must find once everything is stored."""
        messages, chats = self._counts["messages"], self._counts["chats"]
        contacts = len(self._phones) + self._counts["contacts"]
        return {
            "messages": messages,
            "different messages": messages,
            "read messages": len(self._read),
            "chats": chats,
            "unread messages": self._counts["unread"],
            "contacts": contacts,
            "different contacts": contacts,
            "renamed contacts": len(self._renamed),
            "onboarded phones": len(self._phones),
            "different onboarded phones": len(self._phones),
            "dead letters": 0,
            "exhausted events": 0,
        }

    def _draw(self) -> str:
        if not self._cards:
            self._cards = [name for name, copies in DECK.items() for _ in range(copies)]
            self._rng.shuffle(self._cards)
        return self._cards.pop()

    def _outgoing(self) -> Event:
        return self._message(self._author.upsert(self._number))

    def _incoming(self, phone: str | None) -> Event:
        event = self._author.upsert(self._number, "IN", phone)
        self._phones.update(key for table, key in event.rows if table == "contacts")
        return self._message(event)

    def _message(self, event: Event) -> Event:
        self._counts["messages"] += 1
        self._messages.append(self._number)
        return event

    def _status(self) -> Event:
        if not self._messages:
            return self._outgoing()
        number = self._rng.choice(self._messages)
        self._read.add(number)
        return self._author.update(number)

    def _new_chat(self) -> Event:
        event = self._author.chat(self._number)
        payload = json.loads(event.body)
        self._chats.append(payload)
        self._counts["chats"] += 1
        self._counts["unread"] += payload["unread_count"]
        return event

    def _unread(self) -> Event:
        if not self._chats:
            return self._new_chat()
        chat = self._rng.choice(self._chats)
        self._counts["unread"] += 1
        return self._update("v1.chats.update", builders.chat_update, chat, "chat_id")

    def _new_contact(self) -> Event:
        event = self._author.contact(self._number)
        self._contacts.append(json.loads(event.body))
        self._counts["contacts"] += 1
        return event

    def _rename(self) -> Event:
        if not self._contacts:
            return self._new_contact()
        contact = self._rng.choice(self._contacts)
        self._renamed.add(contact["phone_number"])
        name = f"{RENAMED} {self._number}"
        return self._update(
            "v1.contacts.update", builders.contact_update, contact, "phone_number", push_name=name
        )

    def _update(
        self,
        base: str,
        build: Callable[..., builders.Payload],
        known: dict[str, Any],
        key: str,
        **changes: str,
    ) -> Event:
        same = {name: known[name] for name in ("company_id", "agent_id", key)}
        return Event(f"{base}.{known['company_id']}", builders.body(build(**same, **changes)), ())

    def _history(self) -> Event:
        start = _HISTORY + self._counts["history"]
        self._counts["history"] += HISTORY_ITEMS
        self._counts["messages"] += HISTORY_ITEMS
        return self._author.history(start, HISTORY_ITEMS, 0)
