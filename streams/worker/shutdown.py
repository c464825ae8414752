"""One deadline for the whole stop: whatever hangs, the process has ended by then.

It is kept by a thread of its own: an event loop that hangs, or a log that nobody reads, cannot hold it up.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final

logger = logging.getLogger(__name__)

# Exit codes, besides 0 and 1 (see docs/operations.md): the deadline cut the stop short, or left a part behind; and,
# plus the signal's number, what a shell says of a process that a signal ended.
EXIT_CUT: Final = 75
EXIT_SIGNAL: Final = 128
# What is kept of the time for everything after the drain, each part of it bounded by itself.
AFTER_DRAIN: Final = 8.0
# A log line that cannot be written in this time is not waited for.
_LAST_WORDS: Final = 0.5
_OURSELVES: Final = 0


def drain_budget(seconds: float) -> float:
    """How much of the time for a stop the drain of the sources may take, both in seconds."""
    return seconds - min(AFTER_DRAIN, seconds / 2)


class ShutdownDeadline:
    """Ends the process at the latest `seconds` after its stop began, and at once at a second signal.

    What was not settled by then comes again from JetStream, and what was not committed is not stored.
    """

    def __init__(self, seconds: float, left: Callable[[], str], *, failed: Callable[[], bool]) -> None:
        """`left` names what has not stopped yet; `failed` says whether the exit code is 1 in any case."""
        self.seconds = seconds
        self._left = left
        self._failed = failed
        # Safe to be called in a signal handler, also while this very thread is in it.
        self._happened: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._others: dict[int, Any] = {}

    def watch(self, signals: Iterable[signal.Signals] = ()) -> None:
        """Wait for a stop to begin, and for these signals, beside those who handle them already.

        To be called from the main thread, after the event loop's own handlers are there.
        """
        threading.Thread(target=self._keep, name="stop deadline", daemon=True).start()
        for number in signals:
            self._others[number] = signal.signal(number, self._on_signal)

    def begin(self) -> None:
        """The worker is about to stop itself, by a signal of its own."""
        self._happened.put(_OURSELVES)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._happened.put(number)
        other = self._others[number]
        if callable(other) and other is not signal.default_int_handler:
            other(number, frame)

    def _keep(self) -> None:
        # After our own word one signal is our own, also when we fail while we stop already.
        own = self._happened.get() == _OURSELVES
        deadline = time.monotonic() + self.seconds
        while True:
            try:
                number = self._happened.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                self._end(EXIT_CUT, f"not stopped within {self.seconds:g} s (STOP_TIMEOUT)")
            else:
                if number == _OURSELVES:
                    own = True
                elif own:
                    own = False
                else:
                    self._end(EXIT_SIGNAL + number, f"ended at once by a second signal ({number})")

    def _end(self, code: int, why: str) -> None:
        code = 1 if self._failed() else code
        last_resort = threading.Timer(_LAST_WORDS, os._exit, (code,))
        last_resort.daemon = True
        last_resort.start()
        logger.error("%s; left: %s; what is not settled comes again", why, self._left() or "the event loop")
        os._exit(code)
