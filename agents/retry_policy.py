"""What happens to an event that was handled: pure decisions (OUT-1, DLQ-6)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, NamedTuple

from events.errors import EventError, NotFound

# The count (see `total_attempts`) at which a replay that fails is the last one (DLQ-7).
REPLAY_LIMIT: Final = 5
JITTER: Final = 0.2


class RetryPolicy(NamedTuple):
    """How often and how late an event is tried again; delays in seconds."""

    max_deliver: int
    base: float
    maximum: float

    def delay(self, attempt: int) -> float:
        """Seconds before the next attempt, after attempt number `attempt` (1 = first)."""
        # 2**62 is beyond every maximum; the bound keeps a huge attempt number from overflowing a float.
        return min(self.base * float(2 ** min(attempt - 1, 62)), self.maximum)


def retry_delay(error: EventError, attempt: int, policy: RetryPolicy) -> float | None:
    """Seconds before an event that failed is tried again; None: it is dead-lettered (OUT-1).

    `attempt` is the number of its delivery. A row that is not there yet is waited for like a passing failure: another
    replica may be about to make it.
    """
    if (error.retryable or error.delayed) and attempt < policy.max_deliver:
        return policy.delay(attempt)
    return None


def is_poison(attempt: int, policy: RetryPolicy) -> bool:
    """Whether an event came so often without an outcome that handling it seems to kill its worker (OUT-10)."""
    return attempt > 2 * policy.max_deliver


def envelope_retry_count(error: EventError, attempt: int) -> int:
    """`retry_count` of the envelope: 1 for a missing row, so that its replays are counted from there."""
    return 1 if isinstance(error, NotFound) else attempt


def total_attempts(retry_count: int, attempt: int) -> int:
    """The attempts of an event before this replay, in its own queue and as a dead letter (k of DLQ-6)."""
    return retry_count + attempt - 1


def replay_delay(
    retry_count: int,
    attempt: int,
    policy: RetryPolicy,
    *,
    spread: Callable[[float, float], float] = random.uniform,
) -> float | None:
    """Seconds before a dead letter is replayed again after a failure, with +-20 % jitter; None: it is parked (DLQ-6).

    `attempt` is the number of its delivery.
    """
    if total_attempts(retry_count, attempt) >= REPLAY_LIMIT or attempt >= policy.max_deliver:
        return None
    return policy.delay(attempt) * spread(1 - JITTER, 1 + JITTER)
