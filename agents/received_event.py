"""One event on its way through the agents: its delivery, its payload, the writes it asks for, and its outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from agents.retry_policy import RetryPolicy
from events.delivery import Delivery, message_id
from events.errors import EventError
from events.history import History
from events.models import Event
from events.subjects import Tenant
from tables.attribution import Incoming
from tables.last_writer_wins import EventStamp
from tables.mutations import Mutation

# Most errors of single items in one text: a history batch may have a few hundred thousand of them.
NAMED: Final = 1000


@dataclass(slots=True, eq=False)
class ReceivedEvent:
    """One delivery with its decoded payload. `error` is its outcome: None when everything is stored.

    `writes` are stored or refused one by one: that of a real-time event, or one for each item of a history batch.
    """

    tenant: Tenant
    delivery: Delivery
    policy: RetryPolicy
    event_type: str
    stamp: EventStamp  # without version: of an envelope of the existing service
    payload: Event | History | None = None
    writes: list[Mutation] = field(default_factory=list)
    incoming: Incoming | None = None  # what is onboarded once the message is stored
    error: EventError | None = None
    # Index and error of each item that is not stored.
    failures: list[tuple[int, EventError]] = field(default_factory=list)
    routing_seconds: float = 0.0
    submitted: float = 0.0  # when it was handed to onboarding, in seconds of `time.perf_counter()`

    def conclude(self, errors: Mapping[int, EventError]) -> None:
        """Combine the errors of its items and of its writes, which are found by `ref`, into its own."""
        if self.error is None and (errors or isinstance(self.payload, History)):
            self.failures = list(self._failures(errors))
            if self.failures:
                self.error = self._combined()
        if self.error is not None:
            self.incoming = None

    def fail(self, error: EventError) -> None:
        """End with an error as a whole: nothing of it is stored, and its dead letter carries all of it."""
        self.error = error
        self.release()

    def release(self) -> None:
        """Free the decoded payload: thousands of events may wait for onboarding, and a dead letter has the body."""
        self.payload = None
        self.writes = []
        self.failures = []

    def release_items(self, count: int) -> bool:
        """Free at most so many writes, items and their errors of a history batch; returns whether none are left."""
        items = self.payload.items if isinstance(self.payload, History) else []
        del self.writes[-count:], items[-count:], self.failures[-count:]
        return not (self.writes or items or self.failures)

    def _failures(self, errors: Mapping[int, EventError]) -> Iterator[tuple[int, EventError]]:
        items = self.payload.items if isinstance(self.payload, History) else []
        writes = iter(self.writes)
        for index, item in enumerate(items):
            error = item.event if isinstance(item.event, EventError) else errors.get(next(writes).ref)
            if error is not None:
                yield index, error
        # What is left is the write of a real-time event, or the request that a last history batch makes.
        for write in writes:
            if write.ref in errors:
                yield len(items), errors[write.ref]

    @property
    def account(self) -> tuple[str, str]:
        """WhatsApp account and jid that the event names, also an invalid one; empty where there is none."""
        if isinstance(self.payload, History):
            items = self.payload.items
            return self.payload.agent_id or (items[0].event.account[0] if items else ""), ""
        named = self.payload or self.error
        return ("", "") if named is None else named.account

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

    def _combined(self) -> EventError:
        failures = self.failures
        if not isinstance(self.payload, History):
            return failures[0][1]
        # A retryable one keeps the whole batch in line: its other items are stored again without effect.
        chosen = next((error for _, error in failures if error.retryable), failures[0][1])
        named = [f"{self.payload.field}[{index}]: {_cause(error)}" for index, error in failures[:NAMED]]
        if len(failures) > NAMED:
            named.append(f"and {len(failures) - NAMED} more")
        return type(chosen)("; ".join(named))


def _cause(error: EventError) -> str:
    return str(error).partition(": ")[2]
