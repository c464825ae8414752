"""What is published to be measured: loads of realistic events, and the rows that each must come to."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import uuid4

import msgspec

from events import envelope
from events.delivery import ConsumerType
from testkit import builders

# Rows of a history batch, rows of one that NATS barely takes (1 MB), and agents of a run.
HISTORY_BATCH: Final = 100
LARGE_BATCH: Final = 900
_AGENTS: Final = 10
# The column that names a row of each table.
KEYS: Final[Mapping[str, str]] = {
    "messages": "message_id",
    "chats": "chat_id",
    "contacts": "phone_number",
    "onboarding_log": "message_id",
}
# Twenty events of the mixed load.
_DECK: Final = ("message",) * 14 + ("update",) * 3 + ("chat",) * 2 + ("contact",)
_WORDS: Final = (
    *("kami", "sudah", "kirim", "pesanan", "hari", "ini", "mohon", "cek", "resi", "dan", "alamat", "toko"),
    *("besok", "pagi", "stok", "kopi", "gayo", "masih", "ada", "harga", "grosir", "untuk", "dua", "karton"),
    *("terima", "kasih", "pembayaran", "lewat", "bank", "nanti", "diantar", "kurir"),
)

_encode: Final = msgspec.json.Encoder().encode


class Event(NamedTuple):
    """One publication. `rows` are those that it must be seen in, as (table, key)."""

    subject: str
    body: bytes
    rows: tuple[tuple[str, str], ...]
    headers: dict[str, str] | None = None


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
    """Writes the payloads of one run: its ids and agents are nobody else's; the same seed, the same texts."""

    def __init__(self, companies: Sequence[str], seed: int = 1) -> None:
        self.run = uuid4().hex[:10]
        self.companies = tuple(companies)
        self.agents = [f"agent-{self.run}-{number}" for number in range(_AGENTS)]
        self._rng = random.Random(seed)
        self._phones = int(self.run, 16) % 10**5

    def company(self, number: int) -> str:
        """Whose event this is: companies take turns."""
        return self.companies[number % len(self.companies)]

    def message(self, number: int, flow: str = "OUT", phone: str | None = None) -> dict[str, Any]:
        """The payload of a message, about 0.9 KB; the phone is one of 4,000 unless it is given."""
        phone = phone or f"628{number % 4000:09d}"
        name, agent = f"3EB0{self.run}{number:08d}", self.agents[number % _AGENTS]
        jid, ours = f"{phone}@s.whatsapp.net", "628990002222"
        text = self._text(17)
        return builders.message(
            message_id=name,
            chat_id=f"{agent}_{phone}",
            jid=jid,
            from_phone=phone if flow == "IN" else ours,
            to_phone=ours if flow == "IN" else phone,
            flow=flow,
            message_type="extendedTextMessage",
            message_text=text,
            company_id=self.company(number),
            agent_id=agent,
            key={"id": name, "fromMe": flow == "OUT", "remoteJid": jid},
            message_obj={
                "extendedTextMessage": {
                    "text": text,
                    "previewType": "NONE",
                    "contextInfo": {"expiration": 0, "disappearingMode": {"initiator": "CHANGED_IN_CHAT"}},
                },
                "messageContextInfo": {
                    "deviceListMetadata": {
                        "senderTimestamp": "1795500000",
                        "recipientTimestamp": "1795400000",
                    },
                    "deviceListMetadataVersion": 2,
                    "messageSecret": f"{self._rng.getrandbits(256):064x}",
                },
            },
            status="sent",
            message_timestamp=int(time.time()),
        )

    def upsert(self, number: int, flow: str = "OUT", phone: str | None = None) -> Event:
        """A real-time message; an incoming one of a new phone makes a contact and a line in the log."""
        payload = self.message(number, flow, phone)
        rows = [("messages", payload["message_id"])]
        if flow == "IN":
            rows += [("contacts", payload["from_phone"]), ("onboarding_log", payload["message_id"])]
        return self._event("v1.messages.upsert", payload, *rows)

    def update(self, number: int) -> Event:
        """A status of the message that has this number."""
        payload = builders.message_update(
            message_id=f"3EB0{self.run}{number:08d}", company_id=self.company(number), status="read"
        )
        return self._event("v1.messages.update", payload, ("messages", payload["message_id"]))

    def chat(self, number: int) -> Event:
        """A new chat."""
        phone, agent = self.phone(number), self.agents[number % _AGENTS]
        payload = builders.chat(
            chat_id=f"{agent}_{phone}",
            jid=f"{phone}@s.whatsapp.net",
            company_id=self.company(number),
            agent_id=agent,
            phone_number=phone,
            push_name=self._text(2),
            last_message={"text": self._text(30), "fromMe": False},
            conversation_timestamp=int(time.time()),
            unread_count=number % 7,
        )
        return self._event("v1.chats.upsert", payload, ("chats", payload["chat_id"]))

    def contact(self, number: int) -> Event:
        """A new contact."""
        phone, agent = self.phone(number), self.agents[number % _AGENTS]
        payload = builders.contact(
            chat_id=f"{agent}_{phone}",
            phone_number=phone,
            company_id=self.company(number),
            agent_id=agent,
            push_name=self._text(2),
        )
        return self._event("v1.contacts.upsert", payload, ("contacts", phone))

    def history(self, start: int, size: int, batch: int) -> Event:
        """A history batch, half of it incoming."""
        items = []
        for number in range(start, start + size):
            # A batch is one company's, so its items must not take turns.
            item = self.message(number, "IN" if number % 2 else "OUT")
            items.append(item | {"company_id": self.company(batch)})
        rows = [("messages", item["message_id"]) for item in items]
        return self._event("v1.history.messages", {"messages": items}, *rows, company=self.company(batch))

    def phone(self, number: int) -> str:
        """A phone that nobody else has."""
        return f"62{self._phones:05d}{number:08d}"

    def _event(
        self, base: str, payload: dict[str, Any], *rows: tuple[str, str], company: str | None = None
    ) -> Event:
        return Event(f"{base}.{company or payload['company_id']}", _encode(payload), rows)

    def _text(self, words: int) -> str:
        return " ".join(self._rng.choices(_WORDS, k=words))


