"""A line of progress: written over itself on a terminal, else a new line each time."""

from __future__ import annotations

import shutil
from typing import TextIO


class LiveLine:
    """The last line of `out`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.live = out.isatty()

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
