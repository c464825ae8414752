"""The demo's progress: what the worker's own metrics and the JetStream consumers say."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Final, TextIO

from demo.live_line import LiveLine
from testkit.evidence import Backlog
from testkit.worker import Scrape

_ACTIONS: Final = "message_event_service_event_processing_actions_total"
# What is shown after the events stored: the metric, and its labels.
_SHOWN: Final[Mapping[str, tuple[str, dict[str, str]]]] = {
    "retried": (_ACTIONS, {"action": "nack_retryable"}),
    "dead-lettered": (_ACTIONS, {"action": "dlq_published_ack_success"}),
    "exhausted": ("dlq_tasks_dropped_total", {}),
    "new contacts": ("onboarding_tasks_processed_total", {"status": "success_created"}),
}
# Seconds between lines of a log; a line on a terminal is refreshed each time.
_LINE_EVERY: Final = 5.0


class Progress(LiveLine):
    """The rates since the call before, and the totals."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        super().__init__(out)
        self._before = (time.monotonic(), 0, 0)
        self._written = -_LINE_EVERY

    def update(self, published: int, scrape: Scrape, backlog: Backlog) -> None:
        """Show how far it is, by the worker's page of metrics."""
        now = time.monotonic()
        if not self.live and now - self._written < _LINE_EVERY:
            return
        stored = int(scrape.value("message_event_service_events_processed_total"))
        totals = (f"{name} {scrape.value(metric, **labels):.0f}" for name, (metric, labels) in _SHOWN.items())
        since, published_before, stored_before = self._before
        elapsed = max(now - since, 1e-9)
        self.show(
            f"published {published} ({(published - published_before) / elapsed:.0f}/s)"
            f"  stored {stored} ({(stored - stored_before) / elapsed:.0f}/s)"
            f"  {'  '.join(totals)}  lag {backlog.lag}"
        )
        self._before = (now, published, stored)
        self._written = now
