"""What becomes of the events of a load run: counts, their page of metrics, latencies, progress and the summary."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, product
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, disable_created_metrics, start_http_server

from demo.live_line import LiveLine
from demo.load_options import Options
from events.subjects import EVENT_TYPES
from testkit.publisher import Confirmed, PublishError
from testkit.traffic import COMPANY_HEADER, Publication

# With the numbers it fits into 80 columns.
_BAR: Final = 16
_PERCENTILES: Final = (50, 95, 99)


class Tally:
    """The counts by event type and company, all there from the start."""

    def __init__(self, companies: Sequence[str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no annotation there
        self.registry = CollectorRegistry()
        self._labels = list(product(EVENT_TYPES, companies))
        # Attempts last: the events go on while a page is read, and none may have more answers than attempts.
        self.confirmed = self._counter("messages_published", "Events that JetStream confirmed.")
        self.errors = self._counter("publish_errors", "Events that JetStream did not confirm.")
        self.attempted = self._counter("messages_attempted", "Events that were sent to JetStream.")

    def _counter(self, name: str, meaning: str) -> prometheus_client.Counter:
        labels = ("subject", "company_id")
        counter = prometheus_client.Counter(f"loadgen_{name}", meaning, labels, registry=self.registry)
        for values in self._labels:
            counter.labels(*values)
        return counter

    def counts(self, event_type: str = "") -> list[int]:
        """Attempted, confirmed and errors: the sums over the companies, of an event type or of all."""
        return [_sum(counter, event_type) for counter in (self.attempted, self.confirmed, self.errors)]


def _sum(counter: prometheus_client.Counter, event_type: str) -> int:
    samples = (sample for metric in counter.collect() for sample in metric.samples)
    return int(sum(each.value for each in samples if event_type in ("", each.labels["subject"])))


@contextmanager
def page(tally: Tally, port: int) -> Iterator[int]:
    """Serve the counts on a port (0: any free one), which is handed out. Raises `PublishError`."""
    try:
        server, thread = start_http_server(port, registry=tally.registry)
    except OSError as error:
        raise PublishError(f"--metrics-port {port}: cannot be used: {error.strerror}") from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Latencies:
    """Latencies in classes that grow by 2 %: the memory is the same however long it runs."""

    _SHORTEST: Final = 1e-5
    _GROWTH: Final = 1.02

    def __init__(self) -> None:
        self._classes: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """One more."""
        self._classes[math.ceil(math.log(max(seconds / self._SHORTEST, 1.0), self._GROWTH))] += 1

    def quantile(self, share: float) -> float | None:
        """The latency, in seconds, that this share of all does not exceed; None if there are none."""
        places = sorted(self._classes)
        seen = list(accumulate(self._classes[place] for place in places))
        wanted = bisect_left(seen, math.ceil(self._classes.total() * share))
        return self._SHORTEST * self._GROWTH ** places[wanted] if places else None


class LoadReport:
    """What became of the events of a run so far. Times are seconds, and moments those of `time.monotonic`."""

    def __init__(self, options: Options) -> None:
        self.tally = Tally(options.companies)
        self.latencies = Latencies()
        self.reasons: Counter[str] = Counter()
        self.started = 0.0
        self.ended = 0.0
        self.behind = 0.0
        self.largest_lag = 0.0
        self.stopped = False
        self._options = options

    def sent(self, publication: Publication) -> None:
        """An event is on its way."""
        self.tally.attempted.labels(*_labels(publication)).inc()

    def confirmed(self, event: Confirmed) -> None:
        """JetStream has it."""
        self.tally.confirmed.labels(*_labels(event.publication)).inc()
        self.latencies.add(event.seconds)
        self.ended = time.monotonic()

    def failed(self, publication: Publication, reason: str) -> None:
        """JetStream did not confirm it."""
        self.tally.errors.labels(*_labels(publication)).inc()
        self.reasons[reason] += 1

    def late(self, seconds: float) -> None:
        """So much behind its schedule is the run now."""
        self.behind = max(0.0, seconds)
        self.largest_lag = max(self.largest_lag, self.behind)

    @property
    def share(self) -> float | None:
        """How much of the whole is done; None if it has no end."""
        if self._options.planned is not None:
            return self.tally.counts()[0] / self._options.planned
        if self._options.duration is not None:
            return (time.monotonic() - self.started) / self._options.duration
        return None

    @property
    def ok(self) -> bool:
        """Whether every attempt was confirmed."""
        attempted, confirmed, _ = self.tally.counts()
        return confirmed == attempted

    def text(self) -> str:
        """The summary."""
        (attempted, confirmed, errors), planned = self.tally.counts(), self._options.planned
        part = "" if planned in (None, attempted) else f" of {planned} planned"
        lines = [
            *self._table(),
            "",
            f"attempted   {attempted}{part}{', stopped by a signal' if self.stopped else ''}",
            f"confirmed   {confirmed}",
            f"errors      {errors}",
            *(f"            {count} x {reason}" for reason, count in sorted(self.reasons.items())),
            f"rate        {self._rate(attempted, confirmed)}",
            f"latency     {self._percentiles()}",
        ]
        return "\n".join(lines)

    def _table(self) -> Iterator[str]:
        yield f"{'event type':<22}{'attempted':>11}{'confirmed':>11}{'errors':>9}"
        for name in EVENT_TYPES:
            attempted, confirmed, errors = self.tally.counts(name)
            if attempted:
                yield f"{name:<22}{attempted:>11}{confirmed:>11}{errors:>9}"

    def _rate(self, attempted: int, confirmed: int) -> str:
        """To the last confirmation, or to the end of the last event's turn if that is later."""
        rate = self._options.rate
        elapsed = max(self.ended - self.started, attempted / rate if rate else 0.0, 0.0)
        achieved = f"{confirmed / elapsed if elapsed else 0:.1f} events/s in {elapsed:.1f} s"
        if not rate:
            return f"{achieved}, as fast as confirmed"
        return f"{achieved}, {rate:g} asked for, at most {self.largest_lag:.3f} s behind schedule"

    def _percentiles(self) -> str:
        found = [(percent, self.latencies.quantile(percent / 100)) for percent in _PERCENTILES]
        shown = [f"p{percent} {seconds * 1000:.1f} ms" for percent, seconds in found if seconds is not None]
        return "  ".join(shown) or "nothing was confirmed"


def _labels(publication: Publication) -> tuple[str, str]:
    return publication.event_type, publication.headers[COMPANY_HEADER]


class Progress(LiveLine):
    """How far a run is, with the rate since the call before; on a terminal with a bar."""

    def update(self, report: LoadReport) -> None:
        """Show it."""
        elapsed, (_, confirmed, errors) = time.monotonic() - report.started, report.tally.counts()
        [rate] = self.rates(confirmed)
        self.show(
            f"{self._how_far(report.share, elapsed)}  confirmed {confirmed} ({rate:.0f}/s)  errors {errors}"
            f"  behind {report.behind:.1f} s"
        )

    def _how_far(self, share: float | None, elapsed: float) -> str:
        if share is None:
            return f"{elapsed:.0f} s"
        share = min(share, 1.0)
        if not self.live:
            return f"{share:4.0%}"
        full = int(share * _BAR)
        return f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%}"
