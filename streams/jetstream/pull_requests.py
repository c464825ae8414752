"""Pull requests: the limits that the server sets for them, and the statuses that answer them."""

from __future__ import annotations

import logging
import re
from typing import Final, NamedTuple

import msgspec

logger = logging.getLogger(__name__)

_EMPTY: Final = frozenset(("404", "408"))
_LIMIT: Final = re.compile(r"Exceeded MaxRequest(Batch|Expires|MaxBytes) of (\S+)")
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|m|µs|us|ns|s)")
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}
# Seconds between two requests to a consumer that lets none wait for long.
MIN_REQUEST_INTERVAL: Final = 0.1
MAX_WAITING_PAUSE: Final = 0.25


class Status(NamedTuple):
    """Code and text of a reply without a message."""

    code: str
    text: str

    @property
    def empty(self) -> bool:
        """Whether there is no message to deliver now."""
        return self.code in _EMPTY

    @property
    def too_large(self) -> bool:
        """Whether the next message has more bytes than the request allows."""
        return self.code == "409" and "Message Size Exceeds MaxBytes" in self.text

    @property
    def gone(self) -> bool:
        """Whether the consumer or the stream may be deleted."""
        return self.code == "503" or (self.code == "409" and "eleted" in self.text)

    @property
    def max_waiting(self) -> bool:
        """Whether as many requests of all replicas wait as the consumer allows."""
        return "MaxWaiting" in self.text or "Requests Pending" in self.text


class PullRequestLimits:
    """The largest request that the consumer accepts: ours, lowered for good by the limits in its replies.

    `batch` messages, `batch_bytes`, and `expires` seconds that a request waits. Each limit is logged once.
    """

    def __init__(self, consumer: str, *, batch: int, batch_bytes: int, expires: float) -> None:
        self.batch = batch
        self.batch_bytes = batch_bytes
        self.expires = expires
        self._consumer = consumer
        self._logged: set[str] = set()

    def request(self, batch: int) -> bytes:
        """The body of a request for so many messages; a single one may have any size."""
        limits = {"batch": batch, "no_wait": True, "expires": int(self.expires * 1e9)}
        if batch > 1:
            limits["max_bytes"] = self.batch_bytes
        return msgspec.json.encode(limits)

    def learn(self, status: Status | None) -> bool:
        """Take over the limit in a refusal; False if it has none, or none that is lower."""
        found = _LIMIT.search(status.text) if status is not None and status.code == "409" else None
        if found is None:
            return False
        which, value = found.groups()
        if not self._lower(which, value):
            return False
        self._warn(f"the server allows MaxRequest{which} of {value}")
        return True

    def warn_of_max_waiting(self, status: Status) -> None:
        """Log the limit of waiting requests, which the replicas share."""
        self._warn(f"as many requests wait there as it allows (max_waiting): {status.text}")

    @property
    def pause(self) -> float:
        """Seconds to wait between two requests of an idle consumer."""
        return max(MIN_REQUEST_INTERVAL - self.expires, 0.0)

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

    def _warn(self, text: str) -> None:
        if text not in self._logged:
            self._logged.add(text)
            logger.warning("pulling from %s: %s; requests keep to it from now on", self._consumer, text)
