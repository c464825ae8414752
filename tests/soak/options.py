"""How long the soak test takes, and what it allows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.bench.options import positive
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


# Default, kind and meaning of every number.
_NUMBERS: Final[dict[str, tuple[float, Callable[[str], Any], str]]] = {
    "events": (300_000, positive(int, STEPS), "real-time events, in six steps"),
    "outage": (60.0, positive(float, 1), "seconds without PostgreSQL"),
    "rate": (300.0, positive(float, 1), "events a second in the outage"),
    "seed": (1, int, "of the traffic"),
    # What the allocator keeps differs by some 3 MB from step to step, which makes 1 or 2 of the line. A leak of 25
    # bytes an event would show.
    "growth": (5.0, float, "MB that memory may rise after the first third of the events"),
    # What a worker may hold while it cannot store: two batches of each source and what waits for onboarding, some
    # 4,000 messages of 2 to 3 KB. A worker that had a backlog before has that memory already; the backlog of the
    # outage itself stays in JetStream, and would be some 40 MB.
    "more": (10.0, float, "MB more than before that an outage may take"),
}


def options(arguments: Sequence[str]) -> Options:
    """Read the command line; ends the process with a message if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description="Watches a worker's memory over many events and through an outage of PostgreSQL.",
    )
    for name, (default, kind, meaning) in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{meaning} ({default:g})")
    given = parser.parse_args(arguments)
    return Options(given.events, given.outage, given.rate, given.seed, Allowance(given.growth, given.more))
