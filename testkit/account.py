"""A simulated WhatsApp account of one company: its agents, their chats, and the payloads they produce."""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from testkit.items import Item, Payload

AGENTS: Final = 3
# Chats that still talk; older ones fall silent, so that memory stays bounded however long this runs.
_TALKING: Final = 400
_NAMES: Final = ("Sari", "Budi", "Dewi", "Agus", "Putri", "Rizky", "Ayu", "Joko", "Maya", "Hendra", "Lia")
_LAST: Final = ("Wulandari", "Santoso", "Pratama", "Lestari", "Wijaya", "Nugroho", "Siregar", "Halim")
_GROUPS: Final = ("Tim Gudang", "Reseller Jawa", "Keluarga Kopi", "Promo Akhir Pekan")
_WORDS: Final = (
    *("kami", "sudah", "kirim", "pesanan", "hari", "ini", "mohon", "cek", "resi", "dan", "alamat", "toko"),
    *("besok", "pagi", "stok", "kopi", "gayo", "masih", "ada", "harga", "grosir", "untuk", "dua", "karton"),
    *("terima", "kasih", "pembayaran", "lewat", "bank", "nanti", "diantar", "kurir", "🙏", "☕️"),
)
TEXT: Final = "extendedTextMessage"
_TYPES: Final = ("conversation", TEXT, TEXT, "imageMessage", "audioMessage")
_CAMPAIGNS: Final = ("promo-nov,ig", "ramadan", "ig, tiktok", "toko-baru")
# How the new name of a contact ends.
RENAMED: Final = "baru"


@dataclass(frozen=True, slots=True)
class Agent:
    """A phone of the company."""

    id: str
    phone: str
    name: str


@dataclass(slots=True)
class Chat:
    """A conversation of an agent, with one person or with a group."""

    agent: Agent
    number: str
    name: str
    group: bool = False

    @property
    def id(self) -> str:
        """`chat_id`, which is also the one of the contact of an incoming message."""
        return f"{self.agent.id}_{self.number}"

    @property
    def jid(self) -> str:
        """WhatsApp's own name of the chat."""
        return f"{self.number}@{'g.us' if self.group else 's.whatsapp.net'}"


class Draft(NamedTuple):
    """An event before it is published, and what is to become of it."""

    event_type: str
    body: bytes
    items: tuple[Item, ...]