def realtime(companies: Sequence[str], n: int) -> Load:
    """New outgoing messages."""
    author = Author(companies)
    events = [author.upsert(number) for number in range(n)]
    return Load("realtime", "realtime", author.agents, events)


def mixed(companies: Sequence[str], n: int) -> Load:
    """Messages, statuses of messages stored before, chats and contacts, 14 : 3 : 2 : 1."""
    author = Author(companies)
    load = Load("mixed", "realtime", author.agents, counted=("messages", "chats", "contacts"))
    deck = list(_DECK)
    order = random.Random(2)
    for number in range(n):
        if number % len(deck) == 0:
            order.shuffle(deck)
        kind = deck[number % len(deck)]
        if kind == "message":
            load.events.append(author.upsert(number))
        elif kind == "update":
            load.seeds.append(author.upsert(number))
            load.events.append(author.update(number))
        else:
            load.events.append(author.chat(number) if kind == "chat" else author.contact(number))
    return load


def inbound_new(companies: Sequence[str], n: int) -> Load:
    """Incoming messages, each of a new phone: three rows each."""
    author = Author(companies)
    events = [author.upsert(number, "IN", author.phone(number)) for number in range(n)]
    return Load("inbound_new", "realtime", author.agents, events)


def history(companies: Sequence[str], n: int, batch: int = HISTORY_BATCH) -> Load:
    """Messages in batches; `n` and the speed are rows."""
    author = Author(companies)
    starts = range(0, n, batch)
    events = [author.history(start, min(batch, n - start), number) for number, start in enumerate(starts)]
    return Load("history", "historical", author.agents, events)


def repeats(companies: Sequence[str], n: int) -> Load:
    """Messages that are all stored already, under another `Nats-Msg-Id`."""
    load = realtime(companies, n)
    load.name = "repeats"
    load.seeds = list(_named(load.events, "first"))
    load.events = list(_named(load.events, "again"))
    return load


def dead_letters(companies: Sequence[str], n: int) -> Load:
    """Envelopes of good messages: each is stored by its first replay."""
    load = realtime(companies, n)
    load.name, load.role = "dlq", "dlq"
    load.events = [_letter(event) for event in load.events]
    return load


def _named(events: Sequence[Event], word: str) -> Iterator[Event]:
    for event in events:
        yield event._replace(headers={"Nats-Msg-Id": f"{event.rows[0][1]}-{word}"})


def _letter(event: Event) -> Event:
    company = event.subject.rpartition(".")[2]
    letter = envelope.Envelope(
        source_subject=event.subject,
        company=company,
        original_payload=event.body,
        error="retryable: measured",
        error_type="retryable",
        retry_count=1,
        max_retry=5,
        ts=None,
        event_version=f"{time.time_ns()}-1",
    )
    return event._replace(subject=f"v1.dlq.{company}", body=envelope.encode(letter))


LOADS: Final[Mapping[str, Callable[[Sequence[str], int], Load]]] = {
    "realtime": realtime,
    "mixed": mixed,
    "inbound_new": inbound_new,
    "history": history,
    "repeats": repeats,
    "dlq": dead_letters,
}
