"""History batches: many items in one event, each decoded and checked by itself (HIS-1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Final, NamedTuple

import msgspec

from events.errors import EventError
from events.models import ChatUpsert, ContactUpsert, Event, MessageUpsert, event, parse


class HistoryMessages(msgspec.Struct):
    """`v1.history.messages`; the last batch of an account asks for the post-scan sync (PSS-1)."""

    messages: list[msgspec.Raw] | None = None
    is_last_batch: bool | None = None
    agent_id: str | None = None


class HistoryChats(msgspec.Struct):
    """`v1.history.chats`."""

    chats: list[msgspec.Raw] | None = None


class HistoryContacts(msgspec.Struct):
    """`v1.history.contacts`."""

    contacts: list[msgspec.Raw] | None = None


HistoryBatch = HistoryMessages | HistoryChats | HistoryContacts


class Kind(NamedTuple):
    """A type of history batch: its payload, the name of its array, and what the items are."""

    batch: type[HistoryBatch]
    field: str
    item: type[Event]


HISTORICAL: Final[Mapping[str, Kind]] = {
    "v1.history.chats": Kind(HistoryChats, "chats", ChatUpsert),
    "v1.history.messages": Kind(HistoryMessages, "messages", MessageUpsert),
    "v1.history.contacts": Kind(HistoryContacts, "contacts", ContactUpsert),
}
_DECODERS: Final[Mapping[type[HistoryBatch], Callable[[bytes], HistoryBatch]]] = {
    kind.batch: msgspec.json.Decoder(kind.batch).decode for kind in HISTORICAL.values()
}


class Item(NamedTuple):
    """One item of a history batch: its JSON text, and the event in it or what is wrong with it."""

    raw: bytes
    event: Event | EventError


@dataclass(frozen=True, slots=True)
class History:
    """A history batch. `items` are those of `packed` that were unpacked so far."""

    kind: Kind
    company: str
    packed: Sequence[msgspec.Raw]
    agent_id: str = ""
    is_last_batch: bool = False
    items: list[Item] = dataclass_field(default_factory=list)

    @property
    def field(self) -> str:
        """The name of the array of items."""
        return self.kind.field

    @property
    def unpacked(self) -> bool:
        """Whether all items are."""
        return len(self.items) == len(self.packed)

    def unpack(self, count: int | None = None) -> list[Item]:
        """Decode and check the next `count` items, or all that are left; each carries its own error."""
        start = len(self.items)
        end = None if count is None else start + count
        items = [self._item(bytes(raw)) for raw in self.packed[start:end]]
        self.items.extend(items)
        return items

    def _item(self, raw: bytes) -> Item:
        try:
            return Item(raw, event(self.kind.item, raw, self.company))
        except EventError as error:
            return Item(raw, error.kept())


def history(kind: Kind, body: bytes, company: str) -> History:
    """The batch in a sanitised body, with no item unpacked yet. Raises `Malformed`."""
    match parse(_DECODERS[kind.batch], body):
        case HistoryMessages() as batch:
            return History(
                kind, company, batch.messages or (), batch.agent_id or "", bool(batch.is_last_batch)
            )
        case HistoryChats() as batch:
            return History(kind, company, batch.chats or ())
        case HistoryContacts() as batch:
            return History(kind, company, batch.contacts or ())
