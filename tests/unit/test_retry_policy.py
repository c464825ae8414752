"""Decisions and delays (OUT-1, DLQ-7)."""

from __future__ import annotations

import pytest

from agents import retry_policy
from agents.retry_policy import RetryPolicy
from events import errors
from events.errors import EventError

REALTIME = RetryPolicy(5, 1.0, 30.0)
HISTORICAL = RetryPolicy(3, 2.0, 60.0)
DLQ = RetryPolicy(10, 300.0, 300.0)
FATAL = [
    errors.Malformed,
    errors.Invalid,
    errors.Rejected,
    errors.UnexpectedError,
    errors.MaxDeliveriesExceeded,
    EventError,
]
PASSING = [errors.DatabaseError, errors.TimedOut, errors.BrokerError]


@pytest.mark.rule("OUT-3")
@pytest.mark.parametrize(
    ("limits", "delays"), [(REALTIME, [1, 2, 4, 8]), (HISTORICAL, [2, 4])], ids=["realtime", "historical"]
)
@pytest.mark.parametrize("kind", [*PASSING, errors.NotFound])
def test_what_may_pass_is_tried_again_with_growing_delays_then_given_up(
    kind: type[EventError], limits: RetryPolicy, delays: list[float]
) -> None:
    tries = [
        retry_policy.retry_delay(kind(), attempt, limits) for attempt in range(1, limits.max_deliver + 3)
    ]
    assert tries == [*delays, *[None] * 3]


@pytest.mark.rule("OUT-4")
@pytest.mark.parametrize("attempt", [1, 4, 5, 9])
@pytest.mark.parametrize("kind", FATAL)
def test_what_cannot_pass_is_given_up_at_any_delivery(kind: type[EventError], attempt: int) -> None:
    assert retry_policy.retry_delay(kind(), attempt, REALTIME) is None


@pytest.mark.rule("OUT-3")
def test_a_delay_never_exceeds_its_maximum() -> None:
    assert RetryPolicy(50, 1.0, 30.0).delay(6) == 30.0
    assert RetryPolicy(50, 1.0, 30.0).delay(10**9) == 30.0


@pytest.mark.rule("OUT-10")
@pytest.mark.parametrize("limits", [REALTIME, HISTORICAL])
def test_an_event_is_lost_after_twice_its_deliveries(limits: RetryPolicy) -> None:
    assert not retry_policy.is_poison(2 * limits.max_deliver, limits)
    assert retry_policy.is_poison(2 * limits.max_deliver + 1, limits)


@pytest.mark.rule("OUT-11")
def test_the_envelope_counts_the_deliveries_but_for_a_missing_row() -> None:
    assert retry_policy.envelope_retry_count(errors.DatabaseError(), 5) == 5
    assert retry_policy.envelope_retry_count(errors.Invalid(), 1) == 1
    assert retry_policy.envelope_retry_count(errors.NotFound(), 5) == 1


@pytest.mark.rule("DLQ-7")
@pytest.mark.parametrize(
    ("retry_count", "last"),
    [(1, 5), (3, 3), (5, 1), (9, 1), (0, 6)],
    ids=["fatal", "historical", "realtime", "beyond", "none"],
)
def test_a_dead_letter_is_given_up_at_its_fifth_try_in_all(retry_count: int, last: int) -> None:
    delays = [retry_policy.replay_delay(retry_count, d, DLQ) for d in range(1, last + 1)]
    assert [delay is None for delay in delays] == [False] * (last - 1) + [True]


@pytest.mark.rule("DLQ-7")
def test_a_dead_letter_is_given_up_at_its_last_delivery() -> None:
    limits = RetryPolicy(2, 1.0, 1.0)
    assert retry_policy.replay_delay(1, 1, limits) is not None
    assert retry_policy.replay_delay(1, 2, limits) is None


@pytest.mark.rule("DLQ-6")
def test_delays_of_dead_letters_are_spread_by_a_fifth_both_ways() -> None:
    replay_delay = retry_policy.replay_delay
    assert replay_delay(1, 1, DLQ, spread=lambda low, _: low) == pytest.approx(240)
    assert replay_delay(1, 1, DLQ, spread=lambda _, high: high) == pytest.approx(360)
    delays = {replay_delay(1, 1, DLQ) for _ in range(50)}
    assert len(delays) > 40
    assert all(delay is not None and 240 <= delay <= 360 for delay in delays)
