"""A line of progress: written over itself on a terminal, else a new line each time."""

from __future__ import annotations

import shutil
import sys
import time
from itertools import zip_longest
from typing import Final, TextIO

# Seconds between refreshes of a line on a terminal, and between lines of a log.
LIVE_EVERY: Final = 0.25
LINE_EVERY: Final = 5.0


class LiveLine:
    """The last line of `out`, to be shown anew `every` so many seconds."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self.live = out.isatty()
        self.every = LIVE_EVERY if self.live else LINE_EVERY
        self._before: tuple[float, tuple[int, ...]] = (time.monotonic(), ())

    def rates(self, *totals: int) -> list[float]:
        """How much each total has grown in a second since the call before; at first, from 0 since this line began."""
        now, (since, before) = time.monotonic(), self._before
        self._before = (now, totals)
        elapsed = max(now - since, 1e-9)
        return [(total - old) / elapsed for total, old in zip_longest(totals, before, fillvalue=0)]

    def show(self, text: str) -> None:
        """Replace the line."""
        # A line that wraps cannot be written over.
        width = shutil.get_terminal_size().columns - 1
        self._write(f"\r\x1b[K{text[:width]}" if self.live else f"{text}\n")

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self._write(f"\r\x1b[K{text}\n" if self.live else f"{text}\n")

    def end(self) -> None:
        """Leave the line."""
        self._write("\n" if self.live else "")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
