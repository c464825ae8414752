"""What readiness, the watchdog and the status page read of a source."""

from __future__ import annotations

from typing import Protocol

from events.subjects import Tenant


class WatchedSource(Protocol):
    """A running consumer; times are `time.monotonic()` seconds."""

    @property
    def name(self) -> str:
        """Role and company, as `/ready` names it."""
        ...

    @property
    def tenant(self) -> Tenant:
        """Whose events it pulls."""
        ...

    @property
    def role(self) -> str:
        """realtime, historical or dlq."""
        ...

    @property
    def stream(self) -> str:
        """The stream it pulls from."""
        ...

    @property
    def durable(self) -> str:
        """The name of its consumer."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it has begun to pull."""
        ...

    @property
    def held(self) -> int:
        """Deliveries in flight."""
        ...

    @property
    def progress_count(self) -> int:
        """How many deliveries arrived and were settled, since its start."""
        ...

    @property
    def last_fetch(self) -> float:
        """When a pull request was last answered; 0 before the first."""
        ...

    @property
    def last_progress(self) -> float:
        """When a delivery was last settled, or none was in flight."""
        ...
