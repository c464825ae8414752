"""Whether the database or an event is to blame for a write that was refused: decided by a probe, not by its code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, NamedTuple

from tables.errors import DataError, StorageError

# Seconds for which the answer to a probe counts, for all events of its kind that are refused alike: so long a flood
# of them costs one probe.
FRESH: Final = 1.0

Clock = Callable[[], float]


class _Answer(NamedTuple):
    """What a probe came to (None: it was stored), and when, in seconds of the clock."""

    at: float
    error: Exception | None


class OutageProbe:
    """The latest probes of one company, by kind of event and refusal."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._answers: dict[Hashable, _Answer] = {}
        self._lock = asyncio.Lock()

    async def outage(
        self, kind: Hashable, probe: Callable[[], Awaitable[None]], error: Exception
    ) -> str | None:
        """Why the database is to blame for `error`, the refusal of an event of this kind; None: the event is.

        The event is to blame if a probe of its kind is stored right after, or is refused for another reason of its
        data: then `error` still stands for itself.
        """
        # What was stored after one refusal may have been stored before another: that one has a probe of its own.
        answer = (await self._ask((kind, _identity(error)), probe)).error
        if answer is None or _is_about_another_row(answer, error):
            return None
        told = answer.in_full() if isinstance(answer, StorageError) else type(answer).__name__
        return f"a test row is not stored either: {told}"

    async def _ask(self, about: Hashable, probe: Callable[[], Awaitable[None]]) -> _Answer:
        async with self._lock:
            now = self._clock()
            self._answers = {of: it for of, it in self._answers.items() if now - it.at < FRESH}
            if about not in self._answers:
                error = await _error(probe)
                self._answers[about] = _Answer(self._clock(), error)
            return self._answers[about]


def _identity(error: Exception) -> Hashable:
    if isinstance(error, StorageError):
        return type(error), error.sqlstate, tuple(sorted(error.objects.items()))
    return (type(error),)


async def _error(probe: Callable[[], Awaitable[None]]) -> Exception | None:
    try:
        await probe()
    except Exception as error:
        return error.with_traceback(None)
    return None


def _is_about_another_row(probed: Exception, error: Exception) -> bool:
    """Whether both were refused for their data, and not for the same reason."""
    if not (isinstance(probed, DataError) and isinstance(error, DataError)):
        return False
    return (probed.sqlstate, probed.objects) != (error.sqlstate, error.objects)
