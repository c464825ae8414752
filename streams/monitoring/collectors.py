"""Every metric of the worker, declared once. Documented ones keep their names; our own begin with `daisi_`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from streams.monitoring.series import Distributions, Numbers

PROCESSING_BUCKETS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48)
ROUTING_BUCKETS: Final = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)
DATABASE_BUCKETS: Final = tuple(0.001 * 2**step for step in range(15))
TASK_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# Powers of about two, up to the largest batch that is pulled.
BATCH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

_PREFIX: Final = "message_event_service_event"
_EVENT: Final = ("event_type", "company_id", "consumer_type")
_COMPANY: Final = ("company_id",)
_CONSUMER: Final = ("company_id", "consumer_type")


class Declaration(NamedTuple):
    """A metric as docs/metrics.md lists it; `meaning` is Markdown."""

    name: str
    kind: str
    labels: Sequence[str]
    meaning: str


class Collectors:
    """Every collector of one process."""

    def __init__(self, version: str) -> None:
        self.declared: list[Declaration] = []
        self._families: list[Numbers | Distributions] = []
        self._declare_events()
        self._declare_outcomes()
        self._declare_dead_letter_source()
        self._declare_replays()
        self._declare_database()
        self._declare_onboarding()
        self._declare_sources()
        self._declare_consumer_gauges()
        self._declare_table_gauges()
        self._gauge("daisi_build_info", "Version of the processor.", ("version",)).labels(version).set(1)
        disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no annotation there
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        PlatformCollector(registry=self._process)
        GCCollector(registry=self._process)

    def text(self) -> Iterator[str]:
        """The page in text format 0.0.4, in small parts; what changes between two of them breaks nothing."""
        for family in self._families:
            yield from family.text()
        yield generate_latest(self._process).decode()

    def _counter(self, name: str, text: str, labels: Sequence[str] = (), detail: str = "") -> Numbers:
        return self._numbers(name, "counter", text, labels, detail)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = (), detail: str = "") -> Numbers:
        return self._numbers(name, "gauge", text, labels, detail)

    def _numbers(self, name: str, kind: str, text: str, labels: Sequence[str], detail: str) -> Numbers:
        self._record(name, kind, labels, text, detail)
        family = Numbers(name, kind, text, labels)
        self._families.append(family)
        return family

    def _histogram(
        self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float], detail: str = ""
    ) -> Distributions:
        self._record(name, "histogram", labels, text, detail)
        family = Distributions(name, text, labels, buckets)
        self._families.append(family)
        return family

    def _record(self, name: str, kind: str, labels: Sequence[str], text: str, detail: str) -> None:
        """Keep a declaration: `text` is the HELP line of /metrics, `detail` is added on the page only."""
        self.declared.append(Declaration(name, kind, labels, f"{text} {detail}".rstrip()))

    def _declare_events(self) -> None:
        self.events_received = self._counter(
            f"{_PREFIX}s_received_total",
            "Deliveries taken from JetStream.",
            _EVENT,
            "Redeliveries included; counted before they are handled.",
        )
        self.events_processed = self._counter(
            f"{_PREFIX}s_processed_total",
            "Events stored and acknowledged.",
            _EVENT,
            "Normal: close to number 1.",
        )
        self.events_failed = self._counter(
            f"{_PREFIX}s_failed_total",
            "Deliveries that did not succeed.",
            _EVENT,
            "Retried later, or dead-lettered. Normal: rises a little, as updates ahead of their rows are retried.",
        )
        self.events_with_agent = self._counter(
            f"{_PREFIX}_with_agent_received_total",
            "Deliveries whose payload names an agent.",
            ("event_type", "company_id", "agent_id", "jid"),
        )

    def _declare_outcomes(self) -> None:
        self.processing = self._histogram(
            f"{_PREFIX}_processing_duration_seconds",
            "Time from arrival to ack or nak.",
            _EVENT,
            PROCESSING_BUCKETS,
            "Or term; onboarding included.",
        )
        self.routing = self._histogram(
            f"{_PREFIX}_routing_duration_seconds",
            "Time spent in the event's handler.",
            _EVENT,
            ROUTING_BUCKETS,
            "Decoding plus the batch's time in the database.",
        )
        self.actions = self._counter(
            f"{_PREFIX}_processing_actions_total",
            "What was done with each delivery, and why.",
            (*_EVENT, "action", "error_type"),
            "Normal: mostly `ack_success`.",
        )

    def _declare_dead_letter_source(self) -> None:
        self.dlq_pull_requests = self._counter(
            "dlq_fetch_requests_total",
            "Pull requests sent to the DLQ stream.",
            detail="About one a second and company when idle.",
        ).labels()
        self.dlq_pull_errors = self._counter(
            "dlq_fetch_errors_total",
            "Pull requests that failed.",
            detail="An empty answer is no failure. Normal: 0.",
        ).labels()
        self.dlq_queue = self._gauge(
            "dlq_queue_length",
            "Envelopes waiting for a DLQ worker.",
            detail="At the moment of the scrape. Normal: 0.",
        ).labels()
        self.dlq_active = self._gauge(
            "dlq_workers_active",
            "Replays in progress.",
            detail="At most `NATS_DLQWORKERS`. Normal: 0.",
        ).labels()

    def _declare_replays(self) -> None:
        self.dlq_submitted = self._counter(
            "dlq_tasks_submitted_total", "Envelopes handed to DLQ workers.", _COMPANY
        )
        self.dlq_duration = self._histogram(
            "dlq_processing_duration_seconds",
            "Time to handle one envelope.",
            _COMPANY,
            TASK_BUCKETS,
            "Whatever the outcome.",
        )
        self.dlq_retries = self._counter(
            "dlq_task_retries_total", "Replays put off to a later try.", _COMPANY
        )
        self.dlq_acks = self._counter(
            "dlq_acks_success_total", "Envelopes replayed and acknowledged.", _COMPANY
        )
        self.dlq_failures = self._counter(
            "dlq_acks_failure_total",
            "Envelopes ended without success.",
            _COMPANY,
            "And each ack or nak that failed.",
        )
        self.dlq_dropped = self._counter(
            "dlq_tasks_dropped_total",
            "Envelopes given up and stored.",
            _COMPANY,
            "+1 for each event stored in `exhausted_events` and terminated. Normal: 0.",
        )

    def _declare_database(self) -> None:
        self.database = self._histogram(
            "message_event_service_db_operation_duration_seconds",
            "Time of one database operation.",
            ("operation", "entity", "company_id", "status"),
            DATABASE_BUCKETS,
            "One operation writes the whole batch.",
        )

    def _declare_onboarding(self) -> None:
        self.onboarding_submitted = self._counter(
            "onboarding_tasks_submitted_total",
            "Onboarding tasks offered to the pool.",
            _COMPANY,
            "One for each incoming message.",
        )
        self.onboarding_processed = self._counter(
            "onboarding_tasks_processed_total", "Onboarding tasks by result.", ("company_id", "status")
        )
        self.onboarding_duration = self._histogram(
            "onboarding_processing_duration_seconds",
            "Time of one onboarding task.",
            _COMPANY,
            TASK_BUCKETS,
            "From hand-over to end, waiting included.",
        )
        self.onboarding_queue = self._gauge(
            "onboarding_queue_length",
            "Onboarding tasks waiting.",
            detail="Not taken by any worker yet, at the moment of the scrape.",
        ).labels()

    def _declare_sources(self) -> None:
        self.batches = self._histogram(
            "daisi_source_batch_messages",
            "Deliveries in one batch.",
            _CONSUMER,
            BATCH_BUCKETS,
            "Small when idle, up to the batch size in a backlog.",
        )
        self.source_errors = self._counter(
            "daisi_source_errors_total", "Pull requests that failed, lost consumers included.", _CONSUMER
        )
        self.store_time_steps_back = self._counter(
            "daisi_store_time_steps_back_total",
            "Events whose store time is earlier than that of the event before them in their stream.",
            _CONSUMER,
            "The clocks of the NATS nodes differ.",
        )
        self.store_time_step_back_seconds = self._counter(
            "daisi_store_time_step_back_seconds_total",
            "By how much these store times are earlier.",
            _CONSUMER,
        )
        self.refused = self._counter(
            "daisi_fleet_refused_events_total",
            "Events of companies that COMPANY_ALLOW and COMPANY_EXCLUDE leave out.",
            detail="Acknowledged without being handled; they stay in their stream. Only with `COMPANY_ID=*`.",
        ).labels()
        self.reconnects = self._counter("daisi_nats_reconnects_total", "Reconnections to NATS.").labels()

    def _declare_consumer_gauges(self) -> None:
        self.pending = self._gauge(
            "daisi_consumer_pending_messages",
            "Messages the consumer has not delivered yet.",
            _CONSUMER,
            "With the next one: the lag.",
        )
        self.unacknowledged = self._gauge(
            "daisi_consumer_unacknowledged_messages",
            "Messages delivered, but not settled yet.",
            _CONSUMER,
            "In flight in some replica, or waiting for their retry.",
        )
        self.dlq_messages = self._gauge(
            "daisi_dlq_messages", "Envelopes not replayed or given up yet.", _COMPANY
        )
        self.dlq_age = self._gauge(
            "daisi_dlq_oldest_age_seconds",
            "Age of the oldest of these envelopes.",
            _COMPANY,
            "About; 0 without any. At the stream's max age (`NATS_DLQMAXAGEDAYS`) it is lost.",
        )

    def _declare_table_gauges(self) -> None:
        self.exhausted = self._gauge(
            "daisi_exhausted_events", "Rows of exhausted_events that are not resolved.", _COMPANY
        )
        self.exhausted_newest = self._gauge(
            "daisi_exhausted_newest_timestamp_seconds",
            "When the newest row of exhausted_events was stored, Unix time; 0 for none.",
            _COMPANY,
            "Or opened again; resolved or not.",
        )
        self.ready = self._gauge(
            "daisi_ready",
            "1 while this part of /ready has no problem, else 0.",
            ("part",),
            "Read at the scrape. `part`: `worker`, `nats`, `postgres`, `agents`, `sources`; a company, stream or "
            "consumer that is refused and dead letters that cannot be stored count as `sources`.",
        )
        self.months_ahead = self._gauge(
            "daisi_partition_months_ahead",
            "Months after this one that have a partition, up to the first without.",
            _COMPANY,
            "Normal: 2 or more.",
        )
