"""One row of figures for each company, those with trouble first, then those that lag most: for the status page."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from events.delivery import SourceStatus
from events.subjects import ALL_COMPANIES, EVENT_TYPES
from streams.monitoring.collectors import Collectors
from streams.monitoring.company_series import event_labels
from streams.monitoring.series import Numbers

# Consumers whose messages are the lag; those of the third one are dead letters.
_EVENTS: Final = ("realtime", "historical")
# Companies that are looked at between two turns of the event loop: 0.3 ms.
_AT_A_TIME: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class CompanyRow:
    """What is known of a company; None: not known.

    `lag` are its events that are not settled: of its own consumers in all replicas, or in hand of this worker where one
    consumer serves every company.
    """

    company: str
    problem: str | None
    lag: float | None
    held: int
    waiting: float | None
    oldest: float | None
    exhausted: float | None

    @property
    def place(self) -> tuple[bool, float, float, str]:
        """Sorts trouble first, then by lag, then by dead letters."""
        letters = (self.waiting or 0) + (self.exhausted or 0)
        return self.problem is None, -(self.lag or 0), -letters, self.company


async def ordered(
    companies: Sequence[str],
    collectors: Collectors,
    sources: Sequence[SourceStatus],
    in_hand: Mapping[str, int],
    reasons: Mapping[str, str],
) -> list[CompanyRow]:
    """The rows of these companies and those of the sources; `in_hand` are deliveries of shared consumers by company."""
    held = Counter(in_hand)
    for source in sources:
        held[source.company] += source.in_flight
    problems = _problems(reasons)
    names = dict.fromkeys((*companies, *(source.company for source in sources)))
    names.pop(ALL_COMPANIES, None)
    shared = any(source.company == ALL_COMPANIES for source in sources)
    rows = []
    for number, company in enumerate(names, 1):
        lag = _lag(collectors, company)
        rows.append(
            CompanyRow(
                company=company,
                problem=problems.get(company),
                lag=held[company] if lag is None and shared else lag,
                held=held[company],
                waiting=known(collectors.dlq_messages, company),
                oldest=known(collectors.dlq_age, company),
                exhausted=known(collectors.exhausted, company),
            )
        )
        if number % _AT_A_TIME == 0:
            await asyncio.sleep(0)
    return sorted(rows, key=lambda row: row.place)


def known(gauge: Numbers, *labels: str) -> float | None:
    """The value of a series; None while it is not there."""
    child = gauge.children.get(labels)
    return None if child is None else child.value


def total(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None if nothing is."""
    found = [value for value in values if value is not None]
    return sum(found) if found else None


def of_company(reasons: Mapping[str, str], company: str) -> dict[str, str]:
    """The reasons that name this company: the parts of `/ready` are called `realtime KopiNusa`."""
    return {name: reason for name, reason in reasons.items() if name.partition(" ")[2] == company}


def event_rows(collectors: Collectors, company: str) -> list[dict[str, Any]]:
    """Deliveries of a company since the start, by event type; those that it had."""
    rows = []
    for event_type in EVENT_TYPES:
        labels = event_labels(company, event_type)
        if known(collectors.events_received, *labels):
            rows.append(
                {
                    "type": event_type,
                    "received": known(collectors.events_received, *labels),
                    "processed": known(collectors.events_processed, *labels),
                    "failed": known(collectors.events_failed, *labels),
                }
            )
    return rows


def _lag(collectors: Collectors, company: str) -> float | None:
    return total(
        known(gauge, company, consumer)
        for gauge in (collectors.pending, collectors.unacknowledged)
        for consumer in _EVENTS
    )


def _problems(reasons: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        part, _, company = name.partition(" ")
        if company:
            found.setdefault(company, []).append(f"{part}: {reason}")
    return {company: "; ".join(each) for company, each in found.items()}
