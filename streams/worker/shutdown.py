"""The end of the process: its exit code, and one deadline for the whole stop."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Iterable
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
_LOG_SECONDS: Final = 0.5
_BY_WORKER: Final = 0


def drain_budget(seconds: float) -> float:
    """How much of the time for a stop the drain of the sources may take, both in seconds."""
    return seconds - min(AFTER_DRAIN, seconds / 2)


def hear_blocked_stop() -> None:
    """End at a SIGTERM that was held back while Python started, and at one that comes before a worker listens.

    The image's entry blocks the signal, because a first process does not get one that it has no handler for.
    """
    if signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        return
    # Nothing is started yet, or a command is at work, which SIGTERM ends at once elsewhere, too.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(EXIT_SIGNAL + number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))


class Shutdown:
    """Ends the process at the latest `seconds` after its stop began, and at once at a second signal.

    The deadline is kept by a thread: neither an event loop that hangs nor a log that nobody reads can delay it.
    Deliveries that are not settled by then are redelivered by JetStream; nothing uncommitted is stored.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.failure = ""  # with a reason the exit code is 1
        self.left_behind: list[str] = []  # services that did not stop in their time
        self.stopping = ""  # the service that is being stopped
        # Safe to be called in a signal handler, also while this very thread is in it.
        self._events: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._handlers: dict[int, Any] = {}

    def fail(self, reason: str) -> None:
        """End the worker with code 1, after an orderly stop. The first reason is logged."""
        if self.failure:
            return
        self.failure = reason
        logger.critical("giving up: %s", reason)
        self.begin()
        # Faust's worker stops in order at a signal, and waits for it.
        os.kill(os.getpid(), signal.SIGTERM)

    def watch(self, signals: Iterable[signal.Signals] = ()) -> None:
        """Wait for a stop to begin, and for these signals; the handlers they have are called as well.

        To be called from the main thread, after the event loop's own handlers are there.
        """
        threading.Thread(target=self._keep, name="stop deadline", daemon=True).start()
        for number in signals:
            self._handlers[number] = signal.signal(number, self._on_signal)

    def begin(self) -> None:
        """The worker is about to stop itself, by a signal to itself."""
        self._events.put(_BY_WORKER)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._events.put(number)
        handler = self._handlers[number]
        if callable(handler) and handler is not signal.default_int_handler:
            handler(number, frame)

    def _keep(self) -> None:
        # After `begin` one signal is our own, also in a failure during a stop.
        own = self._events.get() == _BY_WORKER
        deadline = time.monotonic() + self.seconds
        while True:
            try:
                number = self._events.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                self._end(EXIT_CUT, f"not stopped within {self.seconds:g} s (STOP_TIMEOUT)")
            else:
                if number == _BY_WORKER:
                    own = True
                elif own:
                    own = False
                else:
                    self._end(EXIT_SIGNAL + number, f"ended at once by a second signal ({number})")

    def _end(self, code: int, reason: str) -> None:
        code = 1 if self.failure else code
        last_resort = threading.Timer(_LOG_SECONDS, os._exit, (code,))
        last_resort.daemon = True
        last_resort.start()
        left = ", ".join(filter(None, (*self.left_behind, self.stopping))) or "the event loop"
        logger.error("%s; left: %s; what is not settled comes again", reason, left)
        os._exit(code)
