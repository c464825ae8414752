"""The metrics as the monitoring guide documents them, typed by hand: the code is compared with them."""

from __future__ import annotations

from typing import Final, NamedTuple


class Documented(NamedTuple):
    """One documented metric; `buckets` are the upper bounds of a histogram, in seconds, without +Inf."""

    name: str
    kind: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_EVENT = ("event_type", "company_id", "consumer_type")
_COMPANY = ("company_id",)
_TASK = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

DOCUMENTED: Final = (
    Documented("message_event_service_events_received_total", "counter", _EVENT),
    Documented("message_event_service_events_processed_total", "counter", _EVENT),
    Documented("message_event_service_events_failed_total", "counter", _EVENT),
    Documented(
        "message_event_service_event_with_agent_received_total",
        "counter",
        ("event_type", "company_id", "agent_id", "jid"),
    ),
    Documented(
        "message_event_service_event_processing_duration_seconds",
        "histogram",
        _EVENT,
        (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48),
    ),
    Documented(
        "message_event_service_event_routing_duration_seconds",
        "histogram",
        _EVENT,
        (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24),
    ),
    Documented(
        "message_event_service_event_processing_actions_total", "counter", (*_EVENT, "action", "error_type")
    ),
    Documented("dlq_fetch_requests_total", "counter"),
    Documented("dlq_fetch_errors_total", "counter"),
    Documented("dlq_queue_length", "gauge"),
    Documented("dlq_workers_active", "gauge"),
    Documented("dlq_tasks_submitted_total", "counter", _COMPANY),
    Documented("dlq_processing_duration_seconds", "histogram", _COMPANY, _TASK),
    Documented("dlq_task_retries_total", "counter", _COMPANY),
    Documented("dlq_acks_success_total", "counter", _COMPANY),
    Documented("dlq_acks_failure_total", "counter", _COMPANY),
    Documented("dlq_tasks_dropped_total", "counter", _COMPANY),
    Documented(
        "message_event_service_db_operation_duration_seconds",
        "histogram",
        ("operation", "entity", "company_id", "status"),
        (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384),
    ),
    Documented("onboarding_tasks_submitted_total", "counter", _COMPANY),
    Documented("onboarding_tasks_processed_total", "counter", ("company_id", "status")),
    Documented("onboarding_processing_duration_seconds", "histogram", _COMPANY, _TASK),
    Documented("onboarding_queue_length", "gauge"),
)  # fmt: skip

REALTIME: Final = {
    "v1.connection.update",
    "v1.chats.update",
    "v1.chats.upsert",
    "v1.messages.update",
    "v1.messages.upsert",
    "v1.contacts.update",
    "v1.contacts.upsert",
}
HISTORICAL: Final = {"v1.history.chats", "v1.history.messages", "v1.history.contacts"}
ACTIONS: Final = {
    "ack_success",
    "nack_retryable",
    "nack_fatal",
    "dlq_published_ack_success",
    "nak_dlq_marshal_fail",
    "nak_dlq_publish_fail",
}
ERROR_TYPES: Final = {
    "none",
    "database",
    "validation",
    "not_found",
    "nats",
    "timeout",
    "unmarshal",
    "panic",
    "unknown",
}
ONBOARDING_STATUSES: Final = {"success_created", "success_exists", "error_db", "error_other"}
OPERATIONS: Final = {
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
}
