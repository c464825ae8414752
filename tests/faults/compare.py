"""Every event of a run against what is there afterwards: tables, waiting dead letters, exhausted rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import asyncpg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from events.subjects import HISTORICAL, REALTIME
from testkit.accounting import EXHAUSTED, MISSING, STORED, WAITING, Accounting, Report
from testkit.final_places import Evidence, gather
from testkit.oracle import Published, Version, in_order

# Words of `testkit.accounting`; what has none of them is a wrong value.
_LOST: Final = ("has neither a row", "not in the stream")
_DOUBLED: Final = ("as well", "instead of one", "carried by")
_SHOWN: Final = 10

PutRight = Callable[[Evidence, Sequence[Published]], None]


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

    def blame(self, *problems: str) -> None:
        """Put down what the rows show, and count its kind."""
        for problem in problems:
            if any(words in problem for words in _LOST):
                self.lost += 1
            elif any(words in problem for words in _DOUBLED):
                self.doubled += 1
            else:
                self.wrong += 1
        self._note(problems)

    def complain(self, *problems: str) -> None:
        """Put down what the rows do not show."""
        self.troubles += len(problems)
        self._note(problems)

    def needs_no_letter(self, *problems: str) -> None:
        """Put down dead letters of sound events."""
        self.needless += len(problems)
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

    def record(self) -> dict[str, Any]:
        """For a line of the results."""
        return asdict(self)


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


async def compare(
    js: JetStreamContext, dsn: str, claim: Claim, put_right: PutRight | None = None
) -> tuple[Outcome, Evidence]:
    """The outcome as things are now. `put_right`: what to do to the evidence before it is judged."""
    database = await asyncpg.connect(dsn)
    try:
        evidence = await gather(js, database, claim.company)
    finally:
        await database.close()
    if put_right is not None:
        put_right(evidence, claim.published)
    return judge(claim, evidence), evidence


def judge(claim: Claim, evidence: Evidence) -> Outcome:
    """The outcome of what was published, by this evidence."""
    there, gone = _without_the_gone(claim, evidence)
    report = Report()
    Accounting(claim.company, there, evidence).add_to(report)
    counts: Counter[str] = sum(report.counts.values(), Counter())
    outcome = Outcome(
        published=counts["items"] + gone,
        stored=counts[STORED],
        exhausted=counts[EXHAUSTED],
        waiting=counts[WAITING],
        gone=gone,
    )
    outcome.blame(*report.problems, *_repeated(evidence))
    if not claim.letters_allowed:
        outcome.needs_no_letter(*_needless(there, evidence))
    return outcome


async def deliveries(js: JetStreamContext, company: str) -> int:
    """How often the real-time and historical consumers of a company delivered anything."""
    return sum(
        [
            info.delivered.consumer_seq
            if (info := await _consumer(js, company, role)) and info.delivered
            else 0
            for role in ("realtime", "history")
        ]
    )


async def _consumer(js: JetStreamContext, company: str, role: str) -> Any:
    base = {"realtime": REALTIME[0], "history": HISTORICAL[0]}[role]
    try:
        stream = await js.find_stream_name_by_subject(f"{base}.{company}")
        return await js.consumer_info(stream, f"wa_{role}_{company}")
    except NotFoundError:
        return None


def _without_the_gone(claim: Claim, evidence: Evidence) -> tuple[list[Published], int]:
    """What has to be there, in the order of its versions, and how many items went with their stream.

    Whether a row holds a doubtful event is not to be seen when a newer one came after it: then it is gone if
    the row is right without it and wrong with it.
    """
    published = sorted(claim.published, key=in_order)
    gone = set(claim.undelivered)
    for one in published:
        if one.version in claim.doubtful and _missing(claim.company, one, evidence):
            gone.add(one.version)
    there = [one for one in published if one.version not in gone]
    problems = _problems(claim.company, there, evidence)
    for doubted in [one for one in there if one.version in claim.doubtful]:
        if not problems:
            break
        without = [one for one in there if one is not doubted]
        fewer = _problems(claim.company, without, evidence)
        if fewer < problems:
            there, problems = without, fewer
            gone.add(doubted.version)
    return there, sum(len(one.publication.items) for one in published if one.version in gone)


def _problems(company: str, published: Sequence[Published], evidence: Evidence) -> int:
    report = Report()
    Accounting(company, published, evidence).add_to(report)
    return len(report.problems)


def _missing(company: str, published: Published, evidence: Evidence) -> bool:
    """Whether there is no trace of an event."""
    report = Report()
    Accounting(company, [published], evidence).add_to(report)
    return sum(counts[MISSING] for counts in report.counts.values()) == len(published.publication.items)


def _repeated(evidence: Evidence) -> Iterator[str]:
    """One event may have one dead letter and one exhausted row, however often it came."""
    for kind, given in (("dead letters", evidence.letters), ("exhausted rows", evidence.exhausted)):
        for version, count in Counter(one.version for one in given).items():
            if count > 1:
                yield f"sequence {version.sequence}: carried by {count} {kind}"


def _needless(published: Sequence[Published], evidence: Evidence) -> Iterator[str]:
    sound = {
        one.version: one.name for one in published if not any(item.refused for item in one.publication.items)
    }
    for version in {one.version for one in (*evidence.letters, *evidence.exhausted)}:
        if version in sound:
            yield f"{sound[version]}: nothing is wrong with it, but it became a dead letter"
