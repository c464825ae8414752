"""What `topology` shows of a fleet before anything is changed, and which old durables it drops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from streams.config.settings import Settings
from streams.jetstream import company_durables
from streams.jetstream.changes import TopologyChange
from streams.jetstream.company_durables import Durable, Owner, Survey
from streams.lifecycle.fleet import FleetRules

# Companies that a line names.
_NAMED: Final = 20
_OTHERS: Final[Sequence[Owner]] = ("company", "existing")


def description(found: Survey, settings: Settings) -> list[str]:
    """The shared consumers, and the companies that the fleet leaves out or has to share, a line each."""
    rules = FleetRules.of(settings)
    lines = []
    for spec in found.specs:
        shared = found.shared(spec.consumer_type)
        # One that is missing is among the changes, with the position that it takes over.
        lines.append(f"consumer {spec.durable}: {_state(shared)}")
    left_out = [company for company in found.companies if not rules.allows(company)]
    if left_out:
        lines.append(f"left out by COMPANY_ALLOW and COMPANY_EXCLUDE, or by their names: {_names(left_out)}")
    alone = [
        company
        for company in left_out
        if not any(each.used for owner in _OTHERS for each in found.of(company, owner))
    ]
    if alone:
        lines.append(f"of these nobody handles the events: {_names(alone)}")
    doubly = [
        each.company
        for each in found.durables
        if each.company is not None and each.used is not None and rules.allows(each.company)
    ]
    if doubly:
        lines.append(f"served by the fleet, and still by others: {_names(set(doubly))}")
    return lines


def plan_drop(found: Survey, settings: Settings) -> tuple[list[TopologyChange], list[str]]:
    """See `company_durables.plan_drop`: of all companies that the fleet serves."""
    rules = FleetRules.of(settings)
    return company_durables.plan_drop(found, filter(rules.allows, found.companies))


def _state(shared: Durable | None) -> str:
    if shared is None:
        return "not there yet"
    who = "a worker pulls from it" if shared.used else "nobody pulls from it"
    return f"all before sequence {shared.position} is settled, {shared.left} events left, {who}"


def _names(companies: Iterable[str]) -> str:
    names = sorted(companies)
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
