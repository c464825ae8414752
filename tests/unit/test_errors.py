"""Error classes, labels and texts."""

from __future__ import annotations

from typing import get_args

import pytest

from events import errors
from events.errors import EventError

# Each kind with its label and the word of its envelope.
KINDS = [
    (errors.Malformed, "unmarshal", "fatal"),
    (errors.Invalid, "validation", "fatal"),
    (errors.NotFound, "not_found", "fatal"),
    (errors.Rejected, "database", "fatal"),
    (errors.DatabaseError, "database", "retryable"),
    (errors.TimedOut, "timeout", "retryable"),
    (errors.BrokerError, "nats", "retryable"),
    (errors.UnexpectedError, "panic", "fatal"),
    (errors.MaxDeliveriesExceeded, "unknown", "fatal"),
    (errors.UnknownSubject, "unknown", "fatal"),
    (EventError, "unknown", "fatal"),
]


@pytest.mark.rule("OUT-14", "OUT-17")
@pytest.mark.parametrize(("kind", "label", "error_type"), KINDS)
def test_each_cause_has_its_label_and_says_whether_trying_again_helps(
    kind: type[EventError], label: str, error_type: str
) -> None:
    error = kind("the cause")
    assert (error.label, error.error_type) == (label, error_type)
    assert error.retryable is (error_type == "retryable")
    assert str(error) == f"{error_type}: the cause"


def test_the_list_of_kinds_is_complete() -> None:
    assert {kind for kind, _, _ in KINDS} == {EventError, *EventError.__subclasses__()}


def test_every_kind_of_error_is_a_direct_subclass_so_that_its_series_begin_at_zero() -> None:
    assert [kind for kind in errors.kinds() if kind is not EventError and kind.__subclasses__()] == []
    assert {kind.label for kind in errors.kinds()} == set(get_args(errors.ErrorType)) - {"none"}


def test_an_error_without_a_cause_describes_itself() -> None:
    assert str(errors.MaxDeliveriesExceeded()) == "fatal: Every delivery so far ended without an outcome."


@pytest.mark.rule("OUT-14")
def test_the_label_comes_from_the_cause_and_never_from_the_text() -> None:
    """An error whose text has the words of other kinds."""
    assert errors.Invalid("database connection not found, json timeout").label == "validation"


def test_an_invalid_event_still_names_its_agent() -> None:
    error = errors.Invalid("flow is required", account=("agent-7f3a", "1@s.whatsapp.net"))
    assert error.account == ("agent-7f3a", "1@s.whatsapp.net")
    assert errors.Invalid("x").account == ("", "")