def encoded(payload: object) -> bytes:
    """JSON as the senders write it."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


class Account:
    """Draws agents, chats and payloads: from the same `rng`, the same ones.

    `clock` is the present of the account, Unix seconds. Zero values are left out, as real senders leave them out.
    """

    def __init__(self, company: str, rng: random.Random, clock: float, *, agents: int = AGENTS) -> None:
        self.company = company
        self.rng = rng
        self.clock = clock
        self.agents = [self._agent(number) for number in range(agents)]
        self.chats: deque[Chat] = deque(maxlen=_TALKING)
        self.groups = [self._group(agent) for agent in self.agents]

    @property
    def now(self) -> int:
        """The present, whole Unix seconds."""
        return int(self.clock)

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens now."""
        return self.rng.random() < probability

    def agent(self) -> Agent:
        """Any agent."""
        return self.rng.choice(self.agents)

    def person(self) -> Chat:
        """A conversation with one person: a new one at times."""
        if not self.chats or self.chance(0.15):
            return self.newcomer()
        return self.rng.choice(self.chats)

    def newcomer(self) -> Chat:
        """A person who never wrote before."""
        chat = self.stranger()
        self.chats.append(chat)
        return chat

    def stranger(self) -> Chat:
        """A person who never wrote before and never will again."""
        return Chat(self.agent(), self.phone(), self.name())

    def phone(self) -> str:
        """An Indonesian mobile number, unused so far with near certainty."""
        return f"628{self.rng.randrange(10**9, 10**11)}"

    def name(self) -> str:
        """A person's name."""
        return f"{self.rng.choice(_NAMES)} {self.rng.choice(_LAST)}"

    def text(self) -> str:
        """What somebody writes."""
        return " ".join(self.rng.choices(_WORDS, k=17))

    def message_id(self) -> str:
        """A fresh message id."""
        return f"3EB0{self.rng.getrandbits(64):016X}"

    def message(self, chat: Chat, *, incoming: bool, kind: str = "") -> Payload:
        """`v1.messages.upsert`, of a random kind or of this one; a text is about 0.9 KB."""
        message_id, kind = self.message_id(), kind or self.rng.choice(_TYPES)
        other, ours = self.phone() if chat.group else chat.number, chat.agent.phone
        text = self.text() if kind in ("conversation", TEXT) else ""
        shown = (
            {"message_text": text} if text else {"message_url": f"https://media.example/{message_id.lower()}"}
        )
        return {
            "message_id": message_id,
            **self.of_chat(chat),
            "jid": chat.jid,
            "flow": "IN" if incoming else "OUT",
            "from_phone": other if incoming else ours,
            "to_phone": ours if incoming else other,
            "message_type": kind,
            **shown,
            "message_obj": self._content(kind, text),
            "key": {"id": message_id, "fromMe": not incoming, "remoteJid": chat.jid},
            "status": "delivered" if incoming else "sent",
            "message_timestamp": self.now,
        }

    def _content(self, kind: str, text: str) -> Payload:
        if kind == "conversation":
            return {kind: text}
        if not text:
            return {kind: {"fileLength": self.rng.randrange(10**6)}}
        context = {"expiration": 0, "disappearingMode": {"initiator": "CHANGED_IN_CHAT"}}
        device = {"senderTimestamp": "1795500000", "recipientTimestamp": "1795400000"}
        return {
            kind: {"text": text, "previewType": "NONE", "contextInfo": context},
            "messageContextInfo": {
                "deviceListMetadata": device,
                "deviceListMetadataVersion": 2,
                "messageSecret": f"{self.rng.getrandbits(256):064x}",
            },
        }

    def campaign(self) -> Payload:
        """The `campaign` of an incoming message."""
        return {
            "is_campaign": True,
            "tags": self.rng.choice(_CAMPAIGNS),
            "assigned_to": f"user-{self.rng.randrange(1, 20)}",
            "origin": self.rng.choice(("instagram-ads", "tiktok", "web")),
        }

    def of_chat(self, chat: Chat) -> Payload:
        """What every event of a chat says of it."""
        return {"chat_id": chat.id, "company_id": self.company, "agent_id": chat.agent.id}

    def chat(self, chat: Chat) -> Payload:
        """`v1.chats.upsert`."""
        named = {"is_group": True, "group_name": chat.name} if chat.group else {"push_name": chat.name}
        payload = {
            **self.of_chat(chat),
            "jid": chat.jid,
            "phone_number": chat.number,
            **named,
            "last_message": self.last_message(),
            "conversation_timestamp": self.now,
        }
        unread = self.rng.choice((0, 0, 1, 2, 7))
        return payload | {"unread_count": unread} if unread else payload

    def last_message(self) -> Payload:
        """What a chat shows of its newest message."""
        return {"id": self.message_id(), "text": self.text()}

    def contact(self, chat: Chat) -> Payload:
        """`v1.contacts.upsert`."""
        return {**self.of_chat(chat), "phone_number": chat.number, "push_name": chat.name}

    def rename(self, chat: Chat) -> Payload:
        """`v1.contacts.update`."""
        known = {"agent_id": chat.agent.id, "company_id": self.company, "phone_number": chat.number}
        return known | {"push_name": f"{self.name()} {RENAMED}"}

    def connection(self) -> Payload:
        """`v1.connection.update`: an agent that is paired, comes on or goes off."""
        agent = self.agent()
        status = self.rng.choice(("pairing", "connected", "connected", "disconnected"))
        known = {"agent_id": agent.id, "company_id": self.company, "status": status}
        if status == "connected":
            host, version = f"wa-node-{self.rng.randrange(1, 6)}", f"2.14.{self.rng.randrange(9)}"
            known |= {"agent_name": agent.name, "host_name": host, "version": version}
            return known | {"phone_number": agent.phone}
        return known | ({"qr_code": f"2@{self.rng.getrandbits(256):064x}"} if status == "pairing" else {})

    def _agent(self, number: int) -> Agent:
        return Agent(f"agent-{self.rng.getrandbits(32):08x}", self.phone(), f"CS {number + 1}")

    def _group(self, agent: Agent) -> Chat:
        number = f"1203630{self.rng.randrange(10**10, 10**11)}"
        return Chat(agent, number, self.rng.choice(_GROUPS), group=True)
