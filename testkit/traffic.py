"""The traffic of one company: an endless or counted run of events, the same for the same company and seed.

Pure: nothing here publishes, waits or looks at a clock.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from testkit import history, invalid_events
from testkit.account import AGENTS, Account, Chat, Draft, encoded
from testkit.items import Item, Payload, good

NUMBER_HEADER: Final = "Traffic-Number"
MESSAGE_ID_HEADER: Final = "Nats-Msg-Id"
COMPANY_HEADER: Final = "CompanyID"
# nats-server's default.
MAX_PAYLOAD: Final = 1024 * 1024
# Room for the headers, which count as payload too.
_HEADERS: Final = 200
_EVENTS_A_SECOND: Final = 10.0
_RECENT: Final = 50


class Publication(NamedTuple):
    """One event to publish, and what it is expected to come to."""

    number: int
    subject: str
    body: bytes
    headers: dict[str, str]
    event_type: str
    items: tuple[Item, ...]


class Traffic:
    """Draws publications.

    `start` is the account's first moment, Unix seconds; `broken_share` how many of the items in history batches can
    never be stored.
    """

    def __init__(
        self,
        company: str,
        seed: int,
        *,
        start: int,
        agents: int = AGENTS,
        broken_share: float = history.BROKEN,
    ) -> None:
        self._company = company
        self._seed = seed
        self._rng = random.Random(f"{company} {seed}")
        self._account = Account(company, self._rng, start, agents=agents)
        self._broken_share = broken_share
        self._number = 0
        self._messages: deque[Payload] = deque(maxlen=_RECENT)
        self._chats: deque[Chat] = deque(maxlen=_RECENT)
        self._contacts: deque[Chat] = deque(maxlen=_RECENT)
        self._published: deque[Publication] = deque(maxlen=_RECENT)
        # What an early update waits for, and after which event it comes.
        self._later: deque[tuple[int, Draft]] = deque()
        self._deck: list[str] = []

    def events(self, count: int | None = None) -> Iterator[Publication]:
        """`count` publications, or without end. No update is left without the event that it came before."""
        for number in itertools.count() if count is None else range(count):
            left = None if count is None else count - number
            yield self._next(left)
            self._account.clock += 1 / _EVENTS_A_SECOND

    def rest(self) -> Iterator[Publication]:
        """What earlier updates still wait for: to be published when an endless run is broken off."""
        while self._later:
            yield self._publication(self._later.popleft()[1])

    def make(self, card: str, *, at: float) -> Publication:
        """One event of a kind of `DECK`, at a moment (Unix seconds).

        An update of what was not made before is an upsert instead.
        """
        self._account.clock = at
        return self._dealt(card)

    def spoil(self, event_type: str, *, at: float) -> Publication:
        """One event of this type that can never be stored, at a moment (Unix seconds)."""
        self._account.clock = at
        spoiled = invalid_events.invalid if self._account.chance(0.7) else invalid_events.malformed
        return self._publication(spoiled(self._account, event_type))

    def _next(self, left: int | None) -> Publication:
        waiting = len(self._later)
        if waiting and (self._later[0][0] <= self._number or (left is not None and left <= waiting)):
            return self._publication(self._later.popleft()[1])
        card = self._draw()
        too_late = card.startswith("early ") and left is not None and left <= waiting + 1
        return self._dealt("incoming" if too_late else card)

    def _dealt(self, card: str) -> Publication:
        if card.startswith("repeat") and self._published:
            return self._repeat(same_id=card == "repeat")
        return self._publication(_CARDS[card][1](self))

    def _draw(self) -> str:
        if not self._deck:
            self._deck = [name for name, copies in DECK.items() for _ in range(copies)]
            if not self._published:  # the first deck only: it is a megabyte
                self._deck.append("oversized")
            self._rng.shuffle(self._deck)
        return self._deck.pop()

    def _publication(self, draft: Draft) -> Publication:
        self._number += 1
        headers = {NUMBER_HEADER: str(self._number)}
        if self._rng.random() < 0.85:
            headers[MESSAGE_ID_HEADER] = f"{self._company}-{self._seed}-{self._number}"
        subject = f"{draft.event_type}.{self._company}"
        made = Publication(self._number, subject, draft.body, headers, draft.event_type, draft.items)
        if not any(item.refused for item in draft.items):
            self._published.append(made)
        return made

    def _repeat(self, *, same_id: bool) -> Publication:
        """An earlier event once more: with its own id, which the server sees through, or with another."""
        self._number += 1
        earlier = self._rng.choice(self._published)
        headers = {**earlier.headers, NUMBER_HEADER: str(self._number)}
        if not same_id:
            headers[MESSAGE_ID_HEADER] = f"{self._company}-{self._seed}-{self._number}"
        return earlier._replace(number=self._number, headers=headers)

    def _incoming(self) -> Draft:
        return self._message(self._account.person(), incoming=True)

    def _message(self, chat: Chat, *, incoming: bool) -> Draft:
        self._messages.append(self._account.message(chat, incoming=incoming))
        return _draft("v1.messages.upsert", self._messages[-1])

    def _group(self) -> Draft:
        return self._message(self._rng.choice(self._account.groups), incoming=self._account.chance(0.8))

    def _campaign(self) -> Draft:
        payload = self._account.message(self._account.person(), incoming=True)
        return _draft("v1.messages.upsert", {**payload, "campaign": self._account.campaign()})

    def _update(self, message: Payload | None = None, **changes: object) -> Draft:
        if message is None and not self._messages:
            return self._incoming()
        message_id = (message or self._rng.choice(self._messages))["message_id"]
        update = {"message_id": message_id, "company_id": self._company, **changes}
        return _draft("v1.messages.update", update)

    def _chat(self, chat: Chat) -> Draft:
        self._chats.append(chat)
        return _draft("v1.chats.upsert", self._account.chat(chat))

    def _chat_update(self, chat: Chat | None = None, **changes: object) -> Draft:
        if chat is None and not self._chats:
            return self._chat(self._account.person())
        known = self._account.of_chat(chat or self._rng.choice(self._chats))
        return _draft("v1.chats.update", {**known, **changes})

    def _contact(self, chat: Chat) -> Draft:
        self._contacts.append(chat)
        return _draft("v1.contacts.upsert", self._account.contact(chat))

    def _rename(self, chat: Chat | None = None) -> Draft:
        if chat is None and not self._contacts:
            return self._contact(self._account.person())
        return _draft("v1.contacts.update", self._account.rename(chat or self._rng.choice(self._contacts)))

    def _history(self, field: str) -> Draft:
        return history.batch(self._account, field, broken_share=self._broken_share)

    def _early(self, table: str) -> Draft:
        """An update of what comes some events later."""
        account, chat = self._account, self._account.newcomer()
        match table:
            case "messages":
                payload = account.message(chat, incoming=False)
                update = self._update(payload, status="read")
            case "chats":
                payload = account.chat(chat)
                update = self._chat_update(chat, unread_count=1, conversation_timestamp=account.now)
            case _:
                payload = account.contact(chat)
                update = self._rename(chat)
        self._later.append((self._number + self._rng.randint(3, 25), _draft(f"v1.{table}.upsert", payload)))
        return update


# How often each kind of event comes among about a hundred, and how it is made: a repeat for want of an earlier event.
_CARDS: Final[Mapping[str, tuple[int, Callable[[Traffic], Draft]]]] = {
    "incoming": (26, lambda it: it._incoming()),
    "newcomer": (0, lambda it: it._message(it._account.newcomer(), incoming=True)),
    "outgoing": (12, lambda it: it._message(it._account.person(), incoming=False)),
    "group": (5, lambda it: it._group()),
    "campaign": (3, lambda it: it._campaign()),
    "status": (14, lambda it: it._update(status=it._rng.choice(("delivered", "read", "read")))),
    "edit": (2, lambda it: it._update(edited_message_obj={"conversation": it._account.message_id()})),
    "delete": (2, lambda it: it._update(is_deleted=it._account.chance(0.8))),
    "chat": (8, lambda it: it._chat(it._rng.choice((it._account.person(), it._account.groups[0])))),
    "unread": (8, lambda it: it._chat_update(unread_count=1, conversation_timestamp=it._account.now)),
    "read": (4, lambda it: it._chat_update()),
    "unread many": (2, lambda it: it._chat_update(unread_count=4, last_message=it._account.last_message())),
    "contact": (5, lambda it: it._contact(it._account.person())),
    "rename": (3, lambda it: it._rename()),
    "connection": (3, lambda it: _draft("v1.connection.update", it._account.connection())),
    "history messages": (1, lambda it: it._history("messages")),
    "history chats": (1, lambda it: it._history("chats")),
    "history contacts": (1, lambda it: it._history("contacts")),
    "repeat": (2, lambda it: it._incoming()),
    "repeat with another id": (2, lambda it: it._incoming()),
    "early status": (1, lambda it: it._early("messages")),
    "early unread": (1, lambda it: it._early("chats")),
    "early rename": (1, lambda it: it._early("contacts")),
    "odd": (3, lambda it: invalid_events.odd(it._account)),
    "invalid": (1, lambda it: invalid_events.invalid(it._account)),
    "malformed": (1, lambda it: invalid_events.malformed(it._account)),
    "orphan": (1, lambda it: invalid_events.orphan(it._account)),
    "oversized": (0, lambda it: invalid_events.oversized(it._account, MAX_PAYLOAD - _HEADERS)),
}
DECK: Final = {name: often for name, (often, _) in _CARDS.items() if often}


def _draft(event_type: str, payload: Payload) -> Draft:
    return Draft(event_type, encoded(payload), (good(event_type, payload),))


def merged(companies: list[Traffic], count: int | None = None) -> Iterator[Publication]:
    """The traffic of several companies in turns, `count` events in all."""
    shares: list[int | None] = [None] * len(companies)
    if count is not None:
        each, over = divmod(count, len(companies))
        shares = [each + (place < over) for place in range(len(companies))]
    runs = [traffic.events(share) for traffic, share in zip(companies, shares, strict=True)]
    for turn in itertools.zip_longest(*runs):
        yield from (publication for publication in turn if publication is not None)
