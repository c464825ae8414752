"""Values of the metrics' labels that are known before the first event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, get_args

from events.errors import BrokerError, ErrorType, EventError, NotFound

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
# The parts of `/ready`; all sources are one part.
PARTS: Final = ("worker", "nats", "postgres", "agents", "sources")
# Event types whose row must exist already.
_UPDATES: Final = ("v1.messages.update", "v1.chats.update", "v1.contacts.update")


def outcomes(event_type: str) -> Iterator[tuple[str, str]]:
    """Each (action, error_type) that a delivery of this type can end with."""
    fatal, retryable = _error_types(event_type)
    yield "ack_success", "none"
    for error_type in retryable:
        yield "nack_retryable", error_type
    for error_type in (*fatal, BrokerError.label):
        yield "dlq_published_ack_success", error_type
    # Only for an event whose envelope is too large for NATS, whatever its error.
    for error_type in fatal:
        yield "nack_fatal", error_type
    yield "nak_dlq_publish_fail", BrokerError.label
    yield "nak_dlq_marshal_fail", EventError.label


def _error_types(event_type: str) -> tuple[list[str], list[str]]:
    """The labels that can dead-letter an event of this type, and those of them that are retried first."""
    left_out = {"none", BrokerError.label, "" if event_type in _UPDATES else NotFound.label}
    fatal = [label for label in get_args(ErrorType) if label not in left_out]
    retried = {NotFound.label, *(kind.label for kind in EventError.__subclasses__() if kind.retryable)}
    return fatal, [label for label in fatal if label in retried]
