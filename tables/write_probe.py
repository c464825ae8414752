"""Whether PostgreSQL stores anything like an event: a valid write that is rolled back."""

from __future__ import annotations

import datetime
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Final, assert_never
from uuid import uuid4

from tables.attribution import CampaignAttribution, Incoming
from tables.connection.pool import Database
from tables.errors import DataError, QueryTimeout, StorageError, translated
from tables.last_writer_wins import EventStamp
from tables.mutation_writer import MutationWriter
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
)
from tables.onboarding import OnboardingTables
from tables.post_scan import PostScanJobs
from tables.queries import load

if TYPE_CHECKING:
    from tables.connection.pool import Connection

Like = Mutation | Incoming

# Seconds for each statement, and for the commit.
LIMIT: Final = 5.0
# A row that refers to another one: the probe's own row refers to nothing, so this is no answer.
_FOREIGN_KEY: Final = "23503"
# The statement to commit is not there, or not for us: then only the row counts.
_NO_COMMIT: Final = ("42883", "42501", "0A000")
_CANCELED: Final = "57014"
_STAMP: Final = EventStamp(None, "{}")


def kind_of(like: Like) -> Hashable:
    """What a probe is for: the table, and the month of a message, which has a partition of its own."""
    match like:
        case MessageRow():
            return "messages", like.message_date.year, like.message_date.month
        case MessagePatch():
            return "messages"
        case ChatRow() | ChatPatch():
            return "chats"
        case ContactRow() | ContactPatch():
            return "contacts"
        case AccountRow():
            return "agents"
        case PostScanRequest():
            return "post_scan_jobs"
        case Incoming():
            return "onboarding_log"
        case _:
            assert_never(like)


class WriteProbe:
    """Writes rows of one tenant that no event has, with the statements that write events."""

    def __init__(self, database: Database, schema: str, *, limit: float = LIMIT) -> None:
        """`limit` is the time for each statement, in seconds."""
        self._database = database
        self._limit = limit
        self._sql = load("write_probe", schema)
        # Instances of its own: probes are in no metric, and have no influence on how events are written.
        self._writer = MutationWriter(schema, _unobserved, PostScanJobs(database, schema, _unobserved))
        self._onboarding = OnboardingTables(database, schema, _unobserved)

    async def store(self, like: Like, company: str) -> None:
        """Return when a new row of the kind of `like`, a change to it, and a commit were accepted.

        The row is rolled back, so nobody ever sees it; what is committed is a message in the WAL without a table.
        Raises `StorageError` with the reason for which nothing is stored.
        """
        rejection = None
        try:
            async with self._database.transaction(commit=False) as connection:
                await connection.fetchrow(self._sql["limit"], str(int(self._limit * 1000)))
                agent_id = await connection.fetchval(self._sql["known_agent"]) or ""
                await self._write(connection, like, company, agent_id)
        except DataError as error:
            # A constraint that only the probe's row meets says nothing of a commit, which may be refused to all.
            rejection = None if error.sqlstate == _FOREIGN_KEY else error
        async with self._database.connection() as connection:
            await self._commit(connection)
        if rejection is not None:
            raise rejection

    async def _write(self, connection: Connection, like: Like, company: str, agent_id: str) -> None:
        for row in _rows(like, company, agent_id):
            if isinstance(row, Incoming):
                await self._onboarding.write(connection, [row], company=company)
            else:
                await self._writer.write(connection, [row])

    async def _commit(self, connection: Connection) -> None:
        try:
            with translated():
                # A commit that waits for a standby is ended by no `statement_timeout`.
                await connection.execute(self._sql["commit"], timeout=self._limit)
        except QueryTimeout as error:
            # The driver has asked the server to cancel the wait. With a code the connection is kept until that is
            # done: the server process of a dropped connection waits for the standby for ever.
            raise QueryTimeout(str(error), error.sqlstate or _CANCELED) from error
        except StorageError as error:
            if error.sqlstate not in _NO_COMMIT:
                raise


def _unobserved(operation: str, entity: str, seconds: float, succeeded: bool) -> None:
    """Probes are in no metric."""


def _phone() -> str:
    # No country has the code 999.
    return f"999{uuid4().int % 10**12:012}"


def _day(like: MessageRow | MessagePatch) -> datetime.date:
    if isinstance(like, MessageRow):
        return like.message_date
    return datetime.datetime.now(datetime.UTC).date()


def _rows(like: Like, company: str, agent_id: str) -> Sequence[Like]:
    """A row to insert, and a change of it."""
    name = f"daisi-write-probe-{uuid4()}"
    agent_id = agent_id or getattr(like, "agent_id", "") or name
    match like:
        case MessageRow() | MessagePatch():
            return _messages(name, company, agent_id, _day(like))
        case ChatRow() | ChatPatch():
            return _chats(name, company, agent_id)
        case ContactRow() | ContactPatch():
            return _contacts(company, agent_id)
        case AccountRow():
            return [AccountRow(0, _STAMP, name, company, "", "connected", "", "", "", "")] * 2
        case PostScanRequest():
            return [PostScanRequest(0, name, datetime.datetime.now(datetime.UTC), "{}")]
        case Incoming():
            return _incoming(name, agent_id)
        case _:
            assert_never(like)


def _messages(name: str, company: str, agent_id: str, day: datetime.date) -> Sequence[MessageMutation]:
    phone = _phone()
    row = MessageRow(
        ref=0,
        stamp=_STAMP,
        message_id=name,
        from_phone=phone,
        to_phone=_phone(),
        chat_id=f"{agent_id}_{phone}",
        jid=f"{phone}@s.whatsapp.net",
        flow="IN",
        message_text="",
        message_url="",
        message_type="conversation",
        agent_id=agent_id,
        company_id=company,
        message_obj="{}",
        key="{}",
        status="sent",
        message_timestamp=0,
        message_date=day,
    )
    return row, MessagePatch(0, _STAMP, name, company, "read", None, None, "")


def _chats(name: str, company: str, agent_id: str) -> Sequence[ChatMutation]:
    phone = _phone()
    row = ChatRow(
        ref=0,
        stamp=_STAMP,
        chat_id=name,
        jid=f"{phone}@s.whatsapp.net",
        company_id=company,
        agent_id=agent_id,
        phone_number=phone,
        push_name="",
        is_group=False,
        group_name="",
        last_message="{}",
        conversation_timestamp=0,
        unread_count=0,
        not_spam=True,
    )
    return row, ChatPatch(0, _STAMP, name, company, True, None, 1, None)


def _contacts(company: str, agent_id: str) -> Sequence[ContactMutation]:
    phone = _phone()
    row = ContactRow(0, _STAMP, f"{agent_id}_{phone}", phone, company, agent_id, "a")
    return row, ContactPatch(0, _STAMP, phone, company, agent_id, "b")


def _incoming(name: str, agent_id: str) -> Sequence[Incoming]:
    phone = _phone()
    jid = f"{phone}@s.whatsapp.net"
    plain = Incoming(agent_id, phone, name, 0, f"{agent_id}_{phone}", jid, None, _STAMP)
    return plain, plain._replace(campaign=CampaignAttribution("a", "", ""))
