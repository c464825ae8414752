"""Permissions that NATS denies.

A server refuses a publish or a subscription with an error of its own, apart from any request: who waits for an answer
would wait in vain.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

logger = logging.getLogger(__name__)

ACK_PREFIX: Final = "$JS.ACK."
PUBLISH: Final = "Publish"
SUBSCRIPTION: Final = "Subscription"
# In place of a subject, where the server does not name it: a limit was reached.
ANY: Final = ""
# A denial that is not repeated for so many seconds is dropped: nobody tries it any longer.
DENIAL_SECONDS: Final = 90.0

_VIOLATION: Final = re.compile(
    r'Permissions Violation for (Publish|Subscription)(?: to| with Reply of) "((?:[^"\\]|\\.)*)"',
    re.IGNORECASE,
)
# $JS.ACK.<stream>.<consumer> and five more, or two more words before the stream.
_SHORT_ACK: Final = 9


class Denial(NamedTuple):
    """A denied permission: `Publish` or `Subscription`, its subject, and the server's text."""

    kind: str
    subject: str
    text: str

    def __str__(self) -> str:
        if self.subject == ANY:
            return f"NATS denies subscriptions: {self.text}; three a company are needed, and a few more"
        return f"NATS denies a right: {self.text}"


def parse_denial(text: str) -> Denial | None:
    """The denial in an error of the server; None if it is another error."""
    found = _VIOLATION.search(text)
    if found is None:
        return None
    return Denial(found[1].capitalize(), re.sub(r"\\(.)", r"\1", found[2]), text)


def ack_prefix(subject: str) -> str:
    """The part of a subject that all acks of its consumer share; subjects of no ack are returned as they are."""
    if not subject.startswith(ACK_PREFIX):
        return subject
    tokens = subject.split(".")
    return ".".join(tokens[: 4 if len(tokens) <= _SHORT_ACK else 6])


class _Known(NamedTuple):
    denial: Denial
    seen: float


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request that waits for its reply; `denial` is what ended it before `limit`."""

    limit: asyncio.Timeout
    subject: str
    inbox: Callable[[], str]
    denial: Denial | None = None

    def note_denial(self, denial: Denial) -> None:
        """End the request if it needs this permission."""
        if self.limit.expired():
            return  # a request takes some turns of the loop to end, and ends once
        if denial.subject == (self.subject if denial.kind == PUBLISH else self.inbox()):
            self.denial = denial
            self.limit.reschedule(asyncio.get_running_loop().time())


class Permissions:
    """The permissions that are denied now, by kind and subject; the acks of a consumer count as one subject."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Known] = {}
        self._pending: list[PendingRequest] = []
        self._listeners: list[Callable[[Denial], None]] = []

    @property
    def problem(self) -> str | None:
        """The first denial in the server's words, and how many more there are; None without any."""
        denied = self._current()
        if not denied:
            return None
        more = f" (and {len(denied) - 1} more)" if len(denied) > 1 else ""
        return f"{denied[0]}{more}"

    def listen(self, callback: Callable[[Denial], None]) -> None:
        """Call `callback` with each denial."""
        self._listeners.append(callback)

    def denied(self, denial: Denial) -> None:
        """Note a denial, and end the requests that it concerns."""
        key = (denial.kind, ack_prefix(denial.subject))
        known = self._known.get(key)
        if known is None:
            logger.warning("%s", denial)
        self._known[key] = _Known(known.denial if known else denial, time.monotonic())
        for request in tuple(self._pending):
            request.note_denial(denial)
        for listener in tuple(self._listeners):
            listener(denial)

    def granted(self, kind: str, subject: str) -> None:
        """Note that the server permits it; ends an earlier denial."""
        known = self._known.pop((kind, ack_prefix(subject)), None) if self._known else None
        if known is not None:
            logger.info("NATS grants it again: %s to %s", kind, known.denial.subject or "all that is needed")

    def denial(self, kind: str, subject: str) -> Denial | None:
        """The denial of this permission; None if it is not denied now."""
        known = self._known.get((kind, ack_prefix(subject))) if self._known else None
        return None if known is None or self._expired(known) else known.denial

    def denials(self, kind: str) -> list[Denial]:
        """All denials of this kind."""
        return [denial for denial in self._current() if denial.kind == kind]

    def denied_since(self, kind: str, subject: str, moment: float) -> Denial | None:
        """The denial, if the server sent it at or after `moment` (`time.monotonic()`)."""
        known = self._known.get((kind, ack_prefix(subject)))
        return known.denial if known is not None and known.seen >= moment else None

    def forget(self) -> None:
        """Drop all denials: another connection may have other permissions."""
        self._known.clear()

    @contextmanager
    def pending(
        self, limit: asyncio.Timeout, subject: str, inbox: Callable[[], str]
    ) -> Iterator[PendingRequest]:
        """Have `limit` end at once when a publish to `subject`, or the subscription to `inbox()`, is denied."""
        request = PendingRequest(limit, subject, inbox)
        self._pending.append(request)
        try:
            yield request
        finally:
            self._pending.remove(request)

    def _current(self) -> list[Denial]:
        return [known.denial for known in self._known.values() if not self._expired(known)]

    def _expired(self, known: _Known) -> bool:
        return time.monotonic() - known.seen > DENIAL_SECONDS
