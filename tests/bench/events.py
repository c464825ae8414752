"""Loads of realistic events, and the rows that each must be stored in."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import uuid4

from events.subjects import ConsumerType
from testkit.account import TEXT, Account, Chat, encoded
from testkit.traffic import MESSAGE_ID_HEADER, Publication
from tests import builders
from tests.builders import Payload

# Rows of a history batch, rows of one that NATS barely takes (1 MB), agents of a company, and phones of a load.
HISTORY_BATCH: Final = 100
LARGE_BATCH: Final = 900
_AGENTS: Final = 10
_PHONES: Final = 4000
# The column that names a row of each table.
KEYS: Final[Mapping[str, str]] = {
    "messages": "message_id",
    "chats": "chat_id",
    "contacts": "phone_number",
    "onboarding_log": "message_id",
}
# Twenty events of the mixed load.
_DECK: Final = ("message",) * 14 + ("update",) * 3 + ("chat",) * 2 + ("contact",)


class Event(NamedTuple):
    """An event, and the rows that it must be seen in, as (table, key)."""

    publication: Publication
    rows: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Load:
    """Events of one kind for some companies. `seeds` come first and are stored before the clock starts; a speed is
    made of the rows of the `counted` tables."""

    name: str
    role: ConsumerType
    agents: list[str]
    events: list[Event] = field(default_factory=list)
    seeds: list[Event] = field(default_factory=list)
    counted: tuple[str, ...] = ("messages",)

    def expected(self) -> Counter[str]:
        """How many rows of each table must be written after the start of the clock."""
        return Counter(table for event in self.events for table, _ in event.rows)


class Author:
    """Writes the events of one load for companies that take turns; its ids and agents are nobody else's."""

    def __init__(self, companies: Sequence[str]) -> None:
        rng = random.Random(uuid4().hex)
        self._accounts = [Account(company, rng, time.time(), agents=_AGENTS) for company in companies]
        each = max(1, _PHONES // len(companies))
        self._chats = [[account.stranger() for _ in range(each)] for account in self._accounts]
        self.agents = [agent.id for account in self._accounts for agent in account.agents]

    def account(self, number: int) -> Account:
        """Whose event this is."""
        account = self._accounts[number % len(self._accounts)]
        account.clock = time.time()
        return account

    def message(self, number: int) -> Event:
        """An outgoing message, to one of 4,000 phones."""
        payload = self.account(number).message(self._chat(number), incoming=False, kind=TEXT)
        return _event("v1.messages.upsert", payload, ("messages", payload["message_id"]))

    def from_new_phone(self, number: int) -> Event:
        """An incoming message of a new phone, which makes a contact and a row of the log."""
        account = self.account(number)
        payload = account.message(account.stranger(), incoming=True, kind=TEXT)
        key = payload["message_id"]
        rows = (("messages", key), ("contacts", payload["from_phone"]), ("onboarding_log", key))
        return _event("v1.messages.upsert", payload, *rows)

    def update(self, number: int, message: Event) -> Event:
        """A status of a message."""
        [row] = message.rows
        company = self.account(number).company
        payload = builders.message_update(message_id=row[1], company_id=company, status="read")
        return _event("v1.messages.update", payload, row)

    def chat(self, number: int) -> Event:
        """A new chat."""
        account = self.account(number)
        payload = account.chat(account.stranger())
        return _event("v1.chats.upsert", payload, ("chats", payload["chat_id"]))

    def contact(self, number: int) -> Event:
        """A new contact."""
        account = self.account(number)
        payload = account.contact(account.stranger())
        return _event("v1.contacts.upsert", payload, ("contacts", payload["phone_number"]))

    def history(self, number: int, size: int) -> Event:
        """A history batch of one company, half of it incoming."""
        account, chats = self.account(number), self._chats[number % len(self._chats)]
        items = [
            account.message(chats[(number * size + at) % len(chats)], incoming=at % 2 == 1, kind=TEXT)
            for at in range(size)
        ]
        rows = [("messages", item["message_id"]) for item in items]
        payload = {"messages": items, "company_id": account.company}
        return _event("v1.history.messages", payload, *rows)

    def _chat(self, number: int) -> Chat:
        turn, company = divmod(number, len(self._chats))
        chats = self._chats[company]
        return chats[turn % len(chats)]


def _event(event_type: str, payload: Payload, *rows: tuple[str, str]) -> Event:
    subject = f"{event_type}.{payload['company_id']}"
    return Event(Publication(0, subject, encoded(payload), {}, event_type, ()), rows)


def realtime(companies: Sequence[str], n: int) -> Load:
    """New outgoing messages."""
    author = Author(companies)
    return Load("realtime", "realtime", author.agents, [author.message(number) for number in range(n)])


def mixed(companies: Sequence[str], n: int) -> Load:
    """Messages, statuses of messages stored before, chats and contacts, 14 : 3 : 2 : 1."""
    author = Author(companies)
    load = Load("mixed", "realtime", author.agents, counted=("messages", "chats", "contacts"))
    deck = list(_DECK)
    order = random.Random(2)
    for number in range(n):
        if number % len(deck) == 0:
            order.shuffle(deck)
        match deck[number % len(deck)]:
            case "message":
                load.events.append(author.message(number))
            case "update":
                load.seeds.append(author.message(number))
                load.events.append(author.update(number, load.seeds[-1]))
            case "chat":
                load.events.append(author.chat(number))
            case _:
                load.events.append(author.contact(number))
    return load


def inbound_new(companies: Sequence[str], n: int) -> Load:
    """Incoming messages, each of a new phone: three rows each."""
    author = Author(companies)
    events = [author.from_new_phone(number) for number in range(n)]
    return Load("inbound_new", "realtime", author.agents, events)


def history(companies: Sequence[str], n: int, batch: int = HISTORY_BATCH) -> Load:
    """Messages in batches; `n` and the speed are rows."""
    author = Author(companies)
    starts = range(0, n, batch)
    events = [author.history(number, min(batch, n - start)) for number, start in enumerate(starts)]
    return Load("history", "historical", author.agents, events)


def repeats(companies: Sequence[str], n: int) -> Load:
    """Messages that are all stored already, under another `Nats-Msg-Id`."""
    load = realtime(companies, n)
    load.name = "repeats"
    load.seeds = [_named(event, "first") for event in load.events]
    load.events = [_named(event, "again") for event in load.events]
    return load


def dead_letters(companies: Sequence[str], n: int) -> Load:
    """Envelopes of good messages: each is stored by its first replay."""
    load = realtime(companies, n)
    load.name, load.role = "dlq", "dlq"
    load.events = [_dead_letter(event) for event in load.events]
    return load


def _named(event: Event, word: str) -> Event:
    headers = {MESSAGE_ID_HEADER: f"{event.rows[0][1]}-{word}"}
    return event._replace(publication=event.publication._replace(headers=headers))


def _dead_letter(event: Event) -> Event:
    publication = event.publication
    company = publication.subject.rpartition(".")[2]
    letter = builders.envelope(
        json.loads(publication.body),
        source_subject=publication.subject,
        company=company,
        error="retryable: measured",
        error_type="retryable",
        event_version=f"{time.time_ns()}-1",
    )
    wrapped = publication._replace(subject=f"v1.dlq.{company}", body=builders.body(letter))
    return event._replace(publication=wrapped)


LOADS: Final[Mapping[str, Callable[[Sequence[str], int], Load]]] = {
    "realtime": realtime,
    "mixed": mixed,
    "inbound_new": inbound_new,
    "history": history,
    "repeats": repeats,
    "dlq": dead_letters,
}
