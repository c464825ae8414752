"""`python -m tests.faults`: each class of faults so many times, and a table of what became of the events."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from demo.servers import PostgresServer
from tests.faults.classes import FAULTS
from tests.faults.compare import Outcome
from tests.faults.driver import run
from tests.faults.results import Results
from tests.faults.scene import postgres


def main() -> int:
    """Add to the results until each class has its runs; 0 if the promise was kept in all of them."""
    # Also in the background, where a shell has SIGINT ignored.
    for interruption in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interruption, _interrupt)
    options = _options(sys.argv[1:])
    results = Results(options.results)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    _say(f"logs of the workers: {folder}")
    try:
        for number in range(options.runs):
            for name in options.classes:
                if len(results.of(name, short=options.short)) <= number:
                    _once(name, options.seed + number, folder, results, short=options.short)
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from here")
    with suppress(OSError):  # it keeps the logs of runs that failed
        folder.rmdir()
    _say(results.table(options.classes, short=options.short))
    failed = results.failed(options.classes, short=options.short)
    for record in failed:
        _say(f"FAILED {record['class']} --seed {record['seed']}: {'; '.join(record['problems'])}")
    return 1 if failed else 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _once(name: str, seed: int, folder: Path, results: Results, *, short: bool) -> None:
    started = time.monotonic()
    # Not shared: what an earlier run left behind in a server must not count.
    with postgres() as server:
        outcome = asyncio.run(_outcome(name, server, folder, seed=seed, short=short))
    record = results.add(name, seed, outcome, short=short)
    seconds = "never" if outcome.recovered is None else f"{outcome.recovered:.1f} s"
    _say(
        f"{name} (seed {seed}): {record['published']} published, {record['lost']} lost, "
        f"{record['doubled']} doubled, {record['needless']} needless letters, recovered in {seconds}, "
        f"took {time.monotonic() - started:.0f} s{'' if outcome.ok else '  FAILED'}"
    )
    for problem in outcome.problems:
        _say(f"    {problem}")
    if outcome.ok:
        for log in folder.iterdir():
            log.unlink()


async def _outcome(name: str, server: PostgresServer, folder: Path, *, seed: int, short: bool) -> Outcome:
    """A run that cannot be finished is a failure, and no reason to leave out the others."""
    try:
        return await run(name, server, folder, seed=seed, short=short)
    except Exception as error:
        outcome = Outcome()
        outcome.complain(f"the run was broken off: {type(error).__name__}: {str(error)[:300]}")
        return outcome


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="how many runs each class shall have (20)")
    parser.add_argument("--class", dest="classes", action="append", choices=list(FAULTS), metavar="CLASS")
    parser.add_argument("--short", action="store_true", help="outages of a second, as in the tests")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first run of each class (1)")
    parser.add_argument("--results", type=Path, default=Path("faults.jsonl"), help="where runs are put down")
    parser.add_argument("--list", action="store_true", help="say what classes there are")
    options = parser.parse_args(arguments)
    if options.list:
        _say("\n".join(f"{name}: {fault.strike.__doc__}" for name, fault in FAULTS.items()))
        raise SystemExit(0)
    options.classes = options.classes or list(FAULTS)
    return options


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
