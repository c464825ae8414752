"""The content of `/status.json`: readiness, companies, sources, dead letters and rates of one worker.

It has no payload and no setting.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from events.delivery import SourceStatus
from events.subjects import ALL_COMPANIES
from streams.monitoring.company_rows import CompanyRow, event_rows, known, of_company, ordered, total
from streams.monitoring.http import reasons_of
from streams.monitoring.metrics import Metrics
from streams.monitoring.metrics_history import COUNTS, MetricsHistory, percentile, rates

# Seconds that an answer is kept: PostgreSQL is asked at most once in that time, however many browsers ask.
CACHE_SECONDS: Final = 1.0
# Different answers that are kept so long.
_ANSWERS: Final = 50
# Companies that are listed if no other number is asked for, and at most.
LISTED: Final = 50
MOST_LISTED: Final = 500
# Reasons that are listed.
_REASONS: Final = 50
# Seconds without a fetch, and with deliveries in hand, after which a source waits for its batch to be stored.
_SILENCE: Final = 5.0
_STOPPING: Final = "stopping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which companies the document is to list: one, or those whose name contains `search`, at most `limit`."""

    company: str | None = None
    search: str = ""
    limit: int = LISTED

    def chosen(self, rows: Sequence[CompanyRow]) -> list[CompanyRow]:
        """The rows it asks for, without a limit."""
        if self.company is not None:
            return [row for row in rows if row.company == self.company]
        wanted = self.search.casefold()
        return [row for row in rows if wanted in row.company.casefold()]


EVERYTHING: Final = Question()


