"""What the soak test publishes: a company's day without end, and the counts that it must leave in the tables."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Final

from testkit import traffic
from testkit.account import RENAMED
from testkit.builders import Payload
from testkit.traffic import Publication
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
        self._messages = 0
        self._read: set[str] = set()
        self._unread: dict[str, int] = {}
        self._phones: set[tuple[str, str]] = set()
        self._renamed: dict[tuple[str, str], bool] = {}

    def events(self, count: int) -> Iterator[Event]:
        """`count` real-time events with the history batches among them; what is drawn has to be published."""
        for _ in range(count):
            yield self._event(self._rng.choices(list(DECK), list(DECK.values()))[0])
            self._number += 1
            if self._number % HISTORY_EVERY == 0:
                yield self._event("history messages")

    def expected(self) -> dict[str, int]:
        """What `tests.soak.counting.counts` must find once everything is stored."""
        contacts = len(self._phones | self._renamed.keys())
        return {
            "messages": self._messages,
            "different messages": self._messages,
            "read messages": len(self._read),
            "chats": len(self._unread),
            "unread messages": sum(self._unread.values()),
            "contacts": contacts,
            "different contacts": contacts,
            "renamed contacts": sum(self._renamed.values()),
            "onboarded phones": len(self._phones),
            "different onboarded phones": len(self._phones),
            "dead letters": 0,
            "exhausted events": 0,
        }

    def _event(self, kind: str) -> Event:
        publication = self._traffic.make(kind, at=time.time())
        self._count(publication)
        return Event(publication._replace(items=()), ())

    def _count(self, publication: Publication) -> None:
        payload: Payload = json.loads(publication.body)
        match publication.event_type:
            case "v1.history.messages":
                self._messages += len(publication.items)
            case "v1.messages.upsert":
                self._messages += 1
                if payload["flow"] == "IN":
                    self._phones.add((payload["agent_id"], payload["from_phone"]))
            case "v1.messages.update":
                update = self._read.add if payload["status"] == "read" else self._read.discard
                update(payload["message_id"])
            case "v1.chats.upsert":
                self._unread[payload["chat_id"]] = payload.get("unread_count", 0)
            case "v1.chats.update":
                self._unread[payload["chat_id"]] += 1
            case "v1.contacts.upsert" | "v1.contacts.update":
                contact = (payload["agent_id"], payload["phone_number"])
                self._renamed[contact] = payload["push_name"].endswith(RENAMED)
