"""Errors of the connection that belong to no request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

LOG_EVERY: Final = 60.0


class AsyncErrors:
    """Keeps the last error for `/ready`, and logs each at most once a minute."""

    def __init__(self, first: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.last = first
        self._clock = clock
        self._has_reason = False
        self._logged: dict[str, float] = {}

    def report(self, text: str) -> None:
        """Keep an error, and log it unless that was done a moment ago."""
        self.last = text
        self._has_reason = True
        now = self._clock()
        self._logged = {known: at for known, at in self._logged.items() if now - at < LOG_EVERY}
        if self._logged.setdefault(text, now) == now:
            logger.warning("%s", text)

    def report_disconnect(self, text: str) -> None:
        """Log a lost connection; the error that came before it stays the last one."""
        reason = self.last if self._has_reason else text
        self.report(text)
        self.last = reason

    def clear(self) -> None:
        """The connection works again: earlier errors do not explain what follows."""
        self._has_reason = False
