"""Writes mutations of all types in the caller's transaction: which table each goes to, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, assert_never

from tables.accounts import Accounts
from tables.chats import Chats
from tables.contacts import Contacts
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
from tables.post_scan import PostScanJobs
from tables.queries import Observer

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


class MutationWriter:
    """The tables of one tenant that mutations are written to."""

    def __init__(self, schema: str, observer: Observer, post_scan: PostScanJobs) -> None:
        self.messages = Messages(schema, observer)
        self._chats = Chats(schema, observer)
        self._contacts = Contacts(schema, observer)
        self._accounts = Accounts(schema, observer)
        self._post_scan = post_scan

    async def write(
        self, connection: Connection, mutations: Sequence[Mutation], *, bulk: bool = False
    ) -> list[WriteRejection]:
        """Write all mutations; returns the ones that no row takes. Raises `tables.errors.StorageError`."""
        by_table = ByTable.of(mutations)
        rejections: list[WriteRejection] = []
        # The order is the same for every replica, so that no two wait for each other.
        if by_table.accounts:
            rejections += await self._accounts.write(connection, by_table.accounts)
        if by_table.chats:
            rejections += await self._chats.write(connection, by_table.chats, bulk=bulk)
        if by_table.contacts:
            rejections += await self._contacts.write(connection, by_table.contacts, bulk=bulk)
        if by_table.messages:
            rejections += await self.messages.write(connection, by_table.messages, bulk=bulk)
        for request in by_table.post_scan:
            await self._post_scan.schedule(connection, request)
        return rejections
