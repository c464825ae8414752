"""The report of a load run: latencies, a live line or plain ones, and the summary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TextIO

from demo.live_line import LiveLine
from demo.load_metrics import Counts, Tally

# Seconds between refreshes of a line on a terminal, and between lines of a log.
LIVE_EVERY: Final = 0.25
LINE_EVERY: Final = 5.0
# With the numbers it fits into 80 columns.
_BAR: Final = 16
_SHORTEST: Final = 1e-5
_LONGEST: Final = 1000.0
# Width of a class of latencies, so what is reported is at most 2 % too high.
_STEP: Final = math.log(1.02)


class Latencies:
    """Latencies in classes that grow by 2 %: the memory is the same however long it runs."""

    def __init__(self) -> None:
        self._classes = [0] * (1 + math.ceil(math.log(_LONGEST / _SHORTEST) / _STEP))
        self._count = 0

    def add(self, seconds: float) -> None:
        """One more."""
        place = math.ceil(math.log(max(seconds, _SHORTEST) / _SHORTEST) / _STEP)
        self._classes[min(place, len(self._classes) - 1)] += 1
        self._count += 1

    def quantile(self, share: float) -> float | None:
        """The latency, in seconds, that this share of all does not exceed; None if there are none."""
        wanted, seen = math.ceil(self._count * share), 0
        for place, count in enumerate(self._classes):
            seen += count
            if count and seen >= wanted:
                return _SHORTEST * math.exp(place * _STEP)
        return None


@dataclass(frozen=True, slots=True)
class State:
    """How far a run is. `share` is done of the whole, None if it has no end; `behind` is seconds of schedule."""

    elapsed: float
    total: Counts
    share: float | None
    behind: float


class Progress(LiveLine):
    """How far a run is, with the rate since the call before; on a terminal with a bar."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self.every = LIVE_EVERY if self.live else LINE_EVERY
        self._before = (0.0, 0)

    def update(self, state: State) -> None:
        """Show it."""
        since, confirmed = self._before
        rate = (state.total.confirmed - confirmed) / max(state.elapsed - since, 1e-9)
        self._before = (state.elapsed, state.total.confirmed)
        self.show(
            f"{self._how_far(state)}  confirmed {state.total.confirmed} ({rate:.0f}/s)  errors {state.total.errors}"
            f"  behind {state.behind:.1f} s"
        )

    def _how_far(self, state: State) -> str:
        if state.share is None:
            return f"{state.elapsed:.0f} s"
        share = min(state.share, 1.0)
        if not self.live:
            return f"{share:4.0%}"
        full = int(share * _BAR)
        return f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run that has ended. Times are seconds, `rate` is what was asked for, 0: as fast as confirmed."""

    tally: Tally
    latencies: Latencies
    reasons: Mapping[str, int]
    duplicates: int
    elapsed: float
    rate: float
    planned: int | None
    largest_lag: float
    stopped: bool

    @property
    def ok(self) -> bool:
        """Whether every attempt was confirmed."""
        total = self.tally.total()
        return total.confirmed == total.attempted

    def text(self) -> str:
        """The lines to print."""
        total = self.tally.total()
        planned = "" if self.planned in (None, total.attempted) else f" of {self.planned} planned"
        known = f", {self.duplicates} of them known to the stream already" if self.duplicates else ""
        lines = [
            *self._table(),
            "",
            f"attempted   {total.attempted}{planned}{', stopped by a signal' if self.stopped else ''}",
            f"confirmed   {total.confirmed}{known}",
            f"errors      {total.errors}",
            *(f"            {count} x {reason}" for reason, count in sorted(self.reasons.items())),
            f"rate        {self._rate(total)}",
            f"latency     {self._percentiles()}",
        ]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        rows = [f"{'event type':<22}{'attempted':>11}{'confirmed':>11}{'errors':>9}"]
        for one in self.tally.by_event_type():
            rows.append(f"{one.event_type:<22}{one.attempted:>11}{one.confirmed:>11}{one.errors:>9}")
        return rows

    def _rate(self, total: Counts) -> str:
        achieved = (
            f"{total.confirmed / self.elapsed if self.elapsed else 0:.1f} events/s in {self.elapsed:.1f} s"
        )
        if not self.rate:
            return f"{achieved}, as fast as confirmed"
        return f"{achieved}, {self.rate:g} asked for, at most {self.largest_lag:.3f} s behind schedule"

    def _percentiles(self) -> str:
        found = [(name, self.latencies.quantile(share)) for name, share in _PERCENTILES]
        shown = [f"{name} {seconds * 1000:.1f} ms" for name, seconds in found if seconds is not None]
        return "  ".join(shown) or "nothing was confirmed"


_PERCENTILES: Final = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
