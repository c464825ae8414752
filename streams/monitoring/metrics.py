"""What is counted and timed: one object, whose verbs say what happened (monitoring guide, contract 9).

All series of our tenants are there from the start, at 0: a series that first appears with its first failure
hides that failure from `rate()`. Only metric 4 (its labels come from events) and what is read from NATS or
PostgreSQL (no number is better than a wrong one) appear later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

from prometheus_client import Counter, Gauge, generate_latest

from events.subjects import EVENT_TYPES, consumer_type
from streams.monitoring.collectors import Collectors
from streams.monitoring.label_values import CONSUMERS, ONBOARDING_STATUSES, OPERATIONS, PARTS, outcomes

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"
AGENT_LIMIT: Final = 1000
# Bounds a label that comes from an event.
LABEL_LENGTH: Final = 128


class _Settlement(NamedTuple):
    action: Callable[[], None]
    ended: Callable[[], None]
    processing: Callable[[float], None]
    routing: Callable[[float], None]


class _Bounded:
    """The values of one label: at most `limit` distinct ones, the empty one not counted, then `other`."""

    def __init__(self, limit: int) -> None:
        self._room = limit
        self._seen = {""} if limit else set[str]()

    def admit(self, value: str) -> str:
        if value not in self._seen:
            if self._room <= 0:
                return OTHER
            self._room -= 1
            self._seen.add(value)
        return value


class Metrics:
    """The collectors of one process, on a registry of their own.

    `companies` are our tenants, `jid_limit` is `METRICS_JID_LIMIT`. All verbs are called from one thread, the
    one of the event loop.
    """

    def __init__(self, companies: Sequence[str], *, jid_limit: int = 1000, version: str) -> None:
        self._on = Collectors(version)
        self._received: dict[tuple[str, str], Counter] = {}
        self._settled: dict[tuple[str, str, str, str], _Settlement] = {}
        self._agents: dict[tuple[str, str, str, str], Counter] = {}
        self._agent_ids = _Bounded(AGENT_LIMIT)
        self._jids = _Bounded(jid_limit)
        # Each event type may name each agent and each jid, but not all pairs of them.
        self._agent_series = len(EVENT_TYPES) * max(AGENT_LIMIT, jid_limit)
        self._watched: list[tuple[Gauge, Callable[[], int]]] = []
        self._reasons: Callable[[], Awaitable[Mapping[str, str]]] | None = None
        self._scrape = asyncio.Lock()
        for part in PARTS:
            self._on.ready.labels(part)
        for company in companies:
            self._prepare(company or "unknown")

    @property
    def collectors(self) -> Collectors:
        """What is measured, for those who read it here and not through a scrape."""
        return self._on

    def _prepare(self, company: str) -> None:
        """Make every series of a company that can occur."""
        for event_type in EVENT_TYPES:
            self._received[company, event_type] = self._on.events_received.labels(*_of(company, event_type))
            for action, error_type in outcomes(event_type):
                self._settlement(company, event_type, action, error_type)
        on = self._on
        for counter in (on.dlq_submitted, on.dlq_retries, on.dlq_acks, on.dlq_failures, on.dlq_dropped):
            counter.labels(company)
        on.dlq_duration.labels(company)
        for operation, entity in OPERATIONS:
            for status in ("success", "error"):
                on.database.labels(operation, entity, company, status)
        on.onboarding_submitted.labels(company)
        on.onboarding_duration.labels(company)
        for status in ONBOARDING_STATUSES:
            on.onboarding_processed.labels(company, status)
        for consumer in CONSUMERS:
            on.batches.labels(company, consumer)
            on.source_errors.labels(company, consumer)
            on.store_time_steps_back.labels(company, consumer)
            on.store_time_step_back_seconds.labels(company, consumer)

    def received(self, company: str, event_type: str, count: int = 1) -> None:
        """Deliveries arrived, redeliveries included."""
        counter = self._received.get((company, event_type))
        if counter is None:
            counter = self._on.events_received.labels(*_of(company, event_type))
            self._received[company, event_type] = counter
        counter.inc(count)

    def agent_seen(self, company: str, event_type: str, agent_id: str, jid: str) -> None:
        """A delivery's payload names an agent (contract 9.5); beyond the limits its labels are `other`."""
        # Limited first: the children of labels that are `other` anyway were a tenth of a worker's time.
        agent = self._agent_ids.admit(agent_id[:LABEL_LENGTH])
        contact = self._jids.admit(jid[:LABEL_LENGTH])
        counter = self._agents.get((company, event_type, agent, contact))
        if counter is None:
            counter = self._agent_counter(company, event_type, agent, contact)
        counter.inc()

    def _agent_counter(self, company: str, event_type: str, agent: str, contact: str) -> Counter:
        if len(self._agents) >= self._agent_series:
            agent = contact = OTHER
        key = (company, event_type, agent, contact)
        if key not in self._agents:
            labels = (event_type, company or "unknown", _printable(agent), _printable(contact))
            self._agents[key] = self._on.events_with_agent.labels(*labels)
        return self._agents[key]

    def settled(
        self,
        company: str,
        event_type: str,
        action: str,
        error_type: str,
        processing_seconds: float,
        routing_seconds: float,
    ) -> None:
        """A delivery came to its end: `action` and `error_type` say which (contract 3.9)."""
        settlement = self._settled.get((company, event_type, action, error_type))
        if settlement is None:
            settlement = self._settlement(company, event_type, action, error_type)
        settlement.action()
        settlement.ended()
        settlement.processing(processing_seconds)
        settlement.routing(routing_seconds)

    def _settlement(self, company: str, event_type: str, action: str, error_type: str) -> _Settlement:
        labels = _of(company, event_type)
        # Both exist from the start, whichever this outcome counts in.
        processed, failed = self._on.events_processed.labels(*labels), self._on.events_failed.labels(*labels)
        settlement = _Settlement(
            self._on.actions.labels(*labels, action, error_type).inc,
            (processed if action == "ack_success" else failed).inc,
            self._on.processing.labels(*labels).observe,
            self._on.routing.labels(*labels).observe,
        )
        self._settled[company, event_type, action, error_type] = settlement
        return settlement

    def stuck(self, company: str, event_type: str, action: str) -> None:
        """A dead letter could not be published or built; its event is kept and settled in the end."""
        error_type = "unknown" if action == "nak_dlq_marshal_fail" else "nats"
        self._on.actions.labels(*_of(company, event_type), action, error_type).inc()

    def watch_dlq(self, queue_length: Callable[[], int], active: Callable[[], int]) -> None:
        """Read these at each scrape; several watched queues add up."""
        self._watched += [(self._on.dlq_queue, queue_length), (self._on.dlq_active, active)]

    def dlq_fetched(self) -> None:
        """A pull request was sent."""
        self._on.dlq_pull_requests.inc()

    def dlq_fetch_failed(self) -> None:
        """A pull request failed; a time-out is no failure."""
        self._on.dlq_pull_errors.inc()

    def dlq_submitted(self, company: str) -> None:
        """An envelope was given to a worker."""
        self._on.dlq_submitted.labels(company).inc()

    def dlq_finished(self, company: str, seconds: float) -> None:
        """An envelope was handled, whatever the outcome."""
        self._on.dlq_duration.labels(company).observe(seconds)

    def dlq_retried(self, company: str) -> None:
        """A replay was put off with a delayed nak."""
        self._on.dlq_retries.labels(company).inc()

    def dlq_acked(self, company: str) -> None:
        """An envelope was replayed and acknowledged."""
        self._on.dlq_acks.labels(company).inc()

    def dlq_ack_failed(self, company: str) -> None:
        """An envelope was terminated, or an ack or nak failed; goes with `dlq_dropped` for a dropped one."""
        self._on.dlq_failures.labels(company).inc()

    def dlq_dropped(self, company: str) -> None:
        """An event was stored in `exhausted_events` and terminated."""
        self._on.dlq_dropped.labels(company).inc()

    def watch_onboarding(self, queue_length: Callable[[], int]) -> None:
        """Read this at each scrape; several watched queues add up."""
        self._watched.append((self._on.onboarding_queue, queue_length))

    def onboarding_submitted(self, company: str, count: int = 1) -> None:
        """Tasks were offered to the pool."""
        self._on.onboarding_submitted.labels(company).inc(count)

    def onboarding_ended(self, company: str, status: str, seconds: float) -> None:
        """A task ended with one of the guide's four statuses."""
        self._on.onboarding_processed.labels(company, status).inc()
        self._on.onboarding_duration.labels(company).observe(seconds)

    def database_observer(self, company: str) -> Callable[[str, str, float, bool], None]:
        """What tables call after each operation: with its name, entity, seconds, and whether it succeeded."""

        def observe(operation: str, entity: str, seconds: float, succeeded: bool) -> None:
            status = "success" if succeeded else "error"
            self._on.database.labels(operation, entity, company or "unknown", status).observe(seconds)

        return observe

    def fetched(self, company: str, consumer: str, messages: int) -> None:
        """A batch of deliveries arrived; `consumer` is realtime, historical or dlq."""
        self._on.batches.labels(company, consumer).observe(messages)

    def source_failed(self, company: str, consumer: str) -> None:
        """A pull request failed, or the consumer is gone."""
        self._on.source_errors.labels(company, consumer).inc()

    def store_time_stepped_back(self, company: str, consumer: str, seconds: float) -> None:
        """An event has a store time so much earlier than one of a lower sequence."""
        self._on.store_time_steps_back.labels(company, consumer).inc()
        self._on.store_time_step_back_seconds.labels(company, consumer).inc(seconds)

    def reconnected(self) -> None:
        """The connection to NATS was lost and is back."""
        self._on.reconnects.inc()

    def lag(self, company: str, consumer: str, pending: int | None, unacknowledged: int | None) -> None:
        """What a consumer has before it and in hand; None when it cannot be told: no number is shown then."""
        _show(self._on.pending, (company, consumer), pending)
        _show(self._on.unacknowledged, (company, consumer), unacknowledged)

    def dlq_state(self, company: str, messages: int | None, oldest_age: float | None) -> None:
        """Envelopes neither replayed nor given up, and the age of the oldest in seconds (0 for none)."""
        _show(self._on.dlq_messages, (company,), messages)
        _show(self._on.dlq_age, (company,), oldest_age)

    def exhausted(self, company: str, unresolved: int | None, newest: float | None) -> None:
        """Rows of exhausted_events that nobody has resolved, and the Unix time of the newest row (0 for none)."""
        _show(self._on.exhausted, (company,), unresolved)
        _show(self._on.exhausted_newest, (company,), newest)

    def partitions(self, company: str, months_ahead: int | None) -> None:
        """Months after this one that have their partition; None when it cannot be told."""
        _show(self._on.months_ahead, (company,), months_ahead)

    def watch_readiness(self, reasons: Callable[[], Awaitable[Mapping[str, str]]]) -> None:
        """Ask this for each page: why the worker is not ready, by part (contract 8.1)."""
        self._reasons = reasons

    def render(self) -> bytes:
        """The page in text format 0.0.4."""
        self._read_watched()
        return generate_latest(self._on.registry)

    async def page(self) -> bytes:
        """Like `render`, but made in a thread: with many tenants it takes long enough to hold up events.

        What is watched is read before, in the event loop's own thread. One page is made at a time.
        """
        async with self._scrape:
            await self._read_readiness()
            self._read_watched()
            return await asyncio.to_thread(generate_latest, self._on.registry)

    async def _read_readiness(self) -> None:
        if self._reasons is None:
            return
        try:
            names = set(await self._reasons())
        except Exception:
            # /ready says more. A page without its other figures would hide what is wrong.
            names = {"worker"}
        broken = {name if name in PARTS else "sources" for name in names}
        for part in PARTS:
            self._on.ready.labels(part).set(part not in broken)

    def _read_watched(self) -> None:
        totals: dict[Gauge, int] = {}
        for gauge, read in self._watched:
            totals[gauge] = totals.get(gauge, 0) + read()
        for gauge, total in totals.items():
            gauge.set(total)


def _of(company: str, event_type: str) -> tuple[str, str, str]:
    return event_type, company or "unknown", consumer_type(event_type)


def _printable(text: str) -> str:
    # The page is UTF-8, which has no lone surrogates.
    return text if text.isascii() else text.encode(errors="replace").decode()


def _show(gauge: Gauge, labels: tuple[str, ...], value: float | None) -> None:
    if value is None:
        gauge.remove(*labels)
    else:
        gauge.labels(*labels).set(value)
