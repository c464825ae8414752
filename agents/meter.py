"""What the agents count."""

from __future__ import annotations

from typing import Protocol


class Meter(Protocol):
    """Counts what becomes of deliveries, by company."""

    def received(self, company: str, event_type: str, count: int) -> None:
        """Deliveries arrived."""
        ...

    def agent_seen(self, company: str, event_type: str, agent_id: str, jid: str) -> None:
        """A delivery named a WhatsApp account."""
        ...

    def settled(
        self,
        company: str,
        event_type: str,
        action: str,
        error_type: str,
        processing_seconds: float,
        routing_seconds: float,
    ) -> None:
        """A delivery came to its end."""
        ...

    def stuck(self, company: str, event_type: str, action: str) -> None:
        """A dead letter could not be made or published; it is tried again, or its event comes again."""
        ...

    def onboarding_submitted(self, company: str, count: int) -> None:
        """Incoming messages were submitted to onboarding."""
        ...

    def onboarding_ended(self, company: str, status: str, seconds: float) -> None:
        """The onboarding of a message came to its end, `seconds` after it was submitted."""
        ...

    def dlq_submitted(self, company: str) -> None:
        """A dead letter was handed to the workers."""
        ...

    def dlq_finished(self, company: str, seconds: float) -> None:
        """A dead letter was handled, whatever came of it."""
        ...

    def dlq_retried(self, company: str) -> None:
        """A replay was put off."""
        ...

    def dlq_acked(self, company: str) -> None:
        """A replay worked and was acknowledged."""
        ...

    def dlq_ack_failed(self, company: str) -> None:
        """A dead letter was ended without success, or the broker could not be told."""
        ...

    def dlq_dropped(self, company: str) -> None:
        """An event or a dead letter was parked in `exhausted_events`."""
        ...
