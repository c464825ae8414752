"""The table `contacts`: one row a (phone, agent), written by events and by onboarding (contract 3.5, 5.4)."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tables.contact_index import Contact, ContactIndex, derived_chat_id, identity
from tables.errors import SerializationFailure
from tables.mutations import ContactPatch, ContactRow, WriteRejection
from tables.queries import Observer, load, operation

if TYPE_CHECKING:
    from tables.connection.pool import Connection

# One lock a pair would exhaust the server's lock table (design 6).
SLOTS: Final = 64
_ENTITY: Final = "Contact"
_DATA_COLUMNS: Final = (
    "phone_number",
    "chat_id",
    "push_name",
    "tags",
    "assigned_to",
    "origin",
    "first_message_id",
    "first_message_timestamp",
    "last_metadata",
)
_INSERTED: Final = ("id", "agent_id", "company_id", *_DATA_COLUMNS)
_UPDATED: Final = ("stored_id", "row_version", "id", *_DATA_COLUMNS)


class ContactLookup(NamedTuple):
    """What a contact is looked up by: its pair, and a chat_id it may hold or want."""

    agent_id: str
    phone: str
    chat_id: str


class Contacts:
    """Writes contacts of one tenant, inside the caller's transaction."""

    def __init__(self, schema: str, observer: Observer) -> None:
        self._sql = load("contacts", schema)
        self._observer = observer
        digest = hashlib.blake2b(f"contacts of {schema}".encode(), digest_size=8).digest()
        self._first_key = int.from_bytes(digest, signed=True) & ~(SLOTS - 1)

    async def write(
        self, connection: Connection, changes: Sequence[ContactRow | ContactPatch], *, bulk: bool = False
    ) -> list[WriteRejection]:
        """Write `changes`; returns those that no row would take (contract 3.5).

        A repeated pair makes one contact. Raises `Contended` when another program changed a contact meanwhile.
        """
        if not changes:
            return []
        book = await self.look_up(connection, [_place(change) for change in changes])
        # Rows first: an update that came in front of its upsert finds it all the same.
        upserted = {id(upsert(book, change)) for change in changes if isinstance(change, ContactRow)}
        patches = [change for change in changes if isinstance(change, ContactPatch)]
        refusals = [refusal for change in patches if (refusal := rename(book, change)) is not None]
        name = "BulkUpsertContacts" if bulk else "UpsertContact"
        await self.insert(connection, book.added, name)
        await self.update(connection, [item for item in book.changed if id(item) in upserted], name)
        await self.update(connection, [item for item in book.changed if id(item) not in upserted])
        return refusals

    async def look_up(self, connection: Connection, places: Iterable[ContactLookup]) -> ContactIndex:
        """Lock these places against every other writer until the transaction ends, and read their contacts."""
        pairs, chat_ids = set[tuple[str, str]](), set[str]()
        for place in places:
            pairs.add((place.agent_id, identity(place.phone)))
            chat_ids.update((place.chat_id, derived_chat_id(place.agent_id, place.phone)))
        chat_ids.discard("")
        agents, phones = zip(*sorted(pairs), strict=True) if pairs else ((), ())
        with operation(self._observer, "FindContact", _ENTITY):
            await connection.fetchval(self._sql["lock"], self._lock_keys(chat_ids))
            return ContactIndex(await connection.fetch(self._sql["find"], agents, phones, sorted(chat_ids)))

    async def insert(self, connection: Connection, contacts: Sequence[Contact], name: str) -> None:
        """Insert new contacts. Raises `Contended` when another program took a chat_id meanwhile."""
        if contacts:
            with operation(self._observer, name, _ENTITY):
                await self._execute(connection, "insert", contacts, _INSERTED)

    async def update(
        self, connection: Connection, contacts: Sequence[Contact], name: str = "UpdateContact"
    ) -> None:
        """Write contacts back. Raises `Contended` when another program changed one meanwhile."""
        if contacts:
            with operation(self._observer, name, _ENTITY):
                await self._execute(connection, "update", contacts, _UPDATED)

    async def _execute(
        self, connection: Connection, statement: str, contacts: Sequence[Contact], columns: Sequence[str]
    ) -> None:
        arrays: list[list[Any]] = [[getattr(item, column) for item in contacts] for column in columns]
        status = await connection.execute(self._sql[statement], *arrays)
        if int(status.rpartition(" ")[2]) != len(contacts):
            raise SerializationFailure("another program changed a contact meanwhile")

    def _lock_keys(self, chat_ids: Iterable[str]) -> list[int]:
        # The derived chat_id stands for the pair, so a pair and a chat_id that usually agree share a key.
        return sorted({self._first_key + zlib.crc32(item.encode()) % SLOTS for item in chat_ids})


def _place(change: ContactRow | ContactPatch) -> ContactLookup:
    chat_id = change.chat_id if isinstance(change, ContactRow) else ""
    return ContactLookup(change.agent_id, change.phone_number, chat_id)


def upsert(book: ContactIndex, row: ContactRow) -> Contact:
    """Apply `row` to the contacts at hand; returns the contact it made or found (contract 3.5)."""
    contact = book.find(row.company_id, row.agent_id, row.phone_number, row.chat_id)
    if contact is None:
        contact = book.add(row.company_id, row.agent_id, row.phone_number, row.chat_id)
    book.repair(contact, row.chat_id)
    book.offer_chat_id(contact, row.chat_id)
    contact.apply(row.stamp, {"push_name": row.push_name} if row.push_name else {})
    return contact


def rename(book: ContactIndex, patch: ContactPatch) -> WriteRejection | None:
    """Apply `patch` to the contacts at hand; a refusal when no contact of its company is there."""
    contact = book.find(patch.company_id, patch.agent_id, patch.phone_number)
    if contact is None:
        known = book.held_elsewhere(patch.agent_id, patch.phone_number)
        return WriteRejection(patch.ref, "company" if known else "not_found")
    book.repair(contact)
    contact.apply(patch.stamp, {"push_name": patch.push_name} if patch.push_name else {})
    return None
