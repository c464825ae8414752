"""What a server answers to a pull request instead of messages, and the limits that it sets to such requests."""

from __future__ import annotations

import logging
import re
from typing import Final, NamedTuple

import msgspec

logger = logging.getLogger(__name__)

_NOTHING_THERE: Final = frozenset(("404", "408"))
_LIMIT: Final = re.compile(r"Exceeded MaxRequest(Batch|Expires|MaxBytes) of (\S+)")
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|m|µs|us|ns|s)")
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}
# A consumer that keeps no request waiting for long is not asked more often than this.
SHORTEST_ROUND: Final = 0.1
CROWDED_PAUSE: Final = 0.25


class Status(NamedTuple):
    """Code and text of an answer without a message."""

    code: str
    text: str

    @property
    def empty(self) -> bool:
        """Whether there is nothing to deliver at present."""
        return self.code in _NOTHING_THERE

    @property
    def too_large(self) -> bool:
        """Whether the next message has more bytes than the request allows."""
        return self.code == "409" and "Message Size Exceeds MaxBytes" in self.text

    @property
    def gone(self) -> bool:
        """Whether consumer or stream may have to be made anew."""
        return self.code == "503" or (self.code == "409" and "eleted" in self.text)

    @property
    def crowded(self) -> bool:
        """Whether the consumer has as many waiting requests, of all replicas, as it takes."""
        return "MaxWaiting" in self.text or "Requests Pending" in self.text


class PullLimits:
    """The largest request that the consumer takes: ours, lowered for good by what the server says.

    `batch` messages, `batch_bytes`, and `expires` seconds that it is kept waiting. A warning for each limit, once.
    """

    def __init__(self, consumer: str, *, batch: int, batch_bytes: int, expires: float) -> None:
        self.batch = batch
        self.batch_bytes = batch_bytes
        self.expires = expires
        self._consumer = consumer
        self._told: set[str] = set()

    def request(self, batch: int) -> bytes:
        """The body of a request for so many messages; one alone may have any size."""
        limits = {"batch": batch, "no_wait": True, "expires": int(self.expires * 1e9)}
        if batch > 1:
            limits["max_bytes"] = self.batch_bytes
        return msgspec.json.encode(limits)

    def learn(self, status: Status | None) -> bool:
        """Take over the limit that a refusal names; False if it names none, or none that was exceeded."""
        found = _LIMIT.search(status.text) if status is not None and status.code == "409" else None
        if found is None:
            return False
        which, value = found.groups()
        if not self._lower(which, value):
            return False
        self._tell(f"the server allows MaxRequest{which} of {value}")
        return True

    def crowd(self, status: Status) -> None:
        """Tell of the limit that is shared with the other replicas."""
        self._tell(f"as many requests wait there as it allows (max_waiting): {status.text}")

    @property
    def round(self) -> float:
        """Seconds between two requests while nothing comes, besides those that the server keeps them waiting."""
        return max(SHORTEST_ROUND - self.expires, 0.0)

    def _lower(self, which: str, value: str) -> bool:
        if which == "Expires":
            seconds = sum(float(amount) * _UNITS[unit] for amount, unit in _DURATION.findall(value))
            if not 0 < seconds < self.expires:
                return False
            self.expires = seconds
            return True
        number = int(value) if value.isdigit() else 0
        name = "batch" if which == "Batch" else "batch_bytes"
        lower: bool = 0 < number < getattr(self, name)
        if lower:
            setattr(self, name, number)
        return lower

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            logger.warning("pulling from %s: %s; requests keep to it from now on", self._consumer, text)
