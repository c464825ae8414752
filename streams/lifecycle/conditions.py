"""What the parts of a worker report about themselves: how far the start is, and what waits for what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from streams.lifecycle.wait_reasons import WaitReasons

# Waits for PostgreSQL, by the first word of their names.
_FOR_DATABASE: Final = ("storing ", "onboarding ")


class Conditions:
    """Keeps the reported conditions, and logs each when it begins, changes and ends.

    A part is known by its name, such as `storing KopiNusa` or `stream dlq_stream`, and has one reason at a time.
    """

    def __init__(self) -> None:
        # The step of the start that is not done yet, or "stopping"; empty while the worker runs.
        self.phase = "starting"
        self._unserved = WaitReasons("waiting: {name}: {reason}", "no longer waiting: {name}")
        self._paused = WaitReasons("{name} waits: {reason}", "{name} works again")
        self._unanswered = WaitReasons("{name}: {reason}", "{name} is there again")

    def starting(self, step: str) -> None:
        """This step of the start is not done yet."""
        self.phase = step

    def started(self) -> None:
        """What all companies share is there; some of them may still wait."""
        self.phase = ""

    def stopping(self) -> None:
        """The worker takes no new events."""
        self.phase = "stopping"

    def unserved(self, part: str, reason: str) -> None:
        """This part of the start waits, while the rest of the worker runs."""
        self._unserved.begin(part, reason)

    def served(self, part: str) -> None:
        """This part of the start is done."""
        self._unserved.end(part)

    def paused(self, waiter: str, reason: str) -> None:
        """Processing waits; `waiter` names activity and company: `storing KopiNusa`."""
        self._paused.begin(waiter, reason)

    def resumed(self, waiter: str) -> None:
        """Processing continues."""
        self._paused.end(waiter)

    def unanswered(self, source: str, reason: str) -> None:
        """Why the requests of this source are not answered."""
        self._unanswered.begin(source, reason)

    def answered(self, source: str) -> None:
        """The requests of this source are answered again."""
        self._unanswered.end(source)

    def waits(self) -> Mapping[str, str]:
        """Reason by name of what waits, without the waits for PostgreSQL."""
        return {**self._unserved.all(), **self._paused.all(exclude=_FOR_DATABASE)}

    def database_waits(self) -> str | None:
        """One line about what waits for PostgreSQL."""
        return self._paused.summary(_FOR_DATABASE)

    def pauses(self) -> Mapping[str, str]:
        """Reason by name of all paused processing."""
        return self._paused.all()

    def unanswered_sources(self) -> Mapping[str, str]:
        """Reason by name of the sources whose requests are not answered."""
        return self._unanswered.all()
