"""The metrics of a worker: one method for each thing that can happen, and the page of all series.

Which series exist at 0 before anything is counted in them is in `company_series`. Deliveries by agent do not, as their
labels come from events. Gauges that are read from NATS or PostgreSQL are absent while they cannot be read.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from events.subjects import ALL_COMPANIES
from streams.monitoring.agent_series import AgentSeries
from streams.monitoring.collectors import PROCESSING_BUCKETS, Collectors
from streams.monitoring.company_series import (
    UNKNOWN,
    add_all,
    add_consumers,
    add_event_type,
    add_quiet,
    event_labels,
)
from streams.monitoring.exposition import gathered
from streams.monitoring.label_values import PARTS
from streams.monitoring.series import Distribution, Number, Numbers

# Companies of a list whose series all exist from the start: 200 KB each.
FEW: Final = 10
DEAD_LETTERED: Final = "dlq_published_ack_success"


@dataclass(slots=True)
class CompanyCounts:
    """Deliveries of one company since the start, of all types."""

    received: int = 0
    processed: int = 0
    failed: int = 0
    dead_lettered: int = 0


class _Received(NamedTuple):
    """What a delivery of this company and type counts in."""

    series: Number
    company: CompanyCounts


class _Outcome(NamedTuple):
    """What a delivery with this outcome counts in."""

    action: Number
    ended: Number
    processing: Distribution
    routing: Distribution
    company: CompanyCounts


class Metrics:
    """The metrics of one process.

    `companies` are those of the settings, none for a fleet: its companies are added. `jid_limit` is
    `METRICS_JID_LIMIT`. All methods are called in the thread of the event loop.
    """

    def __init__(self, companies: Sequence[str], *, jid_limit: int = 1000, version: str) -> None:
        self.collectors = Collectors(version)  # the status page reads them without a scrape
        # Operations of the database that succeeded, by company.
        self.operations = collections.Counter[str]()
        self.counts: dict[str, CompanyCounts] = {}  # by company
        self.processing = Distribution("", PROCESSING_BUCKETS)  # of all companies
        self._complete = 0 < len(companies) <= FEW
        self._received: dict[tuple[str, str], _Received] = {}
        self._outcomes: dict[tuple[str, str, str, str], _Outcome] = {}
        self._agents = AgentSeries(self.collectors.events_with_agent, jid_limit=jid_limit)
        self._watched: list[tuple[Number, Callable[[], int]]] = []
        self._reasons: Callable[[], Awaitable[Mapping[str, str]]] | None = None
        self._scrape = asyncio.Lock()
        for part in PARTS:
            self.collectors.ready.labels(part)
        add_consumers(self.collectors, companies or (ALL_COMPANIES,), batches=self._complete)
        for company in companies:
            self.add_company(company)

    def company_refused(self) -> None:
        """An event of a company that is not served was not handled."""
        self.collectors.refused.inc()

    @property
    def companies(self) -> Sequence[str]:
        """Those of the settings, and those that were added."""
        return list(self.counts)

    def add_company(self, company: str) -> None:
        """Make the series of a company, before its first event is handled; nothing if it is known."""
        if company not in self.counts:
            self.counts[company] = CompanyCounts()
            (add_all if self._complete else add_quiet)(self.collectors, company or UNKNOWN)

    def received(self, company: str, event_type: str, count: int = 1) -> None:
        """Deliveries arrived, redeliveries included."""
        found = self._received.get((company, event_type))
        if found is None:
            found = self._first_delivery(company, event_type)
        found.series.inc(count)
        found.company.received += count

    def _first_delivery(self, company: str, event_type: str) -> _Received:
        self.add_company(company)
        add_event_type(self.collectors, company, event_type)
        series = self.collectors.events_received.labels(*event_labels(company, event_type))
        found = self._received[company, event_type] = _Received(series, self.counts[company])
        return found

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
        outcome.action.inc()
        outcome.ended.inc()
        outcome.processing.observe(processing_seconds)
        outcome.routing.observe(routing_seconds)
        self.processing.observe(processing_seconds)
        if action == "ack_success":
            outcome.company.processed += 1
        else:
            outcome.company.failed += 1
            outcome.company.dead_lettered += action == DEAD_LETTERED

    def _outcome(self, company: str, event_type: str, action: str, error_type: str) -> _Outcome:
        self.add_company(company)
        on, labels = self.collectors, event_labels(company, event_type)
        # Both are created, whichever this outcome counts in.
        processed, failed = on.events_processed.labels(*labels), on.events_failed.labels(*labels)
        outcome = _Outcome(
            on.actions.labels(*labels, action, error_type),
            processed if action == "ack_success" else failed,
            on.processing.labels(*labels),
            on.routing.labels(*labels),
            self.counts[company],
        )
        self._outcomes[company, event_type, action, error_type] = outcome
        return outcome

    def stuck(self, company: str, event_type: str, action: str) -> None:
        """A dead letter could not be built or published yet; its event is settled later."""
        error_type = "unknown" if action == "nak_dlq_marshal_fail" else "nats"
        self.collectors.actions.labels(*event_labels(company, event_type), action, error_type).inc()

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

        def observe(operation: str, entity: str, seconds: float, succeeded: bool) -> None:
            status = "success" if succeeded else "error"
            self.collectors.database.labels(operation, entity, company or UNKNOWN, status).observe(seconds)
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
        self.collectors.batches.labels(company, consumer_type).observe(size)

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

    async def page(self) -> list[bytes]:
        """The page in text format 0.0.4, in pieces. One is made at a time; events go on meanwhile.

        Queue lengths are those of its beginning.
        """
        async with self._scrape:
            await self._read_readiness()
            self._read_watched()
            return await gathered(self.collectors.text())

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
        totals: dict[Number, int] = {}
        for gauge, read in self._watched:
            totals[gauge] = totals.get(gauge, 0) + read()
        for gauge, total in totals.items():
            gauge.set(total)


def _set(gauge: Numbers, labels: tuple[str, ...], value: float | None) -> None:
    if value is None:
        gauge.remove(*labels)
    else:
        gauge.labels(*labels).set(value)
