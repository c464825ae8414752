"""Writes mutations of all types in the caller's transaction: which table each goes to, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Self, assert_never

from tables import mutations
from tables.accounts import Accounts
from tables.chats import Chats
from tables.contacts import Contacts
from tables.messages import Messages
from tables.mutations import Mutation, WriteRejection
from tables.post_scan import PostScanJobs
from tables.queries import Observer

if TYPE_CHECKING:
    from tables.connection.pool import Connection


@dataclass(frozen=True, slots=True)
class ByTable:
    """The mutations of each table, by its name."""

    agents: list[mutations.AccountRow] = field(default_factory=list)
    chats: list[mutations.ChatMutation] = field(default_factory=list)
    contacts: list[mutations.ContactMutation] = field(default_factory=list)
    messages: list[mutations.MessageMutation] = field(default_factory=list)
    post_scan_jobs: list[mutations.PostScanRequest] = field(default_factory=list)

    @classmethod
    def of(cls, given: Sequence[Mutation]) -> Self:
        """Each mutation goes to one table; a type without one is an error of the type checker and of each batch."""
        tables = cls()
        for mutation in given:
            match mutation:
                case mutations.MessageRow() | mutations.MessagePatch():
                    tables.messages.append(mutation)
                case mutations.ChatRow() | mutations.ChatPatch():
                    tables.chats.append(mutation)
                case mutations.ContactRow() | mutations.ContactPatch():
                    tables.contacts.append(mutation)
                case mutations.AccountRow():
                    tables.agents.append(mutation)
                case mutations.PostScanRequest():
                    tables.post_scan_jobs.append(mutation)
                case _:
                    assert_never(mutation)
        return tables


def table_of(mutation: Mutation) -> str:
    """The name of the table that a mutation goes to."""
    tables = ByTable.of([mutation])
    return next(table.name for table in fields(tables) if getattr(tables, table.name))


class MutationWriter:
    """The tables of one tenant that mutations are written to."""

    def __init__(self, schema: str, observer: Observer, post_scan: PostScanJobs) -> None:
        self.messages = Messages(schema, observer)
        self._chats = Chats(schema, observer)
        self._contacts = Contacts(schema, observer)
        self._accounts = Accounts(schema, observer)
        self._post_scan = post_scan

    async def write(
        self, connection: Connection, given: Sequence[Mutation], *, bulk: bool = False
    ) -> list[WriteRejection]:
        """Write all mutations; returns the ones that no row takes. Raises `tables.errors.StorageError`."""
        tables = ByTable.of(given)
        rejections: list[WriteRejection] = []
        # The order is the same for every replica, so that no two wait for each other.
        if tables.agents:
            rejections += await self._accounts.write(connection, tables.agents)
        if tables.chats:
            rejections += await self._chats.write(connection, tables.chats, bulk=bulk)
        if tables.contacts:
            rejections += await self._contacts.write(connection, tables.contacts, bulk=bulk)
        if tables.messages:
            rejections += await self.messages.write(connection, tables.messages, bulk=bulk)
        for request in tables.post_scan_jobs:
            await self._post_scan.schedule(connection, request)
        return rejections
