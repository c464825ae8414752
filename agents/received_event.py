"""One event on its way through the agents: its delivery, its payload, the writes it asks for, and its outcome."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from events import models
from events.delivery import Delivery, message_id
from events.errors import EventError
from events.subjects import Tenant
from tables.last_writer_wins import Version
from tables.mutations import Mutation

# Most errors of single items in one text: a history batch may have a few hundred thousand of them.
NAMED: Final = 1000


@dataclass(frozen=True, slots=True)
class EventMetadata:
    """What is known of an event besides its payload, whether it was delivered live or in a dead letter."""

    event_type: str
    last_metadata: str  # the column of that name, JSON text
    stored_ns: int
    sequence: int
    version: Version | None  # None: an envelope of the existing service, which has no version


@dataclass(slots=True, eq=False)
class PendingWrite:
    """What is stored or refused as one: a real-time event, or one item of a history batch."""

    mutation: Mutation
    index: int = 0
    error: EventError | None = None


@dataclass(slots=True, eq=False)
class ReceivedEvent:
    """One delivery with its decoded payload. `error` is its outcome: None when everything is stored."""

    tenant: Tenant
    delivery: Delivery
    metadata: EventMetadata
    payload: models.Event | models.History | None = None
    writes: list[PendingWrite] = field(default_factory=list)
    error: EventError | None = None
    routing_seconds: float = 0.0

    def conclude(self) -> EventError | None:
        """Combine the errors of the writes into one error; None when everything is stored."""
        if self.error is None:
            failures = sorted(self.failures(), key=itemgetter(0))
            if failures:
                self.error = self._combined(failures)
        return self.error

    def fail(self, error: EventError) -> None:
        """End with an error as a whole: nothing of it is stored, and its dead letter carries all of it."""
        self.error = error
        self.release()

    def release(self) -> None:
        """Free the decoded payload: thousands of events may wait for onboarding, and a dead letter has the body."""
        self.payload = None
        self.writes = []

    def release_items(self, count: int) -> bool:
        """Free at most so many writes and items of a settled history batch; returns whether none are left."""
        items = self.payload.items if isinstance(self.payload, models.History) else []
        del self.writes[-count:], items[-count:]
        return not self.writes and not items

    def failures(self) -> Iterator[tuple[int, EventError]]:
        """Index and error of each item that is not stored."""
        if isinstance(self.payload, models.History):
            for index, item in enumerate(self.payload.items):
                if isinstance(item.event, EventError):
                    yield index, item.event
        for write in self.writes:
            if write.error is not None:
                yield write.index, write.error

    @property
    def account(self) -> tuple[str, str]:
        """WhatsApp account and jid that the event names, also an invalid one; empty where there is none."""
        if isinstance(self.payload, models.History):
            first = self.payload.items[0].event if self.payload.items else None
            return self.payload.agent_id or getattr(first, "agent_id", None) or "", ""
        named = self.payload or self.error
        return getattr(named, "agent_id", None) or "", getattr(named, "jid", None) or ""

    @property
    def log_fields(self) -> dict[str, str | int]:
        """The fields that identify the event in a log line; never its payload."""
        position = self.delivery.metadata
        return {
            "company_id": self.tenant.company,
            "subject": self.delivery.subject,
            "stream": position.stream,
            "consumer": position.consumer,
            "stream_sequence": position.stream_sequence,
            "consumer_sequence": position.consumer_sequence,
            "nats_message_id": message_id(self.delivery),
        }

    def _combined(self, failures: list[tuple[int, EventError]]) -> EventError:
        if not isinstance(self.payload, models.History):
            return failures[0][1]
        # A retryable one keeps the whole batch in line: its other items are stored again without effect.
        chosen = next((error for _, error in failures if error.retryable), failures[0][1])
        named = [f"{self.payload.field}[{index}]: {_cause(error)}" for index, error in failures[:NAMED]]
        if len(failures) > NAMED:
            named.append(f"and {len(failures) - NAMED} more")
        return type(chosen)("; ".join(named))


def _cause(error: EventError) -> str:
    return str(error).partition(": ")[2]
