"""The live progress line: what the worker's own metrics and the JetStream consumers say."""

from __future__ import annotations

import re
import shutil
import sys
import time
from dataclasses import dataclass
from typing import Final, TextIO

from testkit.evidence import Backlog

_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_EVENTS: Final = "message_event_service_events"
_ACTIONS: Final = "message_event_service_event_processing_actions_total"
# Lines of a log are fewer than the refreshes of a line on a terminal.
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
    sums: dict[str, float] = {}
    for line in page.splitlines():
        if found := _SAMPLE.match(line):
            name, labels, value = found.groups()
            for key in _keys(name, labels or ""):
                sums[key] = sums.get(key, 0.0) + float(value)
    return Counts(
        received=int(sums.get(f"{_EVENTS}_received_total", 0)),
        stored=int(sums.get(f"{_EVENTS}_processed_total", 0)),
        retried=int(sums.get("nack_retryable", 0)),
        dead_lettered=int(sums.get("dlq_published_ack_success", 0)),
        exhausted=int(sums.get("dlq_tasks_dropped_total", 0)),
        onboarded=int(sums.get("success_created", 0)),
    )


def _keys(name: str, labels: str) -> list[str]:
    if name == _ACTIONS:
        return re.findall(r'action="(\w+)"', labels)
    if name == "onboarding_tasks_processed_total":
        return re.findall(r'status="(\w+)"', labels)
    return [name]


class Progress:
    """Writes the line: over itself on a terminal, else a new one every few seconds."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._live = out.isatty()
        self._before = (time.monotonic(), 0, 0)
        self._written = -_LINE_EVERY

    def show(self, published: int, counts: Counts, backlog: Backlog) -> None:
        """Tell how far it is; rates are those since the last call."""
        now = time.monotonic()
        since, published_before, stored_before = self._before
        elapsed = max(now - since, 1e-9)
        line = (
            f"published {published} ({(published - published_before) / elapsed:.0f}/s)"
            f"  stored {counts.stored} ({(counts.stored - stored_before) / elapsed:.0f}/s)"
            f"  retried {counts.retried}  dead-lettered {counts.dead_lettered}"
            f"  exhausted {counts.exhausted}  new contacts {counts.onboarded}  lag {backlog.lag}"
        )
        if self._live:
            # A line that wraps cannot be written over.
            self._out.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
        elif now - self._written >= _LINE_EVERY:
            self._out.write(f"{line}\n")
        else:
            return
        self._before = (now, published, counts.stored)
        self._written = now
        self._out.flush()

    def say(self, text: str) -> None:
        """Write a line of its own."""
        self._out.write(f"\r\x1b[K{text}\n" if self._live else f"{text}\n")
        self._out.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._live:
            self._out.write("\n")
            self._out.flush()
