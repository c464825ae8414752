"""Detection of store times that step back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from events.delivery import MessageMetadata

logger = logging.getLogger(__name__)

# Steps from so many seconds on are logged. All are counted.
LOGGED_STEP: Final = 1.0


class StoreClock:
    """Watches the store times of one consumer's deliveries.

    They come from the clock of the stream's leader, and step back when a node with a slower clock becomes the leader.
    """

    def __init__(self, stream: str, report: Callable[[float], None]) -> None:
        self._stream = stream
        self._report = report
        self._latest: MessageMetadata | None = None

    def note(self, arrived: MessageMetadata) -> None:
        """Compare a delivery with those before. First deliveries come in the order of their sequences."""
        if arrived.num_delivered != 1:
            return
        latest = self._latest
        if latest is None or arrived.stream_sequence > latest.stream_sequence:
            self._latest = arrived
            if latest is not None and arrived.stored_ns < latest.stored_ns:
                self._report_step(latest, arrived)
        elif arrived.stored_ns > latest.stored_ns:  # the stream was created again
            self._latest = arrived

    def _report_step(self, before: MessageMetadata, after: MessageMetadata) -> None:
        seconds = (before.stored_ns - after.stored_ns) / 1e9
        self._report(seconds)
        if seconds > LOGGED_STEP:
            logger.warning(
                "store times of %s step back by %.3f s from sequence %d to %d: "
                "the clocks of the NATS nodes have to be synchronised",
                self._stream,
                seconds,
                before.stream_sequence,
                after.stream_sequence,
            )
