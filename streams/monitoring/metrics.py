"""The metrics of a worker: one method for each thing that can happen, and the page of all series.

All series of a company exist from the start, at 0: a series that appears with its first failure hides that failure
from `rate()`. Exceptions: deliveries by agent, whose labels come from events, and gauges that are read from NATS or
PostgreSQL, which are absent while they cannot be read.
"""

from __future__ import annotations

import asyncio
import collections
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

from prometheus_client import Counter, Gauge, generate_latest

from events.subjects import EVENT_TYPES, consumer_type
from streams.monitoring.agent_series import AgentSeries
from streams.monitoring.collectors import Collectors
from streams.monitoring.label_values import CONSUMERS, ONBOARDING_STATUSES, OPERATIONS, PARTS, outcomes

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class _Outcome(NamedTuple):
    """The series that a delivery with this outcome counts in."""

    action: Callable[[], None]
    ended: Callable[[], None]
    processing: Callable[[float], None]
    routing: Callable[[float], None]


class Metrics:
    """The metrics of one process, on a registry of their own.

    `companies` are the worker's tenants, `jid_limit` is `METRICS_JID_LIMIT`. All methods are called in the thread of
    the event loop.
    """

    def __init__(self, companies: Sequence[str], *, jid_limit: int = 1000, version: str) -> None:
        self.collectors = Collectors(version)  # the status page reads them without a scrape
        # Operations of the database that succeeded, by company.
        self.operations = collections.Counter[str]()
        self._received: dict[tuple[str, str], Counter] = {}
        self._outcomes: dict[tuple[str, str, str, str], _Outcome] = {}
        self._agents = AgentSeries(self.collectors.events_with_agent, jid_limit=jid_limit)
        self._watched: list[tuple[Gauge, Callable[[], int]]] = []
        self._reasons: Callable[[], Awaitable[Mapping[str, str]]] | None = None
        self._scrape = asyncio.Lock()
        # `labels` checks and looks up its values anew each time, which small batches feel.
        self._batches = functools.cache(self.collectors.batches.labels)
        for part in PARTS:
            self.collectors.ready.labels(part)
        for company in companies:
            self.add_company(company or "unknown")

    def company_refused(self) -> None:
        """An event of a company that is not served was not handled."""
        self.collectors.refused.inc()

    def add_company(self, company: str) -> None:
        """Create every series of a company that can occur."""
        on = self.collectors
        for event_type in EVENT_TYPES:
            labels = _event_labels(company, event_type)
            self._received[company, event_type] = on.events_received.labels(*labels)
            for action, error_type in outcomes(event_type):
                self._outcome(company, event_type, action, error_type)
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
            counter = self.collectors.events_received.labels(*_event_labels(company, event_type))
            self._received[company, event_type] = counter
        counter.inc(count)

    def agent_seen(self, company: str, event_type: str, agent_id: str, jid: str) -> None:
        """The payload of a delivery names an agent."""
        self._agents.count(company, event_type, agent_id, jid)

    def settled(
        self,
        company: str,
        event_type: str,
        action: str,
        error_type: str,
        processing_seconds: float,
        routing_seconds: float,
    ) -> None:
        """A delivery was settled, with the outcome `action` and `error_type`."""
        outcome = self._outcomes.get((company, event_type, action, error_type))
        if outcome is None:
            outcome = self._outcome(company, event_type, action, error_type)
        outcome.action()
        outcome.ended()
        outcome.processing(processing_seconds)
        outcome.routing(routing_seconds)

    def _outcome(self, company: str, event_type: str, action: str, error_type: str) -> _Outcome:
        on, labels = self.collectors, _event_labels(company, event_type)
        # Both are created, whichever this outcome counts in.
        processed, failed = on.events_processed.labels(*labels), on.events_failed.labels(*labels)
        outcome = _Outcome(
            on.actions.labels(*labels, action, error_type).inc,
            (processed if action == "ack_success" else failed).inc,
            on.processing.labels(*labels).observe,
            on.routing.labels(*labels).observe,
        )
        self._outcomes[company, event_type, action, error_type] = outcome
        return outcome

    def stuck(self, company: str, event_type: str, action: str) -> None:
        """A dead letter could not be built or published yet; its event is settled later."""
        error_type = "unknown" if action == "nak_dlq_marshal_fail" else "nats"
        self.collectors.actions.labels(*_event_labels(company, event_type), action, error_type).inc()

    def watch_dlq(self, queue_length: Callable[[], int], active: Callable[[], int]) -> None:
        """Read these at each scrape; several queues are added up."""
        self._watched += [(self.collectors.dlq_queue, queue_length), (self.collectors.dlq_active, active)]

    def dlq_submitted(self, company: str) -> None:
        """An envelope was handed to a DLQ worker."""
        self.collectors.dlq_submitted.labels(company).inc()

    def dlq_finished(self, company: str, seconds: float) -> None:
        """An envelope was handled, whatever the outcome."""
        self.collectors.dlq_duration.labels(company).observe(seconds)

    def dlq_retried(self, company: str) -> None:
        """A replay failed; its envelope is delivered again after a delay."""
        self.collectors.dlq_retries.labels(company).inc()

    def dlq_acked(self, company: str) -> None:
        """An envelope was replayed and acknowledged."""
        self.collectors.dlq_acks.labels(company).inc()

    def dlq_ack_failed(self, company: str) -> None:
        """An envelope was terminated, or an ack or nak failed; goes with `dlq_dropped` for a dropped one."""
        self.collectors.dlq_failures.labels(company).inc()

    def dlq_dropped(self, company: str) -> None:
        """An event was parked in `exhausted_events` and terminated."""
        self.collectors.dlq_dropped.labels(company).inc()

    def watch_onboarding(self, queue_length: Callable[[], int]) -> None:
        """Read this at each scrape; several queues are added up."""
        self._watched.append((self.collectors.onboarding_queue, queue_length))

    def onboarding_submitted(self, company: str, count: int = 1) -> None:
        """Tasks were offered to the pool."""
        self.collectors.onboarding_submitted.labels(company).inc(count)

    def onboarding_ended(self, company: str, status: str, seconds: float) -> None:
        """A task ended; `status` is one of `ONBOARDING_STATUSES`."""
        self.collectors.onboarding_processed.labels(company, status).inc()
        self.collectors.onboarding_duration.labels(company).observe(seconds)

    def database_observer(self, company: str) -> Callable[[str, str, float, bool], None]:
        """A callback for after each database operation: its name, entity, seconds, and whether it succeeded."""

        series = functools.cache(self.collectors.database.labels)

        def observe(operation: str, entity: str, seconds: float, succeeded: bool) -> None:
            status = "success" if succeeded else "error"
            series(operation, entity, company or "unknown", status).observe(seconds)
            self.operations[company] += succeeded

        return observe

    def pull_requested(self, _company: str, consumer_type: str) -> None:
        """A pull request was sent."""
        if consumer_type == "dlq":
            self.collectors.dlq_pull_requests.inc()

    def pull_failed(self, company: str, consumer_type: str) -> None:
        """A pull request failed, or the consumer is gone; an empty answer is no failure."""
        self.collectors.source_errors.labels(company, consumer_type).inc()
        if consumer_type == "dlq":
            self.collectors.dlq_pull_errors.inc()

    def batch_received(self, company: str, consumer_type: str, size: int) -> None:
        """A batch of deliveries arrived."""
        self._batches(company, consumer_type).observe(size)

    def store_time_stepped_back(self, company: str, consumer_type: str, seconds: float) -> None:
        """An event has a store time so much earlier than one of a lower sequence."""
        self.collectors.store_time_steps_back.labels(company, consumer_type).inc()
        self.collectors.store_time_step_back_seconds.labels(company, consumer_type).inc(seconds)

    def reconnected(self) -> None:
        """The connection to NATS was lost and is back."""
        self.collectors.reconnects.inc()

    def lag(self, company: str, consumer: str, pending: int | None, unacknowledged: int | None) -> None:
        """A consumer's pending and unacknowledged messages; None where unknown, which removes the series."""
        _set(self.collectors.pending, (company, consumer), pending)
        _set(self.collectors.unacknowledged, (company, consumer), unacknowledged)

    def dlq_state(self, company: str, messages: int | None, oldest_age: float | None) -> None:
        """Envelopes neither replayed nor parked, and the age of the oldest in seconds (0 for none)."""
        _set(self.collectors.dlq_messages, (company,), messages)
        _set(self.collectors.dlq_age, (company,), oldest_age)

    def exhausted(self, company: str, unresolved: int | None, newest: float | None) -> None:
        """Unresolved rows of exhausted_events, and the Unix time of the newest row (0 for none)."""
        _set(self.collectors.exhausted, (company,), unresolved)
        _set(self.collectors.exhausted_newest, (company,), newest)

    def partitions(self, company: str, months_ahead: int | None) -> None:
        """Months after this one that have their partition; None where unknown."""
        _set(self.collectors.months_ahead, (company,), months_ahead)

    def watch_readiness(self, reasons: Callable[[], Awaitable[Mapping[str, str]]]) -> None:
        """Ask this for each page: why the worker is not ready, by part."""
        self._reasons = reasons

    async def page(self) -> bytes:
        """The page in text format 0.0.4; made in a thread: with many tenants it takes long enough to delay events.

        Queue lengths are read before, in the thread of the event loop. One page is made at a time.
        """
        async with self._scrape:
            await self._read_readiness()
            self._read_watched()
            return await asyncio.to_thread(generate_latest, self.collectors.registry)

    async def _read_readiness(self) -> None:
        if self._reasons is None:
            return
        try:
            names = set(await self._reasons())
        except Exception:
            # /ready has the reason. A page that fails would hide all other metrics.
            names = {"worker"}
        broken = {name if name in PARTS else "sources" for name in names}
        for part in PARTS:
            self.collectors.ready.labels(part).set(part not in broken)

    def _read_watched(self) -> None:
        totals: dict[Gauge, int] = {}
        for gauge, read in self._watched:
            totals[gauge] = totals.get(gauge, 0) + read()
        for gauge, total in totals.items():
            gauge.set(total)


def _event_labels(company: str, event_type: str) -> tuple[str, str, str]:
    return event_type, company or "unknown", consumer_type(event_type)


def _set(gauge: Gauge, labels: tuple[str, ...], value: float | None) -> None:
    if value is None:
        gauge.remove(*labels)
    else:
        gauge.labels(*labels).set(value)
