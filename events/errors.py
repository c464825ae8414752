"""What can be wrong with an event or with the broker.

EventError                 carries its label (OUT-14) and whether trying again can help
├─ Malformed               the body is not the JSON that was promised
├─ Invalid                 a field is missing, of the wrong value, or of another company
├─ NotFound                the row to update is not there (yet)
├─ Rejected                the database refuses this very event's data
├─ DatabaseError           the database failed on this very event, for a reason that may pass
├─ TimedOut                this very event ran into a time-out again and again
├─ BrokerError             NATS did not take what was published
├─ UnexpectedError         an unexpected exception while handling the event
├─ MaxDeliveriesExceeded   each delivery so far ended without an outcome (its worker died)
└─ UnknownSubject          the subject is of no known event type, or of another company
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from events.redaction import redacted

ErrorType = Literal[
    "none", "database", "validation", "not_found", "nats", "timeout", "unmarshal", "panic", "unknown"
]


class EventError(Exception):
    """The event could not be handled."""

    label: ClassVar[ErrorType] = "unknown"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message) or (self.__doc__ or ""))

    def kept(self) -> Self:
        """The same as an outcome to keep: without the frames that it came through, which would hold the event's body,
        and in a cycle, until the garbage collector comes."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)

    def __str__(self) -> str:
        """The text (OUT-17): `fatal: ` or `retryable: `, then the cause."""
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

    def __init__(self, message: str = "", *, agent_id: str = "", jid: str = "") -> None:
        super().__init__(message)
        # The event was decoded: its agent is counted all the same (MET-6).
        self.agent_id = agent_id
        self.jid = jid


class NotFound(EventError):
    """The row to update was not found."""

    label = "not_found"


class Rejected(EventError):
    """The database refuses the data of this event."""

    label = "database"


class DatabaseError(EventError):
    """The database failed on this event."""

    label = "database"
    retryable = True


class TimedOut(EventError):
    """The event ran into a time-out again and again."""

    label = "timeout"
    retryable = True


class BrokerError(EventError):
    """NATS did not confirm what was published."""

    label = "nats"
    retryable = True


class UnexpectedError(EventError):
    """An unexpected exception ended the handling of this event."""

    label = "panic"


class MaxDeliveriesExceeded(EventError):
    """Every delivery so far ended without an outcome."""


class UnknownSubject(EventError):
    """The subject is of no known event type, or not of this company."""
