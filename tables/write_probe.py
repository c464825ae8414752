"""Whether PostgreSQL stores anything like an event: a valid write that is rolled back."""

from __future__ import annotations

import datetime
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from tables import mutations
from tables.attribution import CampaignAttribution, Incoming
from tables.connection.pool import Database
from tables.errors import DataError, QueryTimeout, StorageError, translated
from tables.last_writer_wins import EventStamp
from tables.mutation_writer import MutationWriter, table_of
from tables.onboarding import OnboardingTables
from tables.post_scan import PostScanJobs
from tables.queries import load

if TYPE_CHECKING:
    from tables.connection.pool import Connection

Like = mutations.Mutation | Incoming

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
    if isinstance(like, mutations.MessageRow):
        return "messages", like.message_date.year, like.message_date.month
    return _table_of(like)


def _table_of(like: Like) -> str:
    return "onboarding_log" if isinstance(like, Incoming) else table_of(like)


class WriteProbe:
    """Writes rows of one tenant that no event has, with the statements that write events."""

    def __init__(self, database: Database, schema: str, *, limit: float = LIMIT) -> None:
        """`limit` is the time for each statement, in seconds."""
        self._database = database
        self._schema = schema
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
            async with self._database.transaction(self._schema, commit=False) as connection:
                await connection.fetchrow(self._sql["limit"], str(int(self._limit * 1000)))
                agent_id = await connection.fetchval(self._sql["known_agent"]) or ""
                for row in _rows(like, company, agent_id):
                    if isinstance(row, Incoming):
                        await self._onboarding.write(connection, [row], company=company)
                    else:
                        await self._writer.write(connection, [row])
        except DataError as error:
            # A constraint that only the probe's row meets says nothing of a commit, which may be refused to all.
            rejection = None if error.sqlstate == _FOREIGN_KEY else error
        async with self._database.connection(self._schema) as connection:
            await self._commit(connection)
        if rejection is not None:
            raise rejection

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


def _rows(like: Like, company: str, agent_id: str) -> Sequence[Like]:
    """A row to insert, and a change of it."""
    name = f"daisi-write-probe-{uuid4()}"
    agent_id = agent_id or getattr(like, "agent_id", "") or name
    phone = _phone()
    chat_id, jid = f"{agent_id}_{phone}", f"{phone}@s.whatsapp.net"
    now = datetime.datetime.now(datetime.UTC)
    day = like.message_date if isinstance(like, mutations.MessageRow) else now.date()
    sender = Incoming(agent_id, phone, name, 0, chat_id, jid, None, _STAMP)
    rows: dict[str, Sequence[Like]] = {
        "agents": [mutations.AccountRow(0, _STAMP, name, company, "", "connected", "", "", "", "")] * 2,
        "chats": [
            _chat(sender, company),
            mutations.ChatPatch(0, _STAMP, name, company, True, None, 1, None),
        ],
        "contacts": [
            mutations.ContactRow(0, _STAMP, chat_id, phone, company, agent_id, "a"),
            mutations.ContactPatch(0, _STAMP, phone, company, agent_id, "b"),
        ],
        "messages": [
            _message(sender, company, day),
            mutations.MessagePatch(0, _STAMP, name, company, "read", None, None, ""),
        ],
        "onboarding_log": [sender, sender._replace(campaign=CampaignAttribution("a", "", ""))],
        "post_scan_jobs": [mutations.PostScanRequest(0, name, now, "{}")],
    }
    return rows[_table_of(like)]


def _message(sender: Incoming, company: str, day: datetime.date) -> mutations.MessageRow:
    return mutations.MessageRow(
        ref=0,
        stamp=_STAMP,
        message_id=sender.message_id,
        from_phone=sender.phone,
        to_phone=_phone(),
        chat_id=sender.chat_id,
        jid=sender.jid,
        flow="IN",
        message_text="",
        message_url="",
        message_type="conversation",
        agent_id=sender.agent_id,
        company_id=company,
        message_obj="{}",
        key="{}",
        status="sent",
        message_timestamp=0,
        message_date=day,
    )


def _chat(sender: Incoming, company: str) -> mutations.ChatRow:
    return mutations.ChatRow(
        ref=0,
        stamp=_STAMP,
        chat_id=sender.message_id,
        jid=sender.jid,
        company_id=company,
        agent_id=sender.agent_id,
        phone_number=sender.phone,
        push_name="",
        is_group=False,
        group_name="",
        last_message="{}",
        conversation_timestamp=0,
        unread_count=0,
        not_spam=True,
    )