@dataclass(kw_only=True, eq=False)
class WorkerStatus:
    """Builds the document, at most once in `CACHE_SECONDS` for each question."""

    version: str
    metrics: Metrics
    sources: Sequence[SourceStatus]  # may grow
    agents: Callable[[], Mapping[str, bool]]  # whether each runs, by name
    readiness: Callable[[], Awaitable[Mapping[str, str]]]
    # Deliveries in flight by company, of consumers that serve several.
    in_hand: Callable[[], Mapping[str, int]] = dict
    # What waits of single companies, named as in `readiness`, where that does not make the worker not ready.
    troubles: Callable[[], Mapping[str, str]] = dict
    history: MetricsHistory = field(init=False)
    _started: float = field(default_factory=time.monotonic, init=False)
    _building: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _asked: float = field(default=float("-inf"), init=False)
    _reasons: Mapping[str, str] = field(default_factory=dict, init=False)
    _problems: Mapping[str, str] = field(default_factory=dict, init=False)
    _rows: list[CompanyRow] = field(default_factory=list, init=False)
    _answers: dict[Question, bytes] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.history = MetricsHistory(self.metrics)

    async def body(self, question: Question = EVERYTHING) -> bytes:
        """The document as JSON."""
        async with self._building:
            if time.monotonic() - self._asked >= CACHE_SECONDS:
                await self._ask()
            answer = self._answers.get(question)
            if answer is None:
                answer = json.dumps(self._document(question), separators=(",", ":")).encode()
                if len(self._answers) < _ANSWERS:
                    self._answers[question] = answer
            return answer

    async def _ask(self) -> None:
        """What all answers of a moment share."""
        self._reasons = await reasons_of(self.readiness)
        self._problems = {**self._reasons, **self.troubles()}
        self._rows = await ordered(
            self.metrics.companies, self.metrics.collectors, self.sources, self.in_hand(), self._problems
        )
        self._answers.clear()
        self._asked = time.monotonic()

    def _document(self, question: Question) -> dict[str, Any]:
        reasons, now = self._reasons, time.monotonic()
        chosen = question.chosen(self._rows)
        listed = chosen[: question.limit]
        document = {
            "version": self.version,
            "time": round(time.time(), 3),
            "uptime": round(now - self._started, 1),
            "state": _state(reasons),
            "reasons": dict(islice(reasons.items(), _REASONS)),
            "more_reasons": max(0, len(reasons) - _REASONS),
            "connections": {
                "nats": {
                    "problem": reasons.get("nats"),
                    "reconnects": self.metrics.collectors.reconnects.value,
                },
                "postgres": {"problem": reasons.get("postgres")},
            },
            "agents": [{"name": name, "running": runs} for name, runs in self.agents().items()],
            "totals": self._totals(now),
            "found": len(chosen),
            "companies": [self._company_row(row) for row in listed],
            "sources": self._source_rows(listed, now),
            "dead_letters": [_dead_letter_row(row) for row in listed],
            "events": self._event_rates(),
            "history": self._history_columns(now),
        }
        if question.company is not None:
            document["company"] = self._company(question.company)
        return document

    def _company(self, company: str) -> dict[str, Any]:
        """One company in full."""
        return {
            "company": company,
            "served": any(row.company == company for row in self._rows),
            "reasons": of_company(self._problems, company),
            "events": event_rows(self.metrics.collectors, company),
        }

    def _totals(self, now: float) -> dict[str, Any]:
        """Over all companies and sources, listed or not; sums are of what is known."""
        states = [self._state_of(source, now) for source in self.sources]
        gauges = self.metrics.collectors
        waiting = [child.value for child in gauges.dlq_messages.children.values()]
        ages = [child.value for child in gauges.dlq_age.children.values()]
        return {
            "companies": len(self._rows),
            "troubled": sum(row.problem is not None for row in self._rows),
            "sources": len(states),
            "pulling": states.count("pulling"),
            "refused": sum(source.name in self._reasons for source in self.sources),
            "pending": total(child.value for child in gauges.pending.children.values()),
            "waiting": total(waiting),
            "oldest": max(ages, default=None),
            "exhausted": total(row.exhausted for row in self._rows),
        }

    def _state_of(self, source: SourceStatus, now: float) -> str:
        """A source's problem; without one, what it does: it fetches no batch while one waits to be stored."""
        if problem := self._reasons.get(source.name):
            return problem
        if not source.alive:
            return "not started"
        waits = source.in_flight and now - source.last_fetch > _SILENCE
        return "waiting to store" if waits else "pulling"

    def _company_row(self, row: CompanyRow) -> dict[str, Any]:
        current = self.history.company_rates(row.company) or dict.fromkeys(COUNTS)
        return {
            "company": row.company,
            "problem": row.problem,
            "lag": row.lag,
            "held": row.held,
            "waiting": row.waiting,
            "exhausted": row.exhausted,
            **{name: _rounded(rate) for name, rate in current.items()},
        }

    def _source_rows(self, listed: Sequence[CompanyRow], now: float) -> list[dict[str, Any]]:
        """The sources of these companies, and those that serve every company."""
        shown = {ALL_COMPANIES, *(row.company for row in listed)}
        rows = []
        for source in self.sources:
            labels = (source.company, source.consumer_type)
            if source.company not in shown:
                continue
            received = self.history.source_rates(*labels)
            rows.append(
                {
                    "company": source.company,
                    "consumer": source.consumer_type,
                    "state": self._state_of(source, now),
                    "pending": known(self.metrics.collectors.pending, *labels),
                    "unacknowledged": known(self.metrics.collectors.unacknowledged, *labels),
                    "held": source.in_flight,
                    "batches": received and round(received.batches, 3),
                    "messages": received and round(received.messages, 3),
                    "fetched": round(now - source.last_fetch, 1) if source.alive else None,
                    "problem": self._reasons.get(source.name),
                }
            )
        return rows

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


def _dead_letter_row(row: CompanyRow) -> dict[str, Any]:
    return {
        "company": row.company,
        "waiting": row.waiting,
        "oldest": row.oldest,
        "exhausted": row.exhausted,
    }


def _state(reasons: Mapping[str, str]) -> str:
    if not reasons:
        return "ready"
    if "worker" in reasons:
        return "stopping" if reasons["worker"] == _STOPPING else "starting"
    return "not_ready"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
