"""Finds, reads, replays and discards exhausted events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import msgspec

from events import envelope
from events.delivery import TooLarge
from events.errors import Malformed
from events.subjects import Tenant
from streams.jetstream.broker import Broker
from tables.connection.pool import Database
from tables.exhausted import EXHAUSTED_ID, ExhaustedEvents, FoundRow, LockedRow, Search

Outcome = Literal["replayed", "duplicate", "refused", "discarded"]

_JSON_STRING: Final = '"'
# Companies that a message names.
_NAMED: Final = 20


class CommandFailed(Exception):
    """The command could not do its work; the text is for the operator."""


class Result(NamedTuple):
    """What became of one row, with a text for the operator."""

    outcome: Outcome
    text: str


class Listed(NamedTuple):
    """A row and whose it is."""

    tenant: Tenant
    row: FoundRow


class Target(NamedTuple):
    """The id of a row and whose it is."""

    tenant: Tenant
    row: int

    @property
    def name(self) -> str:
        """How operators call it."""
        return f"{self.tenant.company} {self.row}"


@dataclass(frozen=True, slots=True)
class ExhaustedEventService:
    """The rows of some companies; `subject` is the base subject of the dead letters, `known_as` what the companies are.

    A replay publishes the row's own envelope as a dead letter, so the event keeps its version and overwrites nothing
    newer. The row is resolved once the dead-letter stream has confirmed it. If the event is given up again, the
    envelope's mark leads back to its row, which is opened again (`tables.exhausted`).
    """

    tenants: Sequence[Tenant]
    database: Database
    subject: str
    known_as: str = "among COMPANY_ID"

    def of(self, company: str | None) -> Sequence[Tenant]:
        """The company that was asked for, or all. Raises `CommandFailed` for one that is not ours."""
        if company is None:
            return self.tenants
        for tenant in self.tenants:
            if tenant.company == company:
                return [tenant]
        raise CommandFailed(f"--company {company!r} is not {self.known_as}: {self._companies}")

    def one(self, company: str | None) -> Tenant:
        """The company that ids belong to: each has its own. Raises `CommandFailed` if it is not clear."""
        tenants = self.of(company)
        if len(tenants) != 1:
            raise CommandFailed(f"ids belong to one company: add --company with one of {self._companies}")
        return tenants[0]

    @property
    def _companies(self) -> str:
        names = ", ".join(tenant.company for tenant in self.tenants[:_NAMED]) or "there is none"
        more = len(self.tenants) - _NAMED
        return f"{names} and {more} more" if more > 0 else names

    async def find(self, tenants: Iterable[Tenant], search: Search, limit: int | None) -> list[Listed]:
        """At most `limit` rows of all these companies together, last given up first. Raises `StorageError`."""
        found: list[Listed] = []
        for tenant in tenants:
            async with self.database.connection() as connection:
                rows = await _events(tenant).find(connection, search, limit)
            found += [Listed(tenant, row) for row in rows]
            # Of a thousand companies no more rows are kept than are shown.
            if limit is not None and len(found) > 2 * limit:
                found = sorted(found, key=_moment, reverse=True)[:limit]
        return sorted(found, key=_moment, reverse=True)[:limit]

    async def read(self, target: Target) -> dict[str, Any]:
        """All of one row. Raises `CommandFailed` if there is none, and `StorageError`."""
        tenant, row = target
        async with self.database.connection() as connection:
            found = await _events(tenant).read(connection, row)
        if found is None:
            raise CommandFailed(f"{target.name}: there is no such row")
        return found

    async def discard(self, target: Target, *, by: str, reason: str) -> Result:
        """Resolve a row without replaying it; it stays in the table. Raises `StorageError`."""
        tenant, row = target
        async with self.database.transaction() as connection:
            locked = await _events(tenant).lock(connection, row)
            if locked is None:
                return Result("refused", f"{target.name}: there is no such row")
            if locked.resolved:
                return Result("refused", f"{target.name} is resolved already")
            await _events(tenant).resolve(connection, row, f"discarded by {by}", reason)
        return Result("discarded", f"{target.name} discarded")

    async def replay(self, target: Target, *, by: str, broker: Broker, open_only: bool = False) -> Result:
        """Publish a row's envelope again, and resolve the row once that is confirmed.

        Raises `BrokerError` if it is not confirmed (then the row stays as it was), and `StorageError`.
        """
        tenant, row = target
        # The row is locked meanwhile: the worker may give the event up again before we have resolved the row, and
        # must find it resolved, or the failure would be forgotten.
        async with self.database.transaction() as connection:
            locked = await _events(tenant).lock(connection, row)
            if locked is None:
                return Result("refused", f"{target.name}: there is no such row")
            if locked.resolved and open_only:
                return Result("refused", f"{target.name} was resolved meanwhile")
            result = await self._publish(target, locked, broker)
            if result.outcome == "replayed":
                await _events(tenant).resolve(connection, row, f"replayed by {by}")
        return result

    async def _publish(self, target: Target, locked: LockedRow, broker: Broker) -> Result:
        tenant, name = target.tenant, target.name
        try:
            body = replayable(locked)
            # Of this row after so many tries: a repeat within the stream's duplicate window is told apart from a
            # replay of what was given up once more.
            message_id = f"exhausted-{tenant.company}-{locked.id}-{locked.retry_count}"
            stored = await broker.publish(tenant.subject(self.subject), body, {"Nats-Msg-Id": message_id})
        except Malformed:
            return Result("refused", f"{name} holds no envelope: it cannot be replayed")
        except TooLarge as error:
            return Result("refused", f"{name} is too big for NATS, not published: {error}")
        if not stored:
            return Result(
                "duplicate", f"{name}: duplicate, not published: its replay is in the stream already"
            )
        return Result("replayed", f"{name} replayed")


def replayable(locked: LockedRow) -> bytes:
    """The row's envelope, with its tries to come and a mark that leads back to the row; all else stays as it is.

    Raises `Malformed` if the row holds none.
    """
    text = locked.dlq_payload
    if text.startswith(_JSON_STRING):
        # What jsonb does not take is kept as text.
        text = json.loads(text)
    body = text.encode(errors="replace")
    envelope.decode(body)
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields["retry_count"] = msgspec.Raw(b"0")
    fields[EXHAUSTED_ID] = msgspec.Raw(str(locked.id).encode())
    return msgspec.json.encode(fields)


async def paced(targets: Iterable[Target], per_second: float) -> AsyncIterator[Target]:
    """`targets`, each at least 1 / `per_second` seconds after the one before: what was late is not made up for."""
    due = time.monotonic()
    for target in targets:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        due = max(due, time.monotonic()) + 1 / per_second
        yield target


def _moment(listed: Listed) -> tuple[float, int]:
    given_up_at = listed.row.given_up_at
    return given_up_at.timestamp() if given_up_at else 0.0, listed.row.id


def _events(tenant: Tenant) -> ExhaustedEvents:
    return ExhaustedEvents(tenant.schema, _unobserved)


def _unobserved(_operation: str, _entity: str, _seconds: float, _succeeded: bool) -> None:
    """A command has no metrics."""
