"""The collectors themselves: names, labels and buckets as documented (MET-2).

Those of the guide keep its names; what is measured beyond it begins with `daisi_`.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from events.errors import BrokerError, EventError, kinds

PROCESSING_BUCKETS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48)
ROUTING_BUCKETS: Final = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)
DATABASE_BUCKETS: Final = tuple(0.001 * 2**step for step in range(15))
TASK_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# Powers of about two, up to the largest batch that is pulled.
BATCH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

OPERATIONS: Final = (
    ("UpsertMessage", "Message"),
    ("UpdateMessageStatus", "Message"),
    ("FindMessage", "Message"),
    ("BulkUpsertMessages", "Message"),
    ("FindFirstIncomingMessage", "Message"),
    ("UpsertChat", "Chat"),
    ("UpdateChat", "Chat"),
    ("FindChat", "Chat"),
    ("BulkUpsertChats", "Chat"),
    ("UpsertContact", "Contact"),
    ("UpdateContact", "Contact"),
    ("FindContact", "Contact"),
    ("BulkUpsertContacts", "Contact"),
    ("FindContactsWithoutOrigin", "Contact"),
    ("UpsertAgent", "Agent"),
    ("SaveOnboardingLog", "OnboardingLog"),
    ("FindOnboardingLog", "OnboardingLog"),
    ("FindOnboardingLogsByAgent", "OnboardingLog"),
    ("SaveExhaustedEvent", "ExhaustedEvent"),
)
ONBOARDING_STATUSES: Final = ("success_created", "success_exists", "error_db", "error_other")
CONSUMERS: Final = ("realtime", "historical", "dlq")
# What `/ready` looks at; all sources are one part.
PARTS: Final = ("worker", "nats", "postgres", "agents", "sources")
# They need a row that is there already.
_UPDATES: Final = ("v1.messages.update", "v1.chats.update", "v1.contacts.update")


def outcomes(event_type: str) -> tuple[tuple[str, str], ...]:
    """Each (action, error_type) a delivery of this type can end with, derived from the kinds of errors (MET-3)."""
    possible = [kind for kind in kinds() if event_type in _UPDATES or not kind.of_updates]
    found = [
        ("ack_success", "none"),
        *(("nack_retryable", kind.label) for kind in possible if kind.delayed),
        *(("dlq_published_ack_success", kind.label) for kind in possible),
        # An event whose envelope is too large for NATS; what is wrong with it can be anything.
        *(("nack_fatal", kind.label) for kind in possible if kind.terminates),
        ("nak_dlq_publish_fail", BrokerError.label),
        ("nak_dlq_marshal_fail", EventError.label),
    ]
    return tuple(dict.fromkeys(found))


class Collectors:
    """Every collector of one process, on a registry of its own."""

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no annotation there
        self.registry = CollectorRegistry()
        self._counter = partial(Counter, registry=self.registry)
        self._gauge = partial(Gauge, registry=self.registry)
        self._histogram = partial(Histogram, registry=self.registry)
        self._define_events()
        self._define_dead_letters()
        self._define_stores()
        self._define_source()
        self._define_state()
        self._gauge("daisi_build_info", "Version of the processor.", ("version",)).labels(version).set(1)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _define_events(self) -> None:
        prefix, labels = "message_event_service_event", ("event_type", "company_id", "consumer_type")
        self.events_received = self._counter(
            f"{prefix}s_received_total", "Deliveries taken from JetStream.", labels
        )
        self.events_processed = self._counter(
            f"{prefix}s_processed_total", "Events stored and acknowledged.", labels
        )
        self.events_failed = self._counter(
            f"{prefix}s_failed_total", "Deliveries that did not succeed.", labels
        )
        self.events_with_agent = self._counter(
            f"{prefix}_with_agent_received_total",
            "Deliveries whose payload names an agent.",
            ("event_type", "company_id", "agent_id", "jid"),
        )
        self.processing = self._histogram(
            f"{prefix}_processing_duration_seconds",
            "Time from arrival to ack or nak.",
            labels,
            buckets=PROCESSING_BUCKETS,
        )
        self.routing = self._histogram(
            f"{prefix}_routing_duration_seconds",
            "Time spent in the event's handler.",
            labels,
            buckets=ROUTING_BUCKETS,
        )
        self.actions = self._counter(
            f"{prefix}_processing_actions_total",
            "What was done with each delivery, and why.",
            (*labels, "action", "error_type"),
        )

    def _define_dead_letters(self) -> None:
        labels = ("company_id",)
        self.dlq_fetches = self._counter("dlq_fetch_requests_total", "Pull requests sent to the DLQ stream.")
        self.dlq_fetch_errors = self._counter("dlq_fetch_errors_total", "Pull requests that failed.")
        self.dlq_queue = self._gauge("dlq_queue_length", "Envelopes waiting for a DLQ worker.")
        self.dlq_active = self._gauge("dlq_workers_active", "Replays in progress.")
        self.dlq_submitted = self._counter(
            "dlq_tasks_submitted_total", "Envelopes handed to DLQ workers.", labels
        )
        self.dlq_duration = self._histogram(
            "dlq_processing_duration_seconds", "Time to handle one envelope.", labels, buckets=TASK_BUCKETS
        )
        self.dlq_retries = self._counter("dlq_task_retries_total", "Replays put off to a later try.", labels)
        self.dlq_acks = self._counter(
            "dlq_acks_success_total", "Envelopes replayed and acknowledged.", labels
        )
        self.dlq_failures = self._counter(
            "dlq_acks_failure_total", "Envelopes ended without success.", labels
        )
        self.dlq_dropped = self._counter("dlq_tasks_dropped_total", "Envelopes given up and stored.", labels)

    def _define_stores(self) -> None:
        self.database = self._histogram(
            "message_event_service_db_operation_duration_seconds",
            "Time of one database operation.",
            ("operation", "entity", "company_id", "status"),
            buckets=DATABASE_BUCKETS,
        )
        self.onboarding_submitted = self._counter(
            "onboarding_tasks_submitted_total", "Onboarding tasks offered to the pool.", ("company_id",)
        )
        self.onboarding_processed = self._counter(
            "onboarding_tasks_processed_total", "Onboarding tasks by result.", ("company_id", "status")
        )
        self.onboarding_duration = self._histogram(
            "onboarding_processing_duration_seconds",
            "Time of one onboarding task.",
            ("company_id",),
            buckets=TASK_BUCKETS,
        )
        self.onboarding_queue = self._gauge("onboarding_queue_length", "Onboarding tasks waiting.")

    def _define_source(self) -> None:
        labels = ("company_id", "consumer_type")
        self.batches = self._histogram(
            "daisi_source_batch_messages", "Deliveries in one batch.", labels, buckets=BATCH_BUCKETS
        )
        self.source_errors = self._counter(
            "daisi_source_errors_total", "Pull requests that failed, lost consumers included.", labels
        )
        self.store_time_steps_back = self._counter(
            "daisi_store_time_steps_back_total",
            "Events whose store time is earlier than that of the event before them in their stream.",
            labels,
        )
        self.store_time_step_back_seconds = self._counter(
            "daisi_store_time_step_back_seconds_total", "By how much these store times are earlier.", labels
        )
        self.reconnects = self._counter("daisi_nats_reconnects_total", "Reconnections to NATS.")
        self.pending = self._gauge(
            "daisi_consumer_pending_messages", "Messages the consumer has not delivered yet.", labels
        )
        self.unacknowledged = self._gauge(
            "daisi_consumer_unacknowledged_messages", "Messages delivered, but not settled yet.", labels
        )
        self.dlq_messages = self._gauge(
            "daisi_dlq_messages", "Envelopes not replayed or given up yet.", ("company_id",)
        )
        self.dlq_age = self._gauge(
            "daisi_dlq_oldest_age_seconds", "Age of the oldest of these envelopes.", ("company_id",)
        )
        self.exhausted = self._gauge(
            "daisi_exhausted_events", "Rows of exhausted_events that are not resolved.", ("company_id",)
        )
        self.exhausted_newest = self._gauge(
            "daisi_exhausted_newest_timestamp_seconds",
            "When the newest row of exhausted_events was stored, Unix time; 0 for none.",
            ("company_id",),
        )

    def _define_state(self) -> None:
        self.ready = self._gauge(
            "daisi_ready", "1 while this part of /ready has no problem, else 0.", ("part",)
        )
        self.months_ahead = self._gauge(
            "daisi_partition_months_ahead",
            "Months after this one that have a partition, up to the first without.",
            ("company_id",),
        )
