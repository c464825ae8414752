"""The content of `/status.json`: readiness, sources, dead letters and rates of one worker.

It has no payload and no setting.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client import Counter, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from events.delivery import SourceStatus
from streams.monitoring.collectors import Collectors
from streams.monitoring.http import reasons_of
from streams.monitoring.metrics_history import COUNTS, MetricsHistory, percentile, rates

# Seconds that an answer is kept: PostgreSQL is asked at most once in that time, however many browsers ask.
CACHE_SECONDS: Final = 1.0
_STOPPING: Final = "stopping"


@dataclass(kw_only=True, eq=False)
class WorkerStatus:
    """Builds the document, at most once in `CACHE_SECONDS`."""

    version: str
    companies: Sequence[str]
    sources: Sequence[SourceStatus]
    agents: Callable[[], Mapping[str, bool]]  # whether each runs, by name
    readiness: Callable[[], Awaitable[Mapping[str, str]]]
    collectors: Collectors
    history: MetricsHistory = field(init=False)
    _started: float = field(default_factory=time.monotonic, init=False)
    _building: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _cached: tuple[float, bytes] = field(default=(float("-inf"), b""), init=False)

    def __post_init__(self) -> None:
        self.history = MetricsHistory(self.collectors, self.companies)

    async def body(self) -> bytes:
        """The document as JSON."""
        async with self._building:
            if time.monotonic() - self._cached[0] >= CACHE_SECONDS:
                text = json.dumps(await self._document(), separators=(",", ":"))
                self._cached = time.monotonic(), text.encode()
            return self._cached[1]

    async def _document(self) -> dict[str, Any]:
        reasons = await reasons_of(self.readiness)
        now = time.monotonic()
        return {
            "version": self.version,
            "time": round(time.time(), 3),
            "uptime": round(now - self._started, 1),
            "state": _state(reasons),
            "reasons": dict(reasons),
            "connections": {
                "nats": {"problem": reasons.get("nats"), "reconnects": _total(self.collectors.reconnects)},
                "postgres": {"problem": reasons.get("postgres")},
            },
            "agents": [{"name": name, "running": runs} for name, runs in self.agents().items()],
            "sources": self._source_rows(reasons, now),
            "dead_letters": self._dead_letter_rows(),
            "events": self._event_rates(),
            "history": self._history_columns(now),
        }

    def _source_rows(self, reasons: Mapping[str, str], now: float) -> list[dict[str, Any]]:
        pending = _values(self.collectors.pending)
        unacknowledged = _values(self.collectors.unacknowledged)
        rows = []
        for source in self.sources:
            labels = (source.company, source.consumer_type)
            received = self.history.source_rates(*labels)
            rows.append(
                {
                    "company": source.company,
                    "consumer": source.consumer_type,
                    "pending": pending.get(labels),
                    "unacknowledged": unacknowledged.get(labels),
                    "held": source.in_flight,
                    "batches": received and round(received.batches, 3),
                    "messages": received and round(received.messages, 3),
                    "fetched": round(now - source.last_fetch, 1) if source.alive else None,
                    "problem": reasons.get(source.name),
                }
            )
        return rows

    def _dead_letter_rows(self) -> list[dict[str, Any]]:
        waiting, ages = _values(self.collectors.dlq_messages), _values(self.collectors.dlq_age)
        exhausted = _values(self.collectors.exhausted)
        return [
            {
                "company": company,
                "waiting": waiting.get((company,)),
                "oldest": ages.get((company,)),
                "exhausted": exhausted.get((company,)),
            }
            for company in self.companies
        ]

    def _event_rates(self) -> dict[str, Any]:
        """Totals since the start; rates and processing times of the last minute."""
        latest, window = self.history.latest, self.history.window()
        current = rates(*window) if window else {}
        found: dict[str, Any] = {
            name: {"total": latest and latest.counts[at], "rate": _rounded(current.get(name))}
            for at, name in enumerate(COUNTS)
        }
        found["p50"] = _rounded(window and percentile(0.5, *window))
        found["p95"] = _rounded(window and percentile(0.95, *window))
        return found

    def _history_columns(self, now: float) -> dict[str, list[float | None]]:
        """Columns of equal length, oldest first; `ago` in seconds."""
        columns: dict[str, list[float | None]] = {name: [] for name in ("ago", *COUNTS, "p50", "p95")}
        for older, newer in self.history.intervals():
            columns["ago"].append(round(now - newer.at, 1))
            for name, rate in rates(older, newer).items():
                columns[name].append(_rounded(rate))
            columns["p50"].append(_rounded(percentile(0.5, older, newer)))
            columns["p95"].append(_rounded(percentile(0.95, older, newer)))
        return columns


def _state(reasons: Mapping[str, str]) -> str:
    if not reasons:
        return "ready"
    if "worker" in reasons:
        return "stopping" if reasons["worker"] == _STOPPING else "starting"
    return "not_ready"


def _values(gauge: Gauge) -> dict[tuple[str, ...], float]:
    """The value of each series by its label values; a series that is not known is absent."""
    return {tuple(sample.labels.values()): sample.value for sample in _samples(gauge.collect())}


def _total(counter: Counter) -> float:
    return float(sum(sample.value for sample in _samples(counter.collect())))


def _samples(metrics: Iterable[Metric]) -> Iterator[Sample]:
    return (sample for metric in metrics for sample in metric.samples)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
