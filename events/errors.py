"""What can be wrong with an event or with the broker: one class for each kind.

A class is the one declaration of its kind: its text, its metric label, whether the envelope calls it retryable, and how
it can settle a delivery. The series of the metrics and the retries derive from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from events.redaction import redacted

ErrorType = Literal[
    "none", "database", "validation", "not_found", "nats", "timeout", "unmarshal", "panic", "unknown"
]


class EventError(Exception):
    """The event could not be handled."""

    label: ClassVar[ErrorType] = "unknown"
    # The word of the envelope and of the text: whether the same event may succeed later.
    retryable: ClassVar[bool] = False
    # Whether a delivery with this error is first retried with the nak delays.
    delayed: ClassVar[bool] = False
    # Whether only events that change a row can have it.
    of_updates: ClassVar[bool] = False
    # Whether it can be the reason why an event is terminated without a dead letter.
    terminates: ClassVar[bool] = True
    # WhatsApp account and jid that the event names, if it could be decoded: metric 4 counts it all the same (MET-6).
    account: tuple[str, str] = ("", "")

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message) or (self.__doc__ or ""))

    def kept(self) -> Self:
        """The same as an outcome to keep: without the frames that it came through, which would hold the event's body,
        and in a cycle, until the garbage collector comes."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)

    def __str__(self) -> str:
        """The text in envelopes and logs: `fatal: ` or `retryable: `, then the cause."""
        return f"{'retryable' if self.retryable else 'fatal'}: {super().__str__()}"

    @property
    def error_type(self) -> Literal["fatal", "retryable"]:
        """`error_type` of the dead-letter envelope (DLQ-1)."""
        return "retryable" if self.retryable else "fatal"


class Malformed(EventError):
    """The body is not valid JSON of the promised types."""

    label = "unmarshal"


class Invalid(EventError):
    """A field is missing or has a value that is not allowed."""

    label = "validation"

    def __init__(self, message: str = "", *, account: tuple[str, str] = ("", "")) -> None:
        super().__init__(message)
        self.account = account


class NotFound(EventError):
    """The row to update was not found."""

    label = "not_found"
    # Another replica may be about to insert the row.
    delayed = True
    of_updates = True


class Rejected(EventError):
    """The database refuses the data of this event."""

    label = "database"


class DatabaseError(EventError):
    """The database failed on this event."""

    label = "database"
    retryable = True
    delayed = True


class TimedOut(EventError):
    """The event ran into a time-out again and again."""

    label = "timeout"
    retryable = True
    delayed = True


class BrokerError(EventError):
    """NATS did not confirm what was published."""

    label = "nats"
    retryable = True
    terminates = False


class UnexpectedError(EventError):
    """An unexpected exception ended the handling of this event."""

    label = "panic"


class MaxDeliveriesExceeded(EventError):
    """Every delivery so far ended without an outcome."""


class UnknownSubject(EventError):
    """The subject is of no known event type, or not of this company."""


def kinds() -> Iterator[type[EventError]]:
    """Every kind of error."""
    yield EventError
    yield from EventError.__subclasses__()
