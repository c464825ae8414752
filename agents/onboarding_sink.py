"""What the onboarding writes in batches: the senders of a job's messages, to the tables of one company."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agents.event_sink import event_error
from agents.onboarding_queue import KnownPairs, nothing_new
from events.errors import EventError
from events.subjects import Tenant
from tables.attribution import Incoming
from tables.errors import StorageError
from tables.last_writer_wins import Version
from tables.onboarding import Outcome, Pair
from tables.write_probe import kind_of

logger = logging.getLogger(__name__)

Status = Literal["success_created", "success_exists", "error_db", "error_other"]


class Tables(Protocol):
    """What is needed of `tables.onboarding.OnboardingTables`."""

    def known(self, company: str, pairs: Iterable[Pair]) -> Awaitable[dict[Pair, Version | None]]:
        """Which pairs are in the log."""
        ...

    def onboard(self, company: str, messages: Sequence[Incoming]) -> Awaitable[list[Outcome]]:
        """Onboard the senders, in one transaction."""
        ...


class Probe(Protocol):
    """What is needed of `tables.write_probe.WriteProbe`."""

    def store(self, like: Incoming, company: str) -> Awaitable[None]:
        """Return if PostgreSQL onboards a sender that cannot exist. Raises `StorageError`."""
        ...


@dataclass(slots=True)
class TaskOutcomes:
    """How each task of a job ended."""

    statuses: list[Status | None]
    errors: list[EventError | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.errors = [None] * len(self.statuses)


@dataclass(frozen=True, slots=True)
class OnboardingSink:
    """A `Target` for the tasks of a job, by their places in it; the ledger gets each one's outcome."""

    tenant: Tenant
    messages: Sequence[Incoming]
    ledger: TaskOutcomes
    known: KnownPairs
    tables: Tables
    tenant_probe: Probe
    replayed: bool = False

    @property
    def company(self) -> str:
        """Whose tasks they are."""
        return self.tenant.company

    async def write(self, items: Sequence[int]) -> bool:
        """Onboard the senders of these places. Raises `StorageError`."""
        skipped = await self._skipped(items)
        chosen = [place for place in items if place not in skipped]
        outcomes = await self.tables.onboard(self.company, [self.messages[place] for place in chosen])
        for place in skipped:
            self.ledger.statuses[place] = "success_exists"
        for place, outcome in zip(chosen, outcomes, strict=True):
            self.ledger.statuses[place] = "success_created" if outcome.created else "success_exists"
            if outcome.complete:
                self.known.add(self.tenant, self.messages[place].pair, outcome.since)
        return bool(chosen)

    async def _skipped(self, items: Sequence[int]) -> set[int]:
        """The places whose messages have nothing to add to what is stored."""
        seen = [
            place
            for place in items
            if (message := self.messages[place]).campaign is None
            and self.known.has(self.tenant, message.pair, message.stamp.version)
        ]
        if not seen:
            return set()
        logged = await self.tables.known(self.company, {self.messages[place].pair for place in seen})
        return {place for place in seen if nothing_new(self.messages[place], logged)}

    async def probe(self, item: int) -> None:
        """Onboard a sender that cannot exist. Raises `StorageError`."""
        await self.tenant_probe.store(self.messages[item], self.company)

    def kind(self, item: int) -> Hashable:
        """All tasks are of one kind."""
        return kind_of(self.messages[item])

    def event(self, item: int) -> Hashable:
        """Stream and sequence of the message; a replay does not count, for it was blamed before."""
        if self.replayed:
            return None
        metadata = json.loads(self.messages[item].stamp.metadata)
        return metadata.get("stream"), metadata.get("stream_sequence")

    def blame(self, item: int, error: Exception) -> None:
        """Settle the task: the message is given up if the database refused it, and kept if we failed."""
        if isinstance(error, StorageError):
            self.ledger.statuses[item] = "error_db"
            self.ledger.errors[item] = event_error(error)
        else:
            self.ledger.statuses[item] = "error_other"
            logger.error("unexpected exception while onboarding a message", exc_info=error)
