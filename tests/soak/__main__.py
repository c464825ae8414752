"""`python -m tests.soak`: does a worker's memory grow with its events, or through an outage? 0 if it does not."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from testkit.worker import WorkerError
from tests.bench.environment import BenchError
from tests.bench.options import positive
from tests.soak.driver import STEPS, Options, run

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


def main(arguments: Sequence[str]) -> int:
    """Run it as the command line says, and print what was measured and the verdict."""
    options = _options(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        try:
            problems = asyncio.run(run(options, Path(folder), _say))
        except (AssertionError, BenchError, WorkerError) as error:
            problems = [f"not measured to the end: {error}"]
        except KeyboardInterrupt:
            return 130
    for problem in problems:
        _say(f"FAILED: {problem}")
    held = "not held" if problems else "held: nothing lost, nothing doubled, and memory does not grow"
    _say(f"{held} ({time.monotonic() - started:.0f} s)")
    return 1 if problems else 0


def _options(arguments: Sequence[str]) -> Options:
    """Read the command line; ends the process with a message if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description="Watches a worker's memory over many events and through an outage of PostgreSQL.",
    )
    for name, (default, kind, meaning) in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{meaning} ({default:g})")
    return parser.parse_args(arguments, namespace=Options())


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # The servers are closed on the way out; a shell in the background has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main(sys.argv[1:]))
