"""Every event of a run against what is there afterwards: tables, waiting dead letters, exhausted rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import asyncpg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from testkit.accounting import EXHAUSTED, MISSING, STORED, WAITING, Accounting, Report
from testkit.differences import Problem
from testkit.evidence import Evidence, gather
from testkit.oracle import Published, Version, by_age, facts
from tests import strict
from tests.acceptance.company_probe import HISTORY_STREAM, REALTIME_STREAM

_SHOWN: Final = 10


@dataclass(slots=True)
class Outcome:
    """What became of the events and history items of one run; all numbers but the last ones are items.

    `gone` were still in a stream when an operator deleted it. `needless` are dead letters of events that have
    nothing wrong with them: an outage must cause none. `wrong` are rows without the newest values, `troubles`
    what the rows do not show: a worker that ended, a delivery too many. `redelivered` counts deliveries beyond
    the first, retries that are meant among them. `recovered` in seconds. `server_faults` is 1, with the `evidence`, if
    nats-server lost or withheld something, and nothing else is wrong.
    """

    published: int = 0
    stored: int = 0
    exhausted: int = 0
    waiting: int = 0
    gone: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    needless: int = 0
    troubles: int = 0
    redelivered: int = 0
    recovered: float | None = None
    problems: list[str] = field(default_factory=list)
    server_faults: int = 0
    evidence: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the promise was kept."""
        return not self.problems

    def blame(self, *problems: Problem) -> None:
        """Put down what the rows and the dead letters show, and count its kind."""
        kinds = Counter(problem.kind for problem in problems)
        self.lost += kinds["lost"]
        self.doubled += kinds["doubled"]
        self.wrong += kinds["wrong"]
        self.needless += kinds["needless"]
        self._note([problem.text for problem in problems])

    def complain(self, *problems: str) -> None:
        """Put down what the rows do not show."""
        self.troubles += len(problems)
        self._note(problems)

    def show(self, evidence: Sequence[str]) -> None:
        """Put down a fault of the server's own; what else went wrong remains."""
        self.server_faults = 1
        self.evidence = [*evidence, *self.evidence][:_SHOWN]

    def excuse(self, evidence: Sequence[str]) -> None:
        """By this evidence the server is to blame, for all that was put down so far."""
        self.show([*evidence, *self.problems])
        self.lost = self.wrong = self.troubles = 0
        self.problems.clear()

    def _note(self, problems: Sequence[str]) -> None:
        self.problems += problems[: max(0, _SHOWN - len(self.problems))]


@dataclass(frozen=True, slots=True)
class Claim:
    """What was published for a company.

    Of the events that a deleted stream still held, nobody can have the `undelivered` ones; the `doubtful` ones were
    in a worker's hands, and are stored if they needed no second delivery.
    """

    company: str
    published: Sequence[Published]
    doubtful: frozenset[Version] = frozenset()
    undelivered: frozenset[Version] = frozenset()
    letters_allowed: bool = False


async def compare(js: JetStreamContext, dsn: str, claim: Claim) -> tuple[Outcome, Evidence]:
    """The outcome as things are now."""
    database = await asyncpg.connect(dsn)
    try:
        evidence = await gather(js, database, claim.company)
    finally:
        await database.close()
    return judge(claim, evidence), evidence


def judge(claim: Claim, evidence: Evidence) -> Outcome:
    """The outcome of what was published, by this evidence."""
    there, gone = _without_the_gone(claim, evidence)
    report = _report(claim, there, evidence)
    counts: Counter[str] = sum(report.counts.values(), Counter())
    outcome = Outcome(
        published=counts["items"] + gone,
        stored=counts[STORED],
        exhausted=counts[EXHAUSTED],
        waiting=counts[WAITING],
        gone=gone,
    )
    outcome.blame(*report.problems)
    return outcome


def _report(claim: Claim, published: Sequence[Published], evidence: Evidence) -> Report:
    report = Report()
    Accounting(claim.company, published, evidence).add_to(report)
    if not claim.letters_allowed:
        report.problems += strict.problems(claim.company, published, evidence)
    return report


async def deliveries(js: JetStreamContext, company: str) -> int:
    """How often the real-time and historical consumers of a company delivered anything."""
    total = 0
    for stream, durable in ((REALTIME_STREAM, "wa_realtime_"), (HISTORY_STREAM, "wa_history_")):
        with suppress(NotFoundError):
            delivered = (await js.consumer_info(stream, durable + company)).delivered
            total += delivered.consumer_seq if delivered else 0
    return total


def _without_the_gone(claim: Claim, evidence: Evidence) -> tuple[list[Published], int]:
    """What has to be there, in the order of its versions, and how many items went with their stream.

    Whether a row holds a doubtful event is not to be seen when a newer one came after it: then it is gone if
    the row is right without it and wrong with it.
    """
    published = sorted(claim.published, key=by_age)
    gone = set(claim.undelivered)
    traces = Accounting(claim.company, published, evidence)
    for one in published:
        if one.version in claim.doubtful and all(traces.place(fact)[0] == MISSING for fact in facts([one])):
            gone.add(one.version)
    there = [one for one in published if one.version not in gone]
    doubtful = [one for one in there if one.version in claim.doubtful]
    problems = len(_report(claim, there, evidence).problems) if doubtful else 0
    for doubted in doubtful:
        if not problems:
            break
        without = [one for one in there if one is not doubted]
        fewer = len(_report(claim, without, evidence).problems)
        if fewer < problems:
            there, problems = without, fewer
            gone.add(doubted.version)
    return there, sum(len(one.publication.items) for one in published if one.version in gone)
