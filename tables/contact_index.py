"""The contacts that one batch writes, found by pair and by chat_id; no SQL here."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Final
from uuid import uuid4

from tables.last_writer_wins import EventStamp, decode_metadata, merge
from tables.queries import StoredRow

_PUNCTUATION: Final = str.maketrans("", "", "+ ()")
_NEWEST_WINS: Final = ("push_name", "assigned_to")
# The lowest version wins for these, so a row always says which one that is. `tags` has a version while the tag of a
# plain message may be taken back (see `tables.attribution`).
_EXPLICIT: Final = ("origin", "first_message_id", "tags")
_NEVER: Final = datetime.datetime.max.replace(tzinfo=datetime.UTC)


# A batch asks several times for each of its phones.
@lru_cache(maxsize=4096)
def clean_phone(phone: str) -> str:
    """`phone` without plus signs, spaces and brackets; hyphens stay."""
    return phone.translate(_PUNCTUATION)


def identity(phone: str) -> str:
    """What a phone is compared by: its cleaned form, or itself when nothing is left of it."""
    return clean_phone(phone) or phone


def derived_chat_id(agent_id: str, phone: str) -> str:
    """The chat_id that an earlier data model gave a contact (ONB-5)."""
    return f"{agent_id}_{clean_phone(phone).replace('-', '')}"


@dataclass(slots=True, eq=False)
class Contact:
    """One row, changed in place until it is written. Without `stored_id` and `row_version` it is new."""

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
    def column_versions(self) -> dict[str, str]:
        """The versions of single columns in `last_metadata`."""
        versions = (decode_metadata(self.last_metadata) or {}).get("versions")
        return dict(versions) if isinstance(versions, dict) else {}

    def apply(
        self, stamp: EventStamp, values: Mapping[str, Any], column_versions: Mapping[str, str] | None = None
    ) -> None:
        """Merge an event: `values` where it is the newest; `column_versions`, if given, replace the stored ones."""
        stored = decode_metadata(self.last_metadata)
        if column_versions is not None:
            stored = {**(stored or {}), "versions": column_versions}
        filled = [column for column in _NEWEST_WINS if getattr(self, column)]
        merged = merge([(stamp, values)], stored, filled, _EXPLICIT)
        for column, value in merged.values.items():
            setattr(self, column, value)
        self.last_metadata = merged.metadata
        self.changed = True


class ContactIndex:
    """The contacts found for one batch, and those it adds."""

    def __init__(self, rows: Iterable[StoredRow]) -> None:
        """`rows` are those of the statement `find`; of contacts with the same pair the oldest counts."""
        self._by_pair: dict[tuple[str, str], list[Contact]] = {}
        self._by_chat_id: dict[str, Contact] = {}
        self._by_id: dict[str, Contact] = {}
        for row in sorted(rows, key=lambda row: (row["created_at"] or _NEVER, row["id"])):
            if row["id"] not in self._by_id:
                self._by_id[row["id"]] = self._enter(_contact(row))
        self._added: list[Contact] = []

    def find(self, company: str, agent_id: str, phone: str, chat_id: str = "") -> Contact | None:
        """The contact of a pair; else the one that has `chat_id`, if it is of the same account and without phone."""
        for contact in self._by_pair.get((agent_id, identity(phone)), ()):
            if _belongs(contact, company):
                return contact
        holder = self._by_chat_id.get(chat_id)
        if holder is None or holder.agent_id != agent_id or not _belongs(holder, company):
            return None
        if holder.phone_number and holder.phone_number != phone:
            return None
        if not holder.phone_number:
            holder.phone_number = phone
            holder.changed = True
        self._by_pair.setdefault((agent_id, identity(phone)), []).append(holder)
        return holder

    def stored(self, contact_id: str) -> Contact | None:
        """The contact that was found with this id."""
        return self._by_id.get(contact_id)

    def has_pair(self, agent_id: str, phone: str) -> bool:
        """Whether the pair is there, whatever its company."""
        return (agent_id, identity(phone)) in self._by_pair

    def add(self, company: str, agent_id: str, phone: str, chat_id: str) -> Contact:
        """A new contact; its chat_id is the wanted one, the derived one, or none."""
        free = self._free_chat_id(chat_id, agent_id, phone)
        contact = Contact(str(uuid4()), agent_id, company, phone, free)
        self._added.append(self._enter(contact))
        return contact

    def offer_chat_id(self, contact: Contact, chat_id: str) -> None:
        """Take `chat_id` where the contact has none or a derived one, and it is free."""
        replaceable = ("", None, derived_chat_id(contact.agent_id, contact.phone_number or ""))
        if chat_id not in self._by_chat_id and contact.chat_id in replaceable:
            self._assign(contact, chat_id)

    def repair(self, contact: Contact, chat_id: str = "") -> None:
        """Give a row that the existing service left without id an id, and a chat_id or NULL (CTC-6)."""
        if contact.id:
            return
        contact.id = str(uuid4())
        contact.changed = True
        if not contact.chat_id:
            free = self._free_chat_id(chat_id, contact.agent_id, contact.phone_number or "")
            self._assign(contact, free)

    @property
    def added(self) -> list[Contact]:
        """The new contacts, in the order of their chat_ids."""
        return sorted(self._added, key=lambda contact: contact.chat_id or "")

    @property
    def changed(self) -> list[Contact]:
        """The stored contacts to write back, in the order of their ids."""
        return [self._by_id[key] for key in sorted(self._by_id) if self._by_id[key].changed]

    def _enter(self, contact: Contact) -> Contact:
        if contact.phone_number:
            pair = (contact.agent_id, identity(contact.phone_number))
            self._by_pair.setdefault(pair, []).append(contact)
        if contact.chat_id:
            self._by_chat_id[contact.chat_id] = contact
        return contact

    def _free_chat_id(self, wanted: str, agent_id: str, phone: str) -> str | None:
        if wanted and wanted not in self._by_chat_id:
            return wanted
        derived = derived_chat_id(agent_id, phone)
        return None if derived in self._by_chat_id else derived

    def _assign(self, contact: Contact, chat_id: str | None) -> None:
        # The chat_id it had stays taken for this batch: the statements see the rows as they were before.
        contact.chat_id = chat_id
        contact.changed = True
        if chat_id:
            self._by_chat_id[chat_id] = contact


def _belongs(contact: Contact, company: str) -> bool:
    return contact.company_id in (company, "", None)


_STORED: Final = tuple(field.name for field in fields(Contact) if field.name not in ("stored_id", "changed"))


def _contact(row: StoredRow) -> Contact:
    stored = {name: row[name] for name in _STORED}
    return Contact(**stored | {"agent_id": row["agent_id"] or "", "stored_id": row["id"]})
