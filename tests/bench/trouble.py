"""What keeps a line from being measured."""

from __future__ import annotations


class BenchError(RuntimeError):
    """A line cannot be measured; the message says why. The others still can."""
