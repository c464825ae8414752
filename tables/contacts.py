"""The contacts of one tenant: a row for each phone and account, of events and of onboarding (CTC-1 to CTC-7)."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from tables.contact_index import Contact, ContactIndex, derived_chat_id, identity
from tables.errors import SerializationFailure
from tables.mutations import ContactMutation, ContactPatch, ContactRow, WriteRejection
from tables.queries import Observer, RowsStatement, load, operation

if TYPE_CHECKING:
    from tables.connection.pool import Connection

# One lock for each pair would exhaust the server's lock table.
SLOTS: Final = 64
_ENTITY: Final = "Contact"


class ContactLookup(NamedTuple):
    """What a contact is looked up by: its account and phone, and a chat_id it may have or get."""

    agent_id: str
    phone: str
    chat_id: str


class Contacts:
    """Writes contacts of one tenant, inside the caller's transaction."""

    def __init__(self, schema: str, observer: Observer) -> None:
        self._sql = load("contacts", schema)
        self._insert = RowsStatement(self._sql["insert"])
        self._update = RowsStatement(self._sql["update"])
        self._observer = observer
        digest = hashlib.blake2b(f"contacts of {schema}".encode(), digest_size=8).digest()
        self._first_key = int.from_bytes(digest, signed=True) & ~(SLOTS - 1)

    async def write(
        self, connection: Connection, mutations: Sequence[ContactMutation], *, bulk: bool = False
    ) -> list[WriteRejection]:
        """Write `mutations`; returns those that no row takes. A pair that comes more than once makes one contact.

        Raises `SerializationFailure` when another program changed a contact meanwhile.
        """
        if not mutations:
            return []
        index = await self.look_up(connection, [_lookup(mutation) for mutation in mutations])
        # Rows first: an update that comes before its upsert finds it all the same.
        upserted = {id(upsert(index, row)) for row in mutations if isinstance(row, ContactRow)}
        patches = [mutation for mutation in mutations if isinstance(mutation, ContactPatch)]
        rejections = [it for patch in patches if (it := rename(index, patch)) is not None]
        name = "BulkUpsertContacts" if bulk else "UpsertContact"
        await self.save(connection, index, name, upserted)
        return rejections

    async def look_up(self, connection: Connection, lookups: Iterable[ContactLookup]) -> ContactIndex:
        """Lock these contacts against every other writer until the transaction ends, whether they exist or not."""
        pairs, chat_ids = set[tuple[str, str]](), set[str]()
        for lookup in lookups:
            pairs.add((lookup.agent_id, identity(lookup.phone)))
            chat_ids.update((lookup.chat_id, derived_chat_id(lookup.agent_id, lookup.phone)))
        chat_ids.discard("")
        accounts, phones = zip(*sorted(pairs), strict=True) if pairs else ((), ())
        with operation(self._observer, "FindContact", _ENTITY):
            await connection.fetchval(self._sql["lock"], self._lock_keys(chat_ids))
            return ContactIndex(await connection.fetch(self._sql["find"], accounts, phones, sorted(chat_ids)))

    async def save(
        self,
        connection: Connection,
        index: ContactIndex,
        name: str = "UpsertContact",
        upserted: Collection[int] = (),
    ) -> None:
        """Insert the new contacts and write the changed ones back; `name` is that of inserts and of `upserted` (by id).

        Raises `SerializationFailure` when another program took a chat_id or changed a contact meanwhile.
        """
        for statement, contacts, label in (
            (self._insert, index.added, name),
            (self._update, [each for each in index.changed if id(each) in upserted], name),
            (self._update, [each for each in index.changed if id(each) not in upserted], "UpdateContact"),
        ):
            if contacts:
                with operation(self._observer, label, _ENTITY):
                    status = await connection.execute(statement.text, *statement.of_objects(contacts))
                    if int(status.rpartition(" ")[2]) != len(contacts):
                        raise SerializationFailure("another program changed a contact meanwhile")

    def _lock_keys(self, chat_ids: Iterable[str]) -> list[int]:
        # The derived chat_id stands for the pair, so a pair and a chat_id that usually agree share a key.
        return sorted({self._first_key + zlib.crc32(each.encode()) % SLOTS for each in chat_ids})


def _lookup(mutation: ContactMutation) -> ContactLookup:
    chat_id = mutation.chat_id if isinstance(mutation, ContactRow) else ""
    return ContactLookup(mutation.agent_id, mutation.phone_number, chat_id)


def upsert(index: ContactIndex, row: ContactRow) -> Contact:
    """Apply `row` to the index; returns the contact that was added or found."""
    contact = index.find(row.company_id, row.agent_id, row.phone_number, row.chat_id)
    if contact is None:
        contact = index.add(row.company_id, row.agent_id, row.phone_number, row.chat_id)
    index.repair(contact, row.chat_id)
    index.offer_chat_id(contact, row.chat_id)
    contact.apply(row.stamp, {"push_name": row.push_name} if row.push_name else {})
    return contact


def rename(index: ContactIndex, patch: ContactPatch) -> WriteRejection | None:
    """Apply `patch` to the index; a rejection when no contact of its company is there."""
    contact = index.find(patch.company_id, patch.agent_id, patch.phone_number)
    if contact is None:
        exists = index.has_pair(patch.agent_id, patch.phone_number)
        return WriteRejection(patch.ref, "company" if exists else "not_found")
    index.repair(contact)
    contact.apply(patch.stamp, {"push_name": patch.push_name} if patch.push_name else {})
    return None
