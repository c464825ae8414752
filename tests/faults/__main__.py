"""`python -m tests.faults`: each class of faults so many times, and a table of what became of the events."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.faults.catalogue import FAULTS, of_kind
from tests.faults.compare import Outcome
from tests.faults.driver import database_for, run
from tests.faults.results import Results

_POLL: Final = 0.2
_PR_SET_PDEATHSIG: Final = 1


def main() -> int:
    """Add to the results until each class has its runs; 0 if the promise was kept in all of them."""
    # Also in the background, where a shell has SIGINT ignored.
    for interruption in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interruption, _interrupt)
    options = _options(sys.argv[1:])
    if options.only is not None:
        return _once(options.classes[0], options.only, options)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    _say(f"logs of the workers: {folder}")
    try:
        _campaign(options, folder)
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from here")
    for one in folder.iterdir():
        with suppress(OSError):  # it keeps the logs of runs that failed
            one.rmdir()
    with suppress(OSError):
        folder.rmdir()
    return _report(options)


def _report(options: argparse.Namespace) -> int:
    results = Results(options.results, short=options.short)
    _say(results.table(options.classes))
    for record in results.excused(options.classes):
        _say(f"SERVER FAULT {record['class']} --seed {record['seed']}: {'; '.join(record['evidence'])}")
    failed = results.failed(options.classes)
    for record in failed:
        _say(f"FAILED {record['class']} --seed {record['seed']}: {'; '.join(record['problems'])}")
    if left := len(list(missing(options))):
        _say(f"{left} runs are not on record yet")
    return 1 if failed or left else 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _campaign(options: argparse.Namespace, folder: Path) -> None:
    """Each run is a process of its own; so many at a time."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for name, seed in missing(options):
            while len(running) >= options.jobs:
                time.sleep(_POLL)
                running = [one for one in running if one.poll() is None]
            running.append(_begin(name, seed, options, folder))
        for one in running:
            one.wait()
    finally:
        for one in running:
            if one.poll() is None:
                one.terminate()
        for one in running:
            one.wait()


def missing(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Classes and seeds of the runs that are not on record yet, class by class in turns."""
    results = Results(options.results, short=options.short)
    wanted = {name: options.runs or FAULTS[name].runs for name in options.classes}
    for number in range(max(wanted.values())):
        for name in options.classes:
            if len(results.of(name)) <= number < wanted[name]:
                yield name, options.seed + number


def _begin(name: str, seed: int, options: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    logs = folder / f"{name.replace(' ', '-')}-{seed}"
    logs.mkdir()
    arguments = ["--class", name, "--only", str(seed), "--results", str(options.results), "--logs", str(logs)]
    if options.short:
        arguments.append("--short")
    return subprocess.Popen([sys.executable, "-m", "tests.faults", *arguments])


def _once(name: str, seed: int, options: argparse.Namespace) -> int:
    """One run in this process, which does not outlive the campaign."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    started = time.monotonic()
    try:
        outcome = asyncio.run(_outcome(name, options.logs, seed=seed, short=options.short))
    except KeyboardInterrupt:
        return 1
    record = Results(options.results, short=options.short).add(name, seed, outcome)
    seconds = "never" if outcome.recovered is None else f"{outcome.recovered:.1f} s"
    verdict = "" if outcome.ok else "  FAILED"
    lines = [
        f"{name} (seed {seed}): {record['published']} published, {record['lost']} lost, "
        f"{record['doubled']} doubled, {record['wrong']} wrong, {record['needless']} needless letters, "
        f"{record['redelivered']} redelivered, recovered in {seconds}, "
        f"took {time.monotonic() - started:.0f} s{verdict}",
        *(f"    {problem}" for problem in outcome.problems),
        *(f"    server fault: {text}" for text in outcome.evidence),
    ]
    _say("\n".join(lines))
    if outcome.ok:
        for log in options.logs.iterdir():
            log.unlink()
    return 0 if outcome.ok else 1


async def _outcome(name: str, folder: Path, *, seed: int, short: bool) -> Outcome:
    """A run that cannot be finished is a failure, and no reason to leave out the others."""
    try:
        # Servers of its own: what an earlier run left behind in one must not count.
        async with database_for(name) as database:
            return await run(name, database, folder, seed=seed, short=short)
    except Exception as error:
        outcome = Outcome()
        outcome.complain(f"the run was broken off: {type(error).__name__}: {str(error)[:300]}")
        return outcome


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--runs", type=int, help="how many runs each class shall have (10, on clusters 5 or 3)"
    )
    parser.add_argument("--class", dest="classes", action="append", choices=list(FAULTS), metavar="CLASS")
    parser.add_argument(
        "--kind", choices=("single", "cluster", "all"), default="all", help="which classes (all)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its own servers (1)")
    parser.add_argument("--short", action="store_true", help="outages of a second, as in the tests")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first run of each class (1)")
    parser.add_argument("--results", type=Path, default=Path("faults.jsonl"), help="where runs are put down")
    parser.add_argument("--list", action="store_true", help="say what classes there are")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--logs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.classes = options.classes or of_kind(options.kind)
    if options.list:
        _say(
            "\n".join(
                f"{name} ({FAULTS[name].kind}): {FAULTS[name].inject.__doc__}" for name in options.classes
            )
        )
        raise SystemExit(0)
    return options


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
