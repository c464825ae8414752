"""Everything stored for one tenant: its tables, and the order in which one transaction writes them."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, assert_never

from tables.accounts import Accounts
from tables.chats import Chats
from tables.connection.pool import Database
from tables.contacts import Contacts
from tables.exhausted import ExhaustedEvents
from tables.messages import Messages
from tables.mutations import (
    AccountRow,
    ChatMutation,
    ChatPatch,
    ChatRow,
    ContactMutation,
    ContactPatch,
    ContactRow,
    MessageMutation,
    MessagePatch,
    MessageRow,
    Mutation,
    PostScanRequest,
    WriteRejection,
)
from tables.onboarding import OnboardingTables
from tables.post_scan import DELAY, PostScanJobs
from tables.queries import Observer
from tables.write_probe import WriteProbe

if TYPE_CHECKING:
    from tables.connection.pool import Connection


@dataclass(frozen=True, slots=True)
class ByTable:
    """The mutations of each table."""

    accounts: list[AccountRow] = field(default_factory=list)
    chats: list[ChatMutation] = field(default_factory=list)
    contacts: list[ContactMutation] = field(default_factory=list)
    messages: list[MessageMutation] = field(default_factory=list)
    post_scan: list[PostScanRequest] = field(default_factory=list)

    @classmethod
    def of(cls, mutations: Sequence[Mutation]) -> Self:
        """Each mutation goes to one table; a type without one is an error of the type checker and of each batch."""
        tables = cls()
        for mutation in mutations:
            match mutation:
                case MessageRow() | MessagePatch():
                    tables.messages.append(mutation)
                case ChatRow() | ChatPatch():
                    tables.chats.append(mutation)
                case ContactRow() | ContactPatch():
                    tables.contacts.append(mutation)
                case AccountRow():
                    tables.accounts.append(mutation)
                case PostScanRequest():
                    tables.post_scan.append(mutation)
                case _:
                    assert_never(mutation)
        return tables


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

    async def write(self, mutations: Sequence[Mutation], *, bulk: bool = False) -> list[WriteRejection]:
        """Write all mutations; returns the ones that no row takes. `bulk` marks a history import.

        Raises `tables.errors.StorageError`; then nothing is written, or some new messages, and all may be repeated.
        """
        if not self.messages.are_likely_new(mutations):
            return await self._write(mutations, bulk=bulk)
        # A single statement commits by itself: one round trip to the server instead of three.
        async with self._database.connection() as connection:
            stored = await self.messages.insert_new(connection, mutations, bulk=bulk)
        if not stored:
            return []
        async with self._database.transaction() as connection:
            return await self.messages.merge_stored(connection, stored, bulk=bulk)

    async def _write(self, mutations: Sequence[Mutation], *, bulk: bool) -> list[WriteRejection]:
        by_table = ByTable.of(mutations)
        rejections: list[WriteRejection] = []
        # The order is the same for every replica, so that no two wait for each other.
        async with self._database.transaction() as connection:
            if by_table.accounts:
                rejections += await self.accounts.write(connection, by_table.accounts)
            if by_table.chats:
                rejections += await self.chats.write(connection, by_table.chats, bulk=bulk)
            if by_table.contacts:
                rejections += await self.contacts.write(connection, by_table.contacts, bulk=bulk)
            if by_table.messages:
                rejections += await self.messages.write(connection, by_table.messages, bulk=bulk)
            for request in by_table.post_scan:
                await self.post_scan.schedule(connection, request)
        return rejections

    async def unresolved(self) -> int:
        """How many parked events no operator has resolved."""
        async with self._database.connection() as connection:
            return await self.exhausted.unresolved(connection)

    async def newest_exhausted(self) -> datetime.datetime | None:
        """When an event was last parked; None without any."""
        async with self._database.connection() as connection:
            return await self.exhausted.newest(connection)
