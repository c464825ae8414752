"""The parts of a simulated cell: sources, batches, workers, the database; and its state at a moment."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

# Whose waits are told apart: those that something strikes, the others, and what is nobody's wait (an import).
Kind = Literal["struck", "others", "aside"]
# From this mean on a Poisson number is drawn as a normal one.
_LARGE: Final = 30.0


def poisson(rng: random.Random, mean: float) -> int:
    """How many of independent events happen, if `mean` do on average."""
    if mean > _LARGE:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    count, product, floor = 0, rng.random(), math.exp(-mean)
    while product > floor:
        count += 1
        product *= rng.random()
    return count


@dataclass(slots=True)
class Stretch:
    """Events of a source that came evenly between two moments."""

    since: float
    until: float
    count: int


@dataclass(slots=True, eq=False)
class Source:
    """The waiting events of one consumer. `worker` and `postgres`: microseconds an event, `wal`: bytes, `most`:
    events of a batch."""

    group: int
    usual: float
    worker: float
    postgres: float
    wal: float
    most: int
    rate: float = 0.0
    kind: Kind = "others"
    asleep: bool = False  # nothing waits, and the next arrival is on the agenda
    version: int = 0
    drawn: float = 0.0  # until when arrivals are known
    queued: int = 0
    stretches: deque[Stretch] = field(default_factory=deque)

    def put(self, stretch: Stretch) -> None:
        """Add what came."""
        self.stretches.append(stretch)
        self.queued += stretch.count

    def give_back(self, stretches: list[Stretch]) -> None:
        """Put what was taken to the front again: it is older."""
        self.stretches.extendleft(reversed(stretches))
        self.queued += sum(stretch.count for stretch in stretches)

    def take(self) -> list[Stretch]:
        """The oldest, at most one batch."""
        left, taken = min(self.most, self.queued), []
        self.queued -= left
        while left:
            first = self.stretches[0]
            if first.count <= left:
                taken.append(self.stretches.popleft())
                left -= first.count
                continue
            cut = first.since + (first.until - first.since) * left / first.count
            taken.append(Stretch(first.since, cut, left))
            self.stretches[0] = Stretch(cut, first.until, first.count - left)
            left = 0
        return taken


@dataclass(slots=True, eq=False)
class Batch:
    """What a worker took from a source; `lost`: its worker died."""

    source: Source
    worker: Worker
    stretches: list[Stretch]
    count: int
    lost: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """A replica: one core, and some connections. `pace`: how much longer all takes because its idle sources and
    chores want the core too. `asked`: batches of a source in its hands or asked for."""

    group: int
    pace: float = 1.0
    alive: bool = True
    working: bool = False
    busy: float = 0.0
    transactions: int = 0
    ready: deque[Source] = field(default_factory=deque)
    asked: Counter[Source] = field(default_factory=Counter)
    storing: set[Source] = field(default_factory=set)
    prepared: dict[Source, Batch] = field(default_factory=dict)
    without_connection: deque[Batch] = field(default_factory=deque)
    holds: dict[Batch, None] = field(default_factory=dict)

    def die(self) -> list[Batch]:
        """Everything in its hands is lost; returns it."""
        held = list(self.holds)
        for batch in held:
            batch.lost = True
        for part in (
            self.ready,
            self.asked,
            self.storing,
            self.prepared,
            self.without_connection,
            self.holds,
        ):
            part.clear()
        self.alive = self.working = False
        self.transactions = 0
        return held


@dataclass(slots=True)
class Database:
    """A primary with some cores; each works on one batch at a time. `pace` as of a worker; `log_free`: when its
    WAL is written up to now."""

    cores: int
    pace: float = 1.0
    log_free: float = 0.0
    up: bool = True
    working: dict[Batch, None] = field(default_factory=dict)
    waiting: deque[Batch] = field(default_factory=deque)
    busy: float = 0.0


class Sample(NamedTuple):
    """The state at a moment: events that wait or are in work, and busy seconds so far."""

    at: float
    backlog: int
    workers: float
    database: float


def utilisation(samples: Sequence[Sample], workers: int, cores: int) -> tuple[float, float]:
    """Busy share of all workers and of the database between the first and the last sample."""
    first, last = samples[0], samples[-1]
    seconds = last.at - first.at
    return (last.workers - first.workers) / (seconds * workers), (last.database - first.database) / (
        seconds * cores
    )


def slower_beside(idle: float) -> float:
    """How much longer work takes beside what goes on anyway. Raises `ValueError` if that leaves nothing."""
    if idle >= 1:
        raise ValueError(
            "idle sources and chores alone are too much: fewer companies a worker, more databases"
        )
    return 1 / (1 - idle)
