"""The contacts that one batch touches: who is who, and which chat_id is free (contract 3.5, 5.4; no SQL here)."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import uuid4

from tables.last_writer_wins import EventStamp, PendingMerge, merge, remembered

_PUNCTUATION: Final = str.maketrans("", "", "+ ()")
_NEWEST_WINS: Final = ("push_name", "assigned_to")
# The lowest version wins for these, so a row always says which one that is. The mark of `tags` is there while
# the tag of a plain message is ours to take back (see `tables.attribution`).
_MARKED: Final = ("origin", "first_message_id", "tags")
_NEVER: Final = datetime.datetime.max.replace(tzinfo=datetime.UTC)


def clean_phone(phone: str) -> str:
    """`phone` without plus signs, spaces and brackets; hyphens stay (contract 5.2)."""
    return phone.translate(_PUNCTUATION)


def identity(phone: str) -> str:
    """What a phone is compared by: its cleaned form, or itself when nothing is left of it."""
    return clean_phone(phone) or phone


def derived_chat_id(agent_id: str, phone: str) -> str:
    """The chat_id that an earlier data model gave a contact (contract 5.4)."""
    return f"{agent_id}_{clean_phone(phone).replace('-', '')}"


@dataclass(slots=True, eq=False)
class Contact:
    """One row as it is stored, changed in place into what it shall be. Empty `stored_id` and version: new."""

    id: str
    agent_id: str
    company_id: str | None
    phone_number: str | None
    chat_id: str | None
    push_name: str | None = ""
    tags: str | None = ""
    assigned_to: str | None = ""
    origin: str | None = ""
    first_message_id: str | None = ""
    first_message_timestamp: int | None = 0
    last_metadata: str | None = None
    stored_id: str | None = None
    row_version: str = ""
    changed: bool = False

    @property
    def marks(self) -> dict[str, str]:
        """The versions of single columns that the row remembers."""
        marks = (self._known() or {}).get("versions")
        return dict(marks) if isinstance(marks, dict) else {}

    def apply(
        self, stamp: EventStamp, values: Mapping[str, Any], marks: Mapping[str, str] | None = None
    ) -> None:
        """Fold in an event: `values` where it is the newest; `marks`, if given, replace the remembered ones."""
        stored = self._known()
        if marks is not None:
            stored = {**(stored or {}), "versions": marks}
        filled = [column for column in _NEWEST_WINS if getattr(self, column)]
        draft = PendingMerge(stamp, [(stamp, values)])
        settled = merge(draft, stored, filled, _MARKED)
        for column, value in settled.values.items():
            setattr(self, column, value)
        self.last_metadata = settled.metadata
        self.changed = True

    def _known(self) -> dict[str, Any] | None:
        return remembered(self.last_metadata)


class Row(Protocol):
    """A row of the statement `find`, by column name."""

    def __getitem__(self, column: str, /) -> Any:
        """The value of a column."""
        ...


class ContactIndex:
    """The contacts found for one batch, and those it adds."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """`rows` are those of the statement `find`; of contacts with the same pair the oldest counts."""
        self._pairs: dict[tuple[str, str], list[Contact]] = {}
        self._holders: dict[str, Contact] = {}
        self._contacts: dict[str, Contact] = {}
        for row in sorted(rows, key=lambda row: (row["created_at"] or _NEVER, row["id"])):
            if row["id"] not in self._contacts:
                self._contacts[row["id"]] = self._enter(_contact(row))
        self._added: list[Contact] = []

    def find(self, company: str, agent_id: str, phone: str, chat_id: str = "") -> Contact | None:
        """The contact of a pair; else the one that holds `chat_id`, if it has the same agent and no phone yet."""
        for contact in self._pairs.get((agent_id, identity(phone)), ()):
            if _belongs(contact, company):
                return contact
        holder = self._holders.get(chat_id)
        if holder is None or holder.agent_id != agent_id or not _belongs(holder, company):
            return None
        if holder.phone_number and holder.phone_number != phone:
            return None
        if not holder.phone_number:
            holder.phone_number = phone
            holder.changed = True
        self._pairs.setdefault((agent_id, identity(phone)), []).append(holder)
        return holder

    def stored(self, contact_id: str) -> Contact | None:
        """The contact that was found with this id."""
        return self._contacts.get(contact_id)

    def held_elsewhere(self, agent_id: str, phone: str) -> bool:
        """Whether the pair is there, whatever its company."""
        return (agent_id, identity(phone)) in self._pairs

    def add(self, company: str, agent_id: str, phone: str, chat_id: str) -> Contact:
        """A new contact; its chat_id is the wanted one, the derived one, or none (contract 5.4)."""
        free = self._free_chat_id(chat_id, agent_id, phone)
        contact = Contact(str(uuid4()), agent_id, company, phone, free)
        self._added.append(self._enter(contact))
        return contact

    def offer_chat_id(self, contact: Contact, chat_id: str) -> None:
        """Take `chat_id` where the contact has none or a derived one, and it is free (contract 3.5)."""
        replaceable = ("", None, derived_chat_id(contact.agent_id, contact.phone_number or ""))
        if chat_id not in self._holders and contact.chat_id in replaceable:
            self._hold(contact, chat_id)

    def repair(self, contact: Contact, chat_id: str = "") -> None:
        """Give a row that the existing service left without id an id, and a chat_id or NULL (contract C1)."""
        if contact.id:
            return
        contact.id = str(uuid4())
        contact.changed = True
        if not contact.chat_id:
            free = self._free_chat_id(chat_id, contact.agent_id, contact.phone_number or "")
            self._hold(contact, free)

    @property
    def added(self) -> list[Contact]:
        """The new contacts, in the order of their chat_ids."""
        return sorted(self._added, key=lambda contact: contact.chat_id or "")

    @property
    def changed(self) -> list[Contact]:
        """The stored contacts to write back, in the order of their ids."""
        return [self._contacts[key] for key in sorted(self._contacts) if self._contacts[key].changed]

    def _enter(self, contact: Contact) -> Contact:
        if contact.phone_number:
            pair = (contact.agent_id, identity(contact.phone_number))
            self._pairs.setdefault(pair, []).append(contact)
        if contact.chat_id:
            self._holders[contact.chat_id] = contact
        return contact

    def _free_chat_id(self, wanted: str, agent_id: str, phone: str) -> str | None:
        candidates = (wanted, derived_chat_id(agent_id, phone))
        return next((item for item in candidates if item and item not in self._holders), None)

    def _hold(self, contact: Contact, chat_id: str | None) -> None:
        # The one it had stays taken for this batch: statements see the rows of before.
        contact.chat_id = chat_id
        contact.changed = True
        if chat_id:
            self._holders[chat_id] = contact


def _belongs(contact: Contact, company: str) -> bool:
    return contact.company_id in (company, "", None)


def _contact(row: Row) -> Contact:
    return Contact(
        id=row["id"],
        agent_id=row["agent_id"] or "",
        company_id=row["company_id"],
        phone_number=row["phone_number"],
        chat_id=row["chat_id"],
        push_name=row["push_name"],
        tags=row["tags"],
        assigned_to=row["assigned_to"],
        origin=row["origin"],
        first_message_id=row["first_message_id"],
        first_message_timestamp=row["first_message_timestamp"],
        last_metadata=row["last_metadata"],
        stored_id=row["id"],
        row_version=row["row_version"],
    )
