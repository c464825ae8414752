"""Store times that step back: each is counted, a large one is logged."""

from __future__ import annotations

import logging

import pytest

from events.delivery import MessageMetadata
from streams.jetstream.store_clock import StoreClock

SECOND = 1_000_000_000


def note(clock: StoreClock, *deliveries: tuple[int, int, int]) -> None:
    """Deliveries of these (number of delivery, sequence, ns) arrive."""
    for num_delivered, sequence, ns in deliveries:
        clock.note(MessageMetadata("s", "c", "", sequence, sequence, num_delivered, ns, 0))


def test_a_store_time_that_steps_back_is_counted_once_and_logged_above_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps: list[float] = []
    clock = StoreClock("s", steps.append)
    note(clock, (1, 1, 9 * SECOND), (1, 2, 8 * SECOND), (1, 3, 8 * SECOND + 1))
    assert steps == [1.0]
    assert not caplog.records
    note(clock, (1, 4, 5 * SECOND))
    assert steps == [1.0, pytest.approx(3.0)]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "synchronised" in caplog.text


def test_redeliveries_and_sequences_given_out_again_are_no_steps_back() -> None:
    steps: list[float] = []
    note(StoreClock("s", steps.append), (1, 5, 50), (2, 2, 20), (1, 6, 60), (1, 1, 70), (1, 2, 80), (3, 9, 1))
    assert steps == []
