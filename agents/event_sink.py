"""What the routing writes in batches: the changes of events, to the tables of one company."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from agents.received_event import PendingWrite
from events.errors import DatabaseError, EventError, Invalid, NotFound, Rejected, TimedOut, UnexpectedError
from tables.errors import DataError, QueryTimeout, StorageError
from tables.mutations import Mutation, PostScanRequest, WriteRejection
from tables.tenant import TenantTables
from tables.write_probe import kind_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EventSink:
    """A `Target` for units; each one that is not stored gets its error.

    `bulk` marks a history import. A replay of a dead letter was blamed before: it does not count for the breaker.
    """

    company: str
    tables: TenantTables
    bulk: bool = False
    replayed: bool = False

    async def write(self, items: Sequence[PendingWrite]) -> bool:
        """Write the changes; whether any was taken. Raises `StorageError`."""
        refusals = await self.tables.write([unit.change for unit in items], bulk=self.bulk)
        _refuse(items, refusals)
        return len(refusals) < len(items)

    async def probe(self, item: PendingWrite) -> None:
        """Store a test row in the table of this unit. Raises `StorageError`."""
        await self.tables.probe.store(item.change, self.company)

    def kind(self, item: PendingWrite) -> Hashable:
        """Its table."""
        return kind_of(item.change)

    def event(self, item: PendingWrite) -> Hashable:
        """Stream and sequence of its event: all items of a history batch are of one, and so are its redeliveries."""
        if self.replayed:
            return None
        change = item.change
        text = change.metadata if isinstance(change, PostScanRequest) else change.stamp.metadata
        metadata = json.loads(text)
        return metadata.get("stream"), metadata.get("stream_sequence")

    def blame(self, item: PendingWrite, error: Exception) -> None:
        """Give the unit its error."""
        item.error = event_error(error)


def event_error(error: Exception) -> EventError:
    """What an event is told when it is to blame for `error`."""
    if isinstance(error, DataError):
        return Rejected(f"database: {error}")
    if isinstance(error, QueryTimeout):
        return TimedOut(f"database: {error}")
    if isinstance(error, StorageError):
        return DatabaseError(f"database: {error}")
    logger.error("unexpected exception while storing an event", exc_info=error)
    return UnexpectedError(f"unexpected {type(error).__name__} while storing")


def _refuse(units: Sequence[PendingWrite], refusals: Sequence[WriteRejection]) -> None:
    if not refusals:
        return
    by_ref = {unit.change.ref: unit for unit in units}
    for refusal in refusals:
        by_ref[refusal.ref].error = (
            NotFound(f"{_entity(by_ref[refusal.ref].change)} to update not found")
            if refusal.reason == "not_found"
            else Invalid("validation failed: company_id is not the company of the stored row")
        )


def _entity(change: Mutation) -> str:
    name = type(change).__name__.removesuffix("Patch").removesuffix("Row").lower()
    return "agent" if name == "account" else name
