"""The demo's progress: what the worker's own metrics and the JetStream consumers say."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Final, TextIO

from demo.live_line import LiveLine
from testkit.evidence import Backlog
from testkit.worker import Scrape

_ACTIONS: Final = "message_event_service_event_processing_actions_total"
# Seconds between lines of a log; a line on a terminal is refreshed each time.
_LINE_EVERY: Final = 5.0


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals of the worker so far."""

    received: int = 0
    stored: int = 0
    retried: int = 0
    dead_lettered: int = 0
    exhausted: int = 0
    onboarded: int = 0


def read_metrics(page: str) -> Counts:
    """The totals in a page of `/metrics`, over all companies."""
    scrape = Scrape(page)
    return Counts(
        received=int(scrape.value("message_event_service_events_received_total")),
        stored=int(scrape.value("message_event_service_events_processed_total")),
        retried=int(scrape.value(_ACTIONS, action="nack_retryable")),
        dead_lettered=int(scrape.value(_ACTIONS, action="dlq_published_ack_success")),
        exhausted=int(scrape.value("dlq_tasks_dropped_total")),
        onboarded=int(scrape.value("onboarding_tasks_processed_total", status="success_created")),
    )


class Progress(LiveLine):
    """The rates since the call before, and the totals."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        super().__init__(out)
        self._before = (time.monotonic(), 0, 0)
        self._written = -_LINE_EVERY

    def update(self, published: int, counts: Counts, backlog: Backlog) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if not self.live and now - self._written < _LINE_EVERY:
            return
        since, published_before, stored_before = self._before
        elapsed = max(now - since, 1e-9)
        self.show(
            f"published {published} ({(published - published_before) / elapsed:.0f}/s)"
            f"  stored {counts.stored} ({(counts.stored - stored_before) / elapsed:.0f}/s)"
            f"  retried {counts.retried}  dead-lettered {counts.dead_lettered}"
            f"  exhausted {counts.exhausted}  new contacts {counts.onboarded}  lag {backlog.lag}"
        )
        self._before = (now, published, counts.stored)
        self._written = now
