"""Everything stored for one tenant: its tables, and the order in which one transaction writes them."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, cast

from tables.accounts import Accounts
from tables.chats import Chats
from tables.connection.pool import Database
from tables.contacts import Contacts
from tables.exhausted import ExhaustedEvents
from tables.messages import Messages
from tables.mutations import (
    AccountRow,
    ChatPatch,
    ChatRow,
    ContactPatch,
    ContactRow,
    MessagePatch,
    MessageRow,
    PostScanRequest,
    WriteRejection,
)
from tables.onboarding import OnboardingTables
from tables.post_scan import DELAY, PostScanJobs
from tables.queries import Observer
from tables.write_probe import WriteProbe

if TYPE_CHECKING:
    from tables.connection.pool import Connection


Mutation = (
    MessageRow | MessagePatch | ChatRow | ChatPatch | ContactRow | ContactPatch | AccountRow | PostScanRequest
)


class TenantTables:
    """The tables of one tenant's schema."""

    def __init__(
        self, database: Database, schema: str, observer: Observer, *, post_scan_delay: float = DELAY
    ) -> None:
        """`post_scan_delay` in seconds."""
        self._database = database
        self.messages = Messages(schema, observer)
        self.chats = Chats(schema, observer)
        self.contacts = Contacts(schema, observer)
        self.accounts = Accounts(schema, observer)
        self.exhausted = ExhaustedEvents(schema, observer)
        self.onboarding = OnboardingTables(database, schema, observer)
        self.post_scan = PostScanJobs(database, schema, observer, delay=post_scan_delay)
        self.probe = WriteProbe(database, schema)

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """A connection in a transaction: committed on leaving, rolled back on an exception."""
        return self._database.transaction()

    async def write(self, changes: Sequence[Mutation], *, bulk: bool = False) -> list[WriteRejection]:
        """Write all changes; returns the ones that no row would take. `bulk` marks a history import.

        Raises `tables.errors.StorageError`; then nothing is written, or some new messages, and all may be repeated.
        """
        if not self.messages.seem_new(changes):
            return await self._write(changes, bulk=bulk)
        messages = cast("Sequence[MessageRow]", changes)
        # A single statement commits by itself: one round trip to the server instead of three.
        async with self._database.connection() as connection:
            known = await self.messages.insert(connection, messages, bulk=bulk)
        if not known:
            return []
        async with self._database.transaction() as connection:
            return await self.messages.merge(connection, known, bulk=bulk)

    async def _write(self, changes: Sequence[Mutation], *, bulk: bool) -> list[WriteRejection]:
        refusals: list[WriteRejection] = []
        # The order is the same for every replica, so that no two wait for each other.
        async with self._database.transaction() as connection:
            if accounts := [change for change in changes if isinstance(change, AccountRow)]:
                refusals += await self.accounts.write(connection, accounts)
            if chats := [change for change in changes if isinstance(change, (ChatRow, ChatPatch))]:
                refusals += await self.chats.write(connection, chats, bulk=bulk)
            if contacts := [change for change in changes if isinstance(change, (ContactRow, ContactPatch))]:
                refusals += await self.contacts.write(connection, contacts, bulk=bulk)
            if messages := [change for change in changes if isinstance(change, (MessageRow, MessagePatch))]:
                refusals += await self.messages.write(connection, messages, bulk=bulk)
            for request in changes:
                if isinstance(request, PostScanRequest):
                    await self.post_scan.schedule(
                        connection, request.agent_id, request.stored_at, request.metadata
                    )
        return refusals

    async def unresolved(self) -> int:
        """How many given-up events no operator has resolved."""
        async with self._database.connection() as connection:
            return await self.exhausted.unresolved(connection)

    async def newest_exhausted(self) -> datetime.datetime | None:
        """When the newest given-up event was stored; None without any."""
        async with self._database.connection() as connection:
            return await self.exhausted.newest(connection)
