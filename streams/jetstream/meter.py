"""What a source of deliveries tells about itself."""

from __future__ import annotations

from typing import Protocol

from events.subjects import ConsumerType


class Meter(Protocol):
    """What a source tells about itself."""

    def fetched(self, role: ConsumerType) -> None:
        """A pull request was sent."""

    def fetch_failed(self, role: ConsumerType) -> None:
        """A pull request failed; an empty answer is no failure."""

    def batch(self, role: ConsumerType, company: str, size: int) -> None:
        """A batch was handed over."""

    def store_time_stepped_back(self, role: ConsumerType, seconds: float) -> None:
        """An event has an earlier store time than one of a lower sequence."""
