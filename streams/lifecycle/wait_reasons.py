"""What waits, by name, each with its reason; logged when it begins, changes and ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

logger = logging.getLogger(__name__)

# Names that a summary spells out.
NAMED: Final = 3
# Reasons of one wait that are remembered as logged: some texts hold numbers that differ each time.
REMEMBERED: Final = 20


@dataclass(slots=True)
class _Wait:
    reason: str
    logged: set[str] = field(default_factory=set)


class WaitReasons:
    """The waits of one kind. `begun` and `ended` are the log lines, with `{name}` and `{reason}`."""

    def __init__(self, begun: str, ended: str) -> None:
        self._begun = begun
        self._ended = ended
        self._waits: dict[str, _Wait] = {}

    def begin(self, name: str, reason: str) -> None:
        """This one waits for this reason; logged once for each reason, until it ends."""
        wait = self._waits.setdefault(name, _Wait(reason))
        wait.reason = reason
        if reason not in wait.logged and len(wait.logged) < REMEMBERED:
            wait.logged.add(reason)
            logger.warning("%s", self._begun.format(name=name, reason=reason))

    def end(self, name: str) -> None:
        """This one waits no longer; of no effect if it did not wait."""
        if self._waits.pop(name, None) is not None:
            logger.info("%s", self._ended.format(name=name))

    def all(self, exclude: tuple[str, ...] = ()) -> Mapping[str, str]:
        """Reason by name, without the names that begin with one of `exclude`."""
        return {name: wait.reason for name, wait in self._waits.items() if not name.startswith(exclude)}

    def summary(self, prefixes: tuple[str, ...]) -> str | None:
        """One line about the waits whose names begin with one of `prefixes`; None without any."""
        names: dict[str, list[str]] = {}
        for name, wait in self._waits.items():
            if name.startswith(prefixes):
                names.setdefault(wait.reason, []).append(name)
        return "; ".join(f"{reason} ({_some(waiting)})" for reason, waiting in names.items()) or None


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
