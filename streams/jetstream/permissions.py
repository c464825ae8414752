"""Rights that NATS denies us: told in the server's own words until they work again.

A server refuses a publish or a subscription with an error of its own, apart from any request: who waits for an
answer would wait in vain.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

logger = logging.getLogger(__name__)

ACK_PREFIX: Final = "$JS.ACK."
PUBLISH: Final = "Publish"
SUBSCRIPTION: Final = "Subscription"
# In place of a subject, where the server does not name it: a limit was reached.
ANY: Final = ""
# What is refused no more within this time counts as done with: nobody tries it any longer.
FORGOTTEN_AFTER: Final = 90.0

_VIOLATION: Final = re.compile(
    r'Permissions Violation for (Publish|Subscription)(?: to| with Reply of) "((?:[^"\\]|\\.)*)"',
    re.IGNORECASE,
)
# $JS.ACK.<stream>.<consumer> and five more, or two more words before the stream.
_SHORT_ACK: Final = 9


class Denial(NamedTuple):
    """A refused right: `Publish` or `Subscription`, its subject, and the server's own text."""

    right: str
    subject: str
    text: str

    def __str__(self) -> str:
        if self.subject == ANY:
            return f"NATS denies subscriptions: {self.text}; three a company are needed, and a few more"
        return f"NATS denies a right: {self.text}"


def parse_denial(text: str) -> Denial | None:
    """The denial that an error of the server tells of; None if it is another error."""
    found = _VIOLATION.search(text)
    if found is None:
        return None
    return Denial(found[1].capitalize(), re.sub(r"\\(.)", r"\1", found[2]), text)


def ack_prefix(subject: str) -> str:
    """The part of an ack's subject that all acks of its consumer share; other subjects as they are."""
    if not subject.startswith(ACK_PREFIX):
        return subject
    tokens = subject.split(".")
    return ".".join(tokens[: 4 if len(tokens) <= _SHORT_ACK else 6])


class _Known(NamedTuple):
    denial: Denial
    seen: float


class Permissions:
    """What is denied at present, by right and subject; the acks of a consumer count as one subject."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[tuple[str, str], _Known] = {}
        self._waiting: dict[asyncio.Timeout, tuple[str, Callable[[], str]]] = {}
        self._ended: dict[asyncio.Timeout, Denial] = {}
        self._listeners: list[Callable[[Denial], None]] = []

    @property
    def problem(self) -> str | None:
        """The first denied right in the server's words, and how many more there are; None without any."""
        denied = self._current()
        if not denied:
            return None
        more = f" (and {len(denied) - 1} more)" if len(denied) > 1 else ""
        return f"{denied[0]}{more}"

    def listen(self, callback: Callable[[Denial], None]) -> None:
        """Call `callback` with each denial."""
        self._listeners.append(callback)

    def denied(self, denial: Denial) -> None:
        """The server refused something. Whoever waits for it learns at once."""
        key = (denial.right, ack_prefix(denial.subject))
        known = self._known.get(key)
        if known is None:
            logger.warning("%s", denial)
        self._known[key] = _Known(known.denial if known else denial, self._clock())
        for limit, (subject, inbox) in tuple(self._waiting.items()):
            if limit.expired():
                continue  # it takes some turns of the loop to end, and ends once
            if denial.subject == (subject if denial.right == PUBLISH else inbox()):
                self._ended[limit] = denial
                limit.reschedule(asyncio.get_running_loop().time())
        for listener in tuple(self._listeners):
            listener(denial)

    def allowed(self, right: str, subject: str) -> None:
        """It works, whatever was said before."""
        known = self._known.pop((right, ack_prefix(subject)), None)
        if known is not None:
            logger.info("NATS grants it again: %s to %s", right, known.denial.subject or "all that is needed")

    def refusal(self, right: str, subject: str) -> Denial | None:
        """The denial of this right, if it is denied at present."""
        known = self._known.get((right, ack_prefix(subject)))
        return None if known is None or self._expired(known) else known.denial

    def refused(self, right: str) -> list[Denial]:
        """All denials of this kind of right."""
        return [denial for denial in self._current() if denial.right == right]

    def refused_since(self, right: str, subject: str, moment: float) -> Denial | None:
        """The denial, if the server repeated it at or after `moment` (`time.monotonic()`)."""
        known = self._known.get((right, ack_prefix(subject)))
        return known.denial if known is not None and known.seen >= moment else None

    def forget(self) -> None:
        """Another connection may have other rights."""
        self._known.clear()

    @contextmanager
    def waiting(self, limit: asyncio.Timeout, subject: str, inbox: Callable[[], str]) -> Iterator[None]:
        """End `limit` at once when a publish to `subject`, or the subscription to `inbox()`, is refused meanwhile."""
        self._waiting[limit] = (subject, inbox)
        try:
            yield
        finally:
            del self._waiting[limit]
            if not limit.expired():  # the answer came all the same
                self._ended.pop(limit, None)

    def ended(self, limit: asyncio.Timeout) -> Denial | None:
        """Why `limit` was ended before its time; None if it was not."""
        return self._ended.pop(limit, None)

    def _current(self) -> list[Denial]:
        return [known.denial for known in self._known.values() if not self._expired(known)]

    def _expired(self, known: _Known) -> bool:
        return self._clock() - known.seen > FORGOTTEN_AFTER
