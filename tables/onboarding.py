"""Onboarding of whole batches: contacts and `onboarding_log` in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from tables.attribution import Incoming, LogRow, Logs, onboard
from tables.connection.pool import Database
from tables.contacts import ContactLookup, Contacts
from tables.last_writer_wins import Version, parse
from tables.queries import Observer, RowsStatement, load, operation

if TYPE_CHECKING:
    from tables.connection.pool import Connection

_ENTITY: Final = "OnboardingLog"
Pair = tuple[str, str]  # agent_id, cleaned phone


class Outcome(NamedTuple):
    """What became of one message's sender."""

    created: bool
    complete: bool  # plain messages have nothing to add, if they are not older than `since`
    since: Version | None = None  # None: however old they are


class OnboardingLogs:
    """The table `onboarding_log` of one tenant."""

    def __init__(self, schema: str, observer: Observer) -> None:
        self._sql = load("onboarding", schema)
        self._insert = RowsStatement(self._sql["insert"])
        self._update = RowsStatement(self._sql["update"])
        self._observer = observer

    async def find(self, connection: Connection, company: str, pairs: Iterable[Pair]) -> Logs:
        """The log rows of `pairs`; of a pair that is there twice, the first row."""
        wanted = sorted(set(pairs))
        if not wanted:
            return {}
        accounts, phones = zip(*wanted, strict=True)
        with operation(self._observer, "FindOnboardingLog", _ENTITY):
            rows = await connection.fetch(self._sql["find"], accounts, phones)
        logs: Logs = {}
        for row in rows:
            if row["company_id"] in (company, "", None):
                log = LogRow(row["agent_id"], row["phone"], row["id"], parse(row["version"]))
                logs.setdefault((log.agent_id, log.phone), log)
        return logs

    async def save(self, connection: Connection, company: str, logs: Iterable[LogRow]) -> None:
        """Insert the new rows and correct the changed ones, among `logs`."""
        changed = sorted((log for log in logs if log.changed), key=lambda log: (log.agent_id, log.phone))
        if not changed:
            return
        new = [log for log in changed if log.stored_id is None]
        old = [log for log in changed if log.stored_id is not None]
        with operation(self._observer, "SaveOnboardingLog", _ENTITY):
            if new:
                await connection.execute(self._insert.text, *self._insert.of_objects(new), company)
            if old:
                await connection.execute(self._update.text, *self._update.of_objects(old))


class OnboardingTables:
    """Onboards the senders of a tenant's incoming messages."""

    def __init__(self, database: Database, schema: str, observer: Observer) -> None:
        self._database = database
        self._schema = schema
        self._contacts = Contacts(schema, observer)
        self._logs = OnboardingLogs(schema, observer)

    async def known(self, company: str, pairs: Iterable[Pair]) -> dict[Pair, Version | None]:
        """Which of `pairs` are in the log, with the version of their first message (None: it has none)."""
        async with self._database.connection(self._schema) as connection:
            logs = await self._logs.find(connection, company, pairs)
        return {pair: log.version for pair, log in logs.items()}

    async def onboard(self, company: str, messages: Sequence[Incoming]) -> list[Outcome]:
        """Onboard the senders of `messages` in one transaction; one outcome each.

        No other writer of the same pairs comes in between, in this process or another. Raises
        `tables.errors.StorageError`; then nothing is written.
        """
        if not messages:
            return []
        async with self._database.transaction(self._schema) as connection:
            return await self.write(connection, messages, company=company)

    async def write(
        self, connection: Connection, messages: Sequence[Incoming], *, company: str
    ) -> list[Outcome]:
        """The same as `onboard`, in the caller's transaction."""
        lookups = [ContactLookup(*message.pair, message.contact_chat_id) for message in messages]
        index = await self._contacts.look_up(connection, lookups)
        logs = await self._logs.find(connection, company, [message.pair for message in messages])
        created = [onboard(index, logs, company, message) for message in messages]
        await self._contacts.save(connection, index)
        await self._logs.save(connection, company, logs.values())
        outcomes = []
        for message, made in zip(messages, created, strict=True):
            contact = index.find(company, *message.pair)
            since = None if contact is None else parse(contact.column_versions.get("origin"))
            outcomes.append(Outcome(made, contact is None or bool(contact.origin), since))
        return outcomes
