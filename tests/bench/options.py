"""What is measured, and how much of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import streams
from tests.bench.events import LOADS

DRAINS: Final = tuple(LOADS)
MATRIX: Final = (*DRAINS, "paced", "start")
GROWTH: Final = ("companies", "partitions", "stored", "backlog")
FAIRNESS: Final = ("fairness",)
LINES: Final = (*MATRIX, *GROWTH, *FAIRNESS)
# Where the results of this machine are kept.
RESULTS: Final = Path(streams.__path__[0]).resolve().parent / "docs" / "performance"
_QUICK: Final = {
    "n": 600,
    "runs": 1,
    "seconds": 1.0,
    "stored": 2000,
    "backlog": 1200,
    "companies": 3,
    "history": 2000,
}


@dataclass(frozen=True, slots=True)
class Options:
    """`n` messages in a backlog, `seconds` of each rate; `out` None: nothing is written."""

    lines: tuple[str, ...]
    n: int
    runs: int
    rates: tuple[float, ...]
    seconds: float
    companies: int
    partitions: int
    stored: int
    backlog: int
    history: int
    out: Path | None

    def chosen(self, group: Sequence[str]) -> tuple[str, ...]:
        """The lines of a group that are asked for."""
        return tuple(line for line in group if line in self.lines)


def options(arguments: Sequence[str]) -> Options:
    """Read the command line; ends the process with a message if it is wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    lines = [*given.lines]
    for group, names in (("matrix", MATRIX), ("growth", GROWTH), ("fairness", FAIRNESS)):
        lines += names if getattr(given, group) else ()
    if unknown := sorted(set(lines) - set(LINES)):
        parser.error(f"unknown line {unknown[0]}: expected some of {', '.join(LINES)}")
    sizes = {name: getattr(given, name) for name in _SIZES}
    if given.quick:
        sizes |= {name: small for name, small in _QUICK.items() if sizes[name] == _SIZES[name][0]}
    out = given.out or (None if given.quick else RESULTS)
    return Options(lines=tuple(lines or LINES), rates=given.rates, out=out, **sizes)


# Default, kind and meaning of every number.
_SIZES: Final = {
    "n": (20_000, int, "messages in a backlog"),
    "runs": (3, int, "the best of so many runs counts"),
    "seconds": (10.0, float, "how long each rate is kept up"),
    "companies": (50, int, "companies of one worker, against one"),
    "partitions": (100, int, "monthly partitions, against 26"),
    "stored": (500_000, int, "messages that are stored already, against none"),
    "backlog": (200_000, int, "messages in the long backlog, against n"),
    "history": (300_000, int, "rows of the history import beside which fairness is measured"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures the worker against a bare pipeline on servers of its own.",
        epilog=f"Lines: {', '.join(LINES)}. Without any choice all are measured.",
    )
    parser.add_argument("--lines", type=_words, default=(), help="only these, separated by commas")
    parser.add_argument("--matrix", action="store_true", help=f"only {', '.join(MATRIX)}")
    parser.add_argument("--growth", action="store_true", help=f"only {', '.join(GROWTH)}")
    parser.add_argument(
        "--fairness", action="store_true", help="only real-time latency beside a history import"
    )
    parser.add_argument("--rates", type=_rates, default=(100.0, 500.0, 2000.0), help="events a second")
    for name, (default, kind, meaning) in _SIZES.items():
        parser.add_argument(
            f"--{name}", type=positive(kind), default=default, help=f"{meaning} ({default:g})"
        )
    parser.add_argument("--quick", action="store_true", help="small numbers, one run, and nothing is written")
    parser.add_argument("--out", type=Path, help=f"folder of results.json ({RESULTS.name})")
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _rates(text: str) -> tuple[float, ...]:
    return tuple(map(positive(float), _words(text)))


def positive(kind: type[int] | type[float], least: float = 0) -> Callable[[str], Any]:
    """Reads a number that is above 0 and at least `least`."""

    def number(text: str) -> int | float:
        value = kind(text)
        if value <= 0 or value < least:
            raise argparse.ArgumentTypeError(f"{text} is not above 0 or below {least:g}")
        return value

    return number
