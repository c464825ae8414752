"""What a source of deliveries tells about itself."""

from __future__ import annotations

from typing import Protocol

from events.delivery import Role


class Meter(Protocol):
    """What a source tells about itself."""

    def fetched(self, role: Role) -> None:
        """A pull request was sent."""

    def fetch_failed(self, role: Role) -> None:
        """A pull request failed; an empty answer is no failure."""

    def batch(self, role: Role, company: str, size: int) -> None:
        """A batch was handed over."""

    def store_time_stepped_back(self, role: Role, seconds: float) -> None:
        """An event has an earlier store time than one of a lower sequence."""
