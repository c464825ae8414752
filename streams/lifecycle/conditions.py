"""What the parts of a worker report about themselves: how far the start is, and what waits for what."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

logger = logging.getLogger(__name__)

# Waits for PostgreSQL, by the first word of their names.
_FOR_DATABASE: Final = ("storing ", "onboarding ")
# Names that a summary spells out.
NAMED: Final = 3
# Reasons of one wait that are remembered as logged: some texts hold numbers that differ each time.
REMEMBERED: Final = 20


@dataclass(slots=True)
class _Wait:
    reason: str
    logged: set[str] = field(default_factory=set)


class WaitReasons:
    """The waits of one kind, by name. `begun` and `ended` are the log lines, with `{name}` and `{reason}`."""

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


class Conditions:
    """Keeps the reported conditions, and logs each when it begins, changes and ends.

    A part is known by its name, such as `storing KopiNusa` or `stream dlq_stream`, and has one reason at a time.
    With `fleet` the waits of single companies are reported apart: of many companies one is often in trouble.
    """

    def __init__(self, *, fleet: bool = False) -> None:
        self._fleet = fleet
        # The step of the start that is not done yet, or "stopping"; empty while the worker runs.
        self.phase = "starting"
        # Parts of the start that wait while the rest of the worker runs.
        self.unserved = WaitReasons("waiting: {name}: {reason}", "no longer waiting: {name}")
        # Processing that waits, by activity and company: `storing KopiNusa`.
        self.pauses = WaitReasons("{name} waits: {reason}", "{name} works again")
        # Companies of a fleet that are not served.
        self.companies = WaitReasons("waiting: {name}: {reason}", "no longer waiting: {name}")
        # Sources whose requests are not answered.
        self.unanswered = WaitReasons("{name}: {reason}", "{name} is there again")

    def halted_companies(self) -> set[str]:
        """The companies with events in hand that wait for their tables."""
        return {name.partition(" ")[2] for name in self.pauses.all() if name.startswith(_FOR_DATABASE)}

    def paused(self, waiter: str, reason: str) -> None:
        """Processing waits."""
        self.pauses.begin(waiter, reason)

    def resumed(self, waiter: str) -> None:
        """Processing continues."""
        self.pauses.end(waiter)

    def waits(self) -> Mapping[str, str]:
        """Reason by name of what waits, without the waits for PostgreSQL."""
        pauses = {} if self._fleet else self.pauses.all(exclude=_FOR_DATABASE)
        return {**self.unserved.all(), **pauses}

    def database_waits(self) -> str | None:
        """One line about what waits for PostgreSQL."""
        return None if self._fleet else self.pauses.summary(_FOR_DATABASE)

    def company_troubles(self) -> Mapping[str, str]:
        """What waits of single companies of a fleet, by activity and company; empty without a fleet."""
        return {**self.companies.all(), **self.pauses.all()} if self._fleet else {}


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
