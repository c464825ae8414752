"""What happens to an event that was handled: pure decisions (OUT-3, OUT-4, DLQ-6, DLQ-7)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from events.errors import EventError, NotFound

# Tries of an event over both its queues, before it is given up for good.
REPLAY_LIMIT: Final = 5
JITTER: Final = 0.2


class RetryPolicy(NamedTuple):
    """How often and how late an event is tried again; seconds."""

    max_deliver: int
    base: float
    maximum: float

    def delay(self, attempt: int) -> float:
        """Seconds before the next try, after try number `attempt` (1 = first)."""
        # 2**62 is beyond every maximum; the bound keeps a huge attempt number from overflowing a float.
        return min(self.base * float(2 ** min(attempt - 1, 62)), self.maximum)


class Decision(NamedTuple):
    """`ack`, `nak` after `delay` seconds, or give up (`dead_letter`)."""

    outcome: Literal["ack", "nak", "dead_letter"]
    delay: float = 0.0


def decide(error: EventError | None, attempt: int, limits: RetryPolicy) -> Decision:
    """The outcome of delivery number `attempt` (OUT-1).

    A row that is not there yet is waited for like a passing failure: another replica may be about to make it.
    """
    if error is None:
        return Decision("ack")
    if (error.retryable or error.delayed) and attempt < limits.max_deliver:
        return Decision("nak", limits.delay(attempt))
    return Decision("dead_letter")


def is_poison(attempt: int, limits: RetryPolicy) -> bool:
    """Whether an event came so often without an outcome that handling it seems to kill its worker."""
    return attempt > 2 * limits.max_deliver


def envelope_retry_count(error: EventError, attempt: int) -> int:
    """`retry_count` of the envelope: 1 for a missing row, so that the dead-letter queue's patience starts there."""
    return 1 if isinstance(error, NotFound) else attempt


def total_attempts(retry_count: int, attempt: int) -> int:
    """k of DLQ-6: the tries of an event so far, in its own queue and as a dead letter."""
    return retry_count + attempt - 1


def decide_replay(
    error: EventError | None,
    retry_count: int,
    attempt: int,
    limits: RetryPolicy,
    *,
    spread: Callable[[float, float], float] = random.uniform,
) -> Decision:
    """The outcome of a dead letter's delivery number `attempt` (DLQ-7); its delay has +-20 % jitter."""
    if error is None:
        return Decision("ack")
    if total_attempts(retry_count, attempt) >= REPLAY_LIMIT or attempt >= limits.max_deliver:
        return Decision("dead_letter")
    return Decision("nak", limits.delay(attempt) * spread(1 - JITTER, 1 + JITTER))
