"""The account where no event that can be stored may be given up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from testkit.accounting import EXHAUSTED, WAITING, Accounting
from testkit.differences import Problem
from testkit.evidence import Evidence
from testkit.oracle import Expected, Published, expected, facts


def problems(
    company: str, published: Sequence[Published], evidence: Evidence, *, before: Expected | None = None
) -> Iterator[Problem]:
    """The events of a company that became dead letters though nothing is wrong with them."""
    accounting = Accounting(company, published, evidence, before=before)
    orphans = {fact.version for fact in expected(facts(published), before).orphans}
    needless = {
        fact.event.name
        for fact in facts(published)
        if not fact.item.refused and fact.version not in orphans
        if accounting.place(fact)[0] in (WAITING, EXHAUSTED)
        or any(given_up.has(fact, whole=False) for given_up in (accounting.letters, accounting.exhausted))
    }
    for name in needless:
        yield Problem("needless", f"{name}: nothing is wrong with it, but it became a dead letter")
