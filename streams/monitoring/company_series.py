"""Which series of a company exist before something is counted in them, and from when on.

A series that appears with its first failure hides that failure from `rate()`. Of a few companies all that can occur
exists from the start. Of a thousand that would be 200 MB, so theirs come in three steps: what a quiet company needs
(`add_quiet`, about 5 KB), the actions of an event type at its first delivery (`add_event_type`, about 2.5 KB), and
histograms with their first observation (2 to 3 KB each).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from events.subjects import EVENT_TYPES, consumer_type
from streams.monitoring.collectors import Collectors
from streams.monitoring.label_values import CONSUMERS, ONBOARDING_STATUSES, OPERATIONS, outcomes

# The label of a company without a name, and of an event type that is none of ours.
UNKNOWN: Final = "unknown"
# They come when they happen. The first is of an event too large to be dead-lettered, and counts as dropped, too;
# the second is of a fault of ours: its traceback is in the log, and its event comes again.
_RARE: Final = ("nack_fatal", "nak_dlq_marshal_fail")


def event_labels(company: str, event_type: str) -> tuple[str, str, str]:
    """Event type, company and consumer type, in the order of the documented labels."""
    return event_type, company or UNKNOWN, consumer_type(event_type)


def add_quiet(on: Collectors, company: str) -> None:
    """What exists of a company that has had no event: its deliveries by type, dead letters and onboarding."""
    for event_type in EVENT_TYPES:
        on.events_received.labels(*event_labels(company, event_type))
        on.events_failed.labels(*event_labels(company, event_type))
    for counter in (on.dlq_submitted, on.dlq_retries, on.dlq_acks, on.dlq_failures, on.dlq_dropped):
        counter.labels(company)
    on.onboarding_submitted.labels(company)
    for status in ONBOARDING_STATUSES:
        on.onboarding_processed.labels(company, status)


def add_event_type(on: Collectors, company: str, event_type: str) -> None:
    """What a delivery of this type can end with, before it is known what it will be."""
    if event_type not in EVENT_TYPES:
        return
    labels = event_labels(company, event_type)
    on.events_processed.labels(*labels)
    for action, error_type in outcomes(event_type):
        if action not in _RARE:
            on.actions.labels(*labels, action, error_type)


def add_all(on: Collectors, company: str) -> None:
    """Every series of a company that can occur, those of its consumers left out."""
    add_quiet(on, company)
    for event_type in EVENT_TYPES:
        labels = event_labels(company, event_type)
        on.events_processed.labels(*labels)
        on.processing.labels(*labels)
        on.routing.labels(*labels)
        for outcome in outcomes(event_type):
            on.actions.labels(*labels, *outcome)
    on.dlq_duration.labels(company)
    on.onboarding_duration.labels(company)
    for operation, entity in OPERATIONS:
        for status in ("success", "error"):
            on.database.labels(operation, entity, company, status)


def add_consumers(on: Collectors, companies: Iterable[str], *, batches: bool) -> None:
    """The series of each company's consumers; those of their batches only if they are asked for."""
    for company in companies:
        for consumer in CONSUMERS:
            for family in (on.source_errors, on.store_time_steps_back, on.store_time_step_back_seconds):
                family.labels(company or UNKNOWN, consumer)
            if batches:
                on.batches.labels(company or UNKNOWN, consumer)
