"""Interface of a source to the metrics."""

from __future__ import annotations

from typing import Protocol

from events.subjects import ConsumerType


class Meter(Protocol):
    """Counts what a source does."""

    def pull_requested(self, company: str, consumer_type: ConsumerType) -> None:
        """A pull request was sent."""

    def pull_failed(self, company: str, consumer_type: ConsumerType) -> None:
        """A pull request failed, or the consumer is gone; an empty answer is no failure."""

    def batch_received(self, company: str, consumer_type: ConsumerType, size: int) -> None:
        """A batch of deliveries was handed over to the channel."""

    def store_time_stepped_back(self, company: str, consumer_type: ConsumerType, seconds: float) -> None:
        """An event has an earlier store time than one of a lower sequence."""
