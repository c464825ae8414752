"""Values of the metrics' labels that are known before the first event."""

from __future__ import annotations

from typing import Final

from events.errors import BrokerError, EventError, kinds

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


def outcomes(event_type: str) -> tuple[tuple[str, str], ...]:
    """Each (action, error_type) that a delivery of this type can end with, derived from the kinds of errors (MET-3)."""
    possible = [kind for kind in kinds() if event_type in _UPDATES or not kind.of_updates]
    found = [
        ("ack_success", "none"),
        *(("nack_retryable", kind.label) for kind in possible if kind.delayed),
        *(("dlq_published_ack_success", kind.label) for kind in possible),
        # Only for an event whose envelope is too large for NATS, whatever its error.
        *(("nack_fatal", kind.label) for kind in possible if kind.terminates),
        ("nak_dlq_publish_fail", BrokerError.label),
        ("nak_dlq_marshal_fail", EventError.label),
    ]
    return tuple(dict.fromkeys(found))
