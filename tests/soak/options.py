"""How long the soak test takes, and what it allows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.soak.verdict import Allowance

STEPS: Final = 6


@dataclass(frozen=True, slots=True)
class Options:
    """`events` in all before the outage, which takes `outage` seconds at `rate` events a second."""

    events: int
    outage: float
    rate: float
    seed: int
    allowed: Allowance

    @property
    def step(self) -> int:
        """Events of a step."""
        return self.events // STEPS


def options(arguments: Sequence[str]) -> Options:
    """Read the command line; ends the process with a message if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description="Watches a worker's memory over many events and through an outage of PostgreSQL.",
    )
    parser.add_argument(
        "--events",
        type=_at_least(STEPS, int),
        default=300_000,
        help="real-time events, in six steps (300000)",
    )
    parser.add_argument("--outage", type=_at_least(1.0, float), default=60.0, help="seconds (60)")
    parser.add_argument(
        "--rate", type=_at_least(1.0, float), default=300.0, help="events a second in the outage (300)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the traffic (1)")
    # What the allocator keeps differs by some 3 MB from step to step, which makes 1 or 2 of the line. A leak of 25
    # bytes an event would show.
    parser.add_argument(
        "--growth",
        type=float,
        default=5.0,
        help="MB that memory may rise after the first third of the events (5)",
    )
    # What a worker may hold while it cannot store: two batches of each source and what waits for onboarding, some
    # 4,000 messages of 2 to 3 KB. A worker that had a backlog before has that memory already; the backlog of the
    # outage itself stays in JetStream, and would be some 40 MB.
    parser.add_argument(
        "--more", type=float, default=10.0, help="MB more than before that an outage may take (10)"
    )
    given = parser.parse_args(arguments)
    return Options(given.events, given.outage, given.rate, given.seed, Allowance(given.growth, given.more))


def _at_least(least: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least:g}")
        return value

    return number
