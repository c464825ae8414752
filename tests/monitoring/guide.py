"""Example queries of the monitoring guide, and the panels that show them."""

from __future__ import annotations

from typing import Final, NamedTuple

_TYPES: Final = "event_type, company_id, consumer_type"
_RECEIVED: Final = "message_event_service_events_received_total[5m]"
_FAILED: Final = "message_event_service_events_failed_total[5m]"
_DURATION: Final = "message_event_service_event_processing_duration_seconds_bucket[5m]"
_DATABASE: Final = "message_event_service_db_operation_duration_seconds_count"
_OPERATION: Final = "operation, entity, company_id"


class Example(NamedTuple):
    """A query, and the title of the panel of Message Events Overview that answers the same."""

    query: str
    panel: str


EVENT_RATE: Final = Example(
    f"sum by ({_TYPES}) (rate({_RECEIVED}))", "Total Event Rate by Type & Consumer (/sec)"
)
FAILURE_RATE: Final = Example(
    f"sum by ({_TYPES}) (rate({_FAILED})) / sum by ({_TYPES}) (rate({_RECEIVED})) * 100",
    "Event Failure Rate by Type & Consumer (%)",
)
DURATION: Final = Example(
    f"histogram_quantile(0.95, sum by (le, {_TYPES}) (rate({_DURATION})))",
    "95th Percentile Event Processing Duration by Type & Consumer",
)
DLQ_QUEUE: Final = Example("dlq_queue_length", "DLQ Worker Queue Length")
DROP_RATE: Final = Example(
    "sum by (company_id) (rate(dlq_tasks_dropped_total[5m]))",
    "Rate of DLQ Messages Dropped by Company (/sec)",
)
DATABASE_ERRORS: Final = Example(
    f'sum by ({_OPERATION}) (rate({_DATABASE}{{status="error"}}[5m]))'
    f" / sum by ({_OPERATION}) (rate({_DATABASE}[5m])) * 100",
    "Database Operation Error Rate (%)",
)
ONBOARDING_QUEUE: Final = Example("onboarding_queue_length", "Onboarding Worker Queue Length")

EXAMPLES: Final = (
    *(EVENT_RATE, FAILURE_RATE, DURATION, DLQ_QUEUE),
    *(DROP_RATE, DATABASE_ERRORS, ONBOARDING_QUEUE),
)
