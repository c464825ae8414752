"""A pretended WhatsApp account of one company: its agents, their chats, and the payloads they produce.

Everything is drawn from one random source, so the same seed gives the same payloads. Payloads are those of
the specification (payloads); zero values are left out, as real senders leave them out.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

Payload = dict[str, Any]

AGENTS: Final = 3
# Chats that still talk; older ones fall silent, so that memory stays bounded however long this runs.
_TALKING: Final = 400
_NAMES: Final = ("Sari", "Budi", "Dewi", "Agus", "Putri", "Rizky", "Ayu", "Joko", "Maya", "Hendra", "Lia")
_LAST: Final = ("Wulandari", "Santoso", "Pratama", "Lestari", "Wijaya", "Nugroho", "Siregar", "Halim")
_GROUPS: Final = ("Tim Gudang", "Reseller Jawa", "Keluarga Kopi", "Promo Akhir Pekan")
_TEXTS: Final = (
    "Apakah stok kopi gayo masih ada?",
    "Halo kak, pesanan saya sudah dikirim?",
    "Terima kasih 🙏",
    "Bisa COD ke Bandung?",
    "Saya transfer hari ini ya",
    "Ada warna lain? ☕️",
    "Baik, ditunggu",
    "Mohon kirim katalog terbaru",
)
_TYPES: Final = ("conversation", "conversation", "conversation", "imageMessage", "audioMessage")
_CAMPAIGNS: Final = ("promo-nov,ig", "ramadan", "ig, tiktok", "toko-baru")


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


class Account:
    """Draws agents, chats and payloads; `clock` is the present of the account, Unix seconds."""

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
        chat = Chat(self.agent(), self.phone(), self.name())
        self.chats.append(chat)
        return chat

    def phone(self) -> str:
        """An Indonesian mobile number, unused so far with near certainty."""
        return f"628{self.rng.randrange(10**9, 10**11)}"

    def name(self) -> str:
        """A person's name."""
        return f"{self.rng.choice(_NAMES)} {self.rng.choice(_LAST)}"

    def message_id(self) -> str:
        """A fresh message id."""
        return f"3EB0{self.rng.getrandbits(64):016X}"

    def message(self, chat: Chat, *, incoming: bool) -> Payload:
        """`v1.messages.upsert` (MSG-1)."""
        message_id, kind = self.message_id(), self.rng.choice(_TYPES)
        sender = self.phone() if chat.group else chat.number
        text = self.rng.choice(_TEXTS) if kind == "conversation" else ""
        payload: Payload = {
            "message_id": message_id,
            "chat_id": chat.id,
            "jid": chat.jid,
            "flow": "IN" if incoming else "OUT",
            "company_id": self.company,
            "agent_id": chat.agent.id,
            "from_phone": sender if incoming else chat.agent.phone,
            "to_phone": chat.agent.phone if incoming else sender,
            "message_type": kind,
            "message_text": text,
            "message_url": "" if text else f"https://media.example/{message_id.lower()}",
            "message_obj": {kind: text or {"fileLength": self.rng.randrange(10**6)}},
            "key": {"id": message_id, "fromMe": not incoming, "remoteJid": chat.jid},
            "status": "delivered" if incoming else "sent",
            "message_timestamp": self.now,
        }
        return {name: value for name, value in payload.items() if value != ""}

    def campaign(self) -> Payload:
        """The `campaign` of an incoming message."""
        return {
            "is_campaign": True,
            "tags": self.rng.choice(_CAMPAIGNS),
            "assigned_to": f"user-{self.rng.randrange(1, 20)}",
            "origin": self.rng.choice(("instagram-ads", "tiktok", "web")),
        }

    def chat(self, chat: Chat) -> Payload:
        """`v1.chats.upsert` (CHT-1)."""
        payload: Payload = {
            "chat_id": chat.id,
            "jid": chat.jid,
            "company_id": self.company,
            "agent_id": chat.agent.id,
            "phone_number": chat.number,
            "conversation_timestamp": self.now,
            "last_message": self.last_message(),
        }
        payload |= {"is_group": True, "group_name": chat.name} if chat.group else {"push_name": chat.name}
        if unread := self.rng.choice((0, 0, 1, 2, 7)):
            payload["unread_count"] = unread
        return payload

    def last_message(self) -> Payload:
        """What a chat shows of its newest message."""
        return {"id": self.message_id(), "text": self.rng.choice(_TEXTS)}

    def contact(self, chat: Chat) -> Payload:
        """`v1.contacts.upsert` (CTC-2)."""
        return {
            "chat_id": chat.id,
            "phone_number": chat.number,
            "company_id": self.company,
            "agent_id": chat.agent.id,
            "push_name": chat.name,
        }

    def connection(self, agent: Agent) -> Payload:
        """`v1.connection.update`: an agent that is paired, comes on or goes off (AGT-1)."""
        payload: Payload = {"agent_id": agent.id, "company_id": self.company}
        status = self.rng.choice(("pairing", "connected", "connected", "disconnected"))
        payload["status"] = status
        if status == "pairing":
            payload["qr_code"] = f"2@{self.rng.getrandbits(256):064x}"
        if status == "connected":
            payload |= {
                "agent_name": agent.name,
                "host_name": f"wa-node-{self.rng.randrange(1, 6)}",
                "version": f"2.14.{self.rng.randrange(9)}",
                "phone_number": agent.phone,
            }
        return payload

    def _agent(self, number: int) -> Agent:
        return Agent(f"agent-{self.rng.getrandbits(32):08x}", self.phone(), f"CS {number + 1}")

    def _group(self, agent: Agent) -> Chat:
        number = f"1203630{self.rng.randrange(10**10, 10**11)}"
        return Chat(agent, number, self.rng.choice(_GROUPS), group=True)
