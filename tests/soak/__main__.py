"""`python -m tests.soak`: does a worker's memory grow with its events, or through an outage? 0 if it does not."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from testkit.worker import WorkerError
from tests.bench.environment import BenchError
from tests.soak import options as command_line
from tests.soak.driver import run


def main(arguments: Sequence[str]) -> int:
    """Run it as the command line says, and print what was measured and the verdict."""
    options = command_line.options(arguments)
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
