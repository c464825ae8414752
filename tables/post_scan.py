"""After an account's last history batch: give its contacts their first message and origin (PSS-1 to PSS-4)."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tables.attribution import PLAIN_ORIGIN, LogRow, Logs, with_plain_tag
from tables.connection.pool import Database
from tables.contact_index import Contact, ContactIndex, clean_phone
from tables.contacts import ContactLookup, Contacts
from tables.mutations import PostScanRequest
from tables.onboarding import OnboardingLogs
from tables.queries import Observer, load, operation

if TYPE_CHECKING:
    from tables.connection.pool import Connection

DELAY: Final = 900.0
PAGE_SIZE: Final = 500
# How long a job stays with the replica that took it; every page prolongs it.
LEASE: Final = datetime.timedelta(minutes=5)
# Digits; a longer one is the number of a group.
_LONGEST_PHONE: Final = 17
# The address of a linked id, which is nobody's number.
_LINKED: Final = ("@lid", "@hosted.lid")


@dataclass(slots=True)
class Claim:
    """A job leased until `until`, and the last contact that was handled."""

    agent_id: str
    until: datetime.datetime
    last_metadata: str | None
    created_at: datetime.datetime | None = None
    contact_id: str = ""


class Progress(NamedTuple):
    """The result of one page of contacts."""

    updated: int
    more: bool


class First(NamedTuple):
    """The earliest incoming message of a phone."""

    sent_at: int
    message_id: str


class PostScanJobs:
    """The table `post_scan_jobs` of one tenant, and the synchronisation that a job asks for."""

    def __init__(self, database: Database, schema: str, observer: Observer, *, delay: float = DELAY) -> None:
        """`delay` is the time between the last history batch and the job, in seconds."""
        self._database = database
        self._schema = schema
        self._sql = load("post_scan", schema)
        self._observer = observer
        self._contacts = Contacts(schema, observer)
        self._logs = OnboardingLogs(schema, observer)
        self._delay = datetime.timedelta(seconds=delay)

    async def schedule(self, connection: Connection, request: PostScanRequest) -> None:
        """Schedule the job of one account, in the transaction that stores its last history batch."""
        due = request.stored_at + self._delay
        await connection.execute(self._sql["schedule"], request.agent_id, due, request.metadata)

    async def claim(self, now: datetime.datetime) -> Claim | None:
        """Lease the job that is due the longest, if there is one; no other replica gets it meanwhile."""
        until = now + LEASE
        async with self._database.transaction(self._schema) as connection:
            row = await connection.fetchrow(self._sql["claim"], now, until)
        return None if row is None else Claim(row["agent_id"], until, row["last_metadata"])

    async def sync_page(self, claim: Claim, company: str, now: datetime.datetime) -> Progress:
        """Handle the next page of contacts in one transaction; done again it changes nothing.

        Without `more` the job is done, or no longer leased: it was scheduled again, for later.
        """
        until = now + LEASE
        async with self._database.transaction(self._schema) as connection:
            if not await connection.fetchval(self._sql["extend"], claim.agent_id, claim.until, until):
                return Progress(0, more=False)
            with operation(self._observer, "FindContactsWithoutOrigin", "Contact"):
                page = await connection.fetch(
                    self._sql["page"], claim.agent_id, company, claim.created_at, claim.contact_id, PAGE_SIZE
                )
            updated = await self._sync(connection, claim.agent_id, company, page, now) if page else 0
        claim.until = until
        if page:
            claim.created_at, claim.contact_id = page[-1]["created_at"], page[-1]["id"]
        return Progress(updated, more=len(page) == PAGE_SIZE)

    async def finish(self, claim: Claim) -> None:
        """Delete the job, unless it was scheduled again meanwhile."""
        async with self._database.transaction(self._schema) as connection:
            await connection.execute(self._sql["finish"], claim.agent_id, claim.until, claim.last_metadata)

    async def _sync(
        self, connection: Connection, agent_id: str, company: str, page: Sequence[Any], now: datetime.datetime
    ) -> int:
        phones = {row["id"]: row["phone_number"] for row in page if _is_person(row["phone_number"])}
        if not phones:
            return 0
        index = await self._contacts.look_up(
            connection, [ContactLookup(agent_id, phone, "") for phone in phones.values()]
        )
        logs = await self._logs.find(
            connection, company, [(agent_id, clean_phone(phone)) for phone in phones.values()]
        )
        firsts = await self._first_messages(connection, agent_id, company, phones.values())
        updated = 0
        for contact_id in phones:
            contact = index.stored(contact_id)
            if contact is not None and not contact.origin:
                updated += _give_origin(index, contact, logs, firsts, _note(now))
        await self._contacts.save(connection, index)
        await self._logs.save(connection, company, logs.values())
        return updated

    async def _first_messages(
        self, connection: Connection, agent_id: str, company: str, phones: Iterable[str]
    ) -> dict[str, First]:
        wanted = sorted({form for phone in phones for form in (phone, clean_phone(phone))})
        with operation(self._observer, "FindFirstIncomingMessage", "Message"):
            rows = await connection.fetch(self._sql["first_incoming"], agent_id, company, wanted)
        firsts: dict[str, First] = {}
        for row in rows:
            first = First(row["message_timestamp"] or 0, row["message_id"] or "")
            phone = clean_phone(row["phone"])
            firsts[phone] = min(first, firsts.get(phone, first))
        return firsts


def _is_person(phone: str | None) -> bool:
    bare = (phone or "").replace("-", "").replace(" ", "")
    if bare.endswith(_LINKED):
        return False
    return bool(clean_phone(bare)) and len(bare) <= _LONGEST_PHONE


def _give_origin(
    index: ContactIndex, contact: Contact, logs: Logs, firsts: dict[str, First], note: str
) -> bool:
    phone = clean_phone(contact.phone_number or "")
    first = firsts.get(phone)
    if first is None or (contact.agent_id, phone) in logs:
        return False
    index.repair(contact)
    contact.origin = PLAIN_ORIGIN
    contact.tags = with_plain_tag(contact.tags)
    contact.first_message_id, contact.first_message_timestamp = first.message_id, first.sent_at
    contact.changed = True
    # No version, so no message of later corrects it: it comes out of the history.
    log = LogRow(
        contact.agent_id,
        phone,
        message_id=first.message_id,
        sent_at=first.sent_at,
        last_metadata=note,
        changed=True,
    )
    logs[contact.agent_id, phone] = log
    return True


def _note(now: datetime.datetime) -> str:
    synced_at = now.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"source": "post_scan_sync", "synced_at": synced_at})
