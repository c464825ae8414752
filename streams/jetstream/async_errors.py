"""What went wrong last with a server, for people: kept for `/ready`, logged once a minute at most."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

LOG_EVERY: Final = 60.0


class AsyncErrors:
    """The last complaint, and when each was logged last."""

    def __init__(self, first: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.last = first
        self._clock = clock
        self._told_why = False
        self._logged: dict[str, float] = {}

    def report(self, text: str) -> None:
        """Keep it and log it, unless that was done a moment ago."""
        self.last = text
        self._told_why = True
        now = self._clock()
        self._logged = {known: at for known, at in self._logged.items() if now - at < LOG_EVERY}
        if self._logged.setdefault(text, now) == now:
            logger.warning("%s", text)

    def lost(self, text: str) -> None:
        """The connection is gone: log it, but keep the reason, if one was given just before."""
        reason = self.last if self._told_why else text
        self.report(text)
        self.last = reason

    def over(self) -> None:
        """It works again: what was reported explains nothing that follows."""
        self._told_why = False
