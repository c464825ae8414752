"""What is measured, and how much of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import streams
from tests.bench.events import LOADS

DRAINS: Final = tuple(LOADS)
# The lines of each section.
SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "matrix": (*DRAINS, "paced", "start"),
    "growth": ("companies", "partitions", "stored", "backlog"),
    "fairness": ("fairness",),
    "scrapes": ("metrics",),
}
LINES: Final = tuple(chain.from_iterable(SECTIONS.values()))
# Where the results of this machine are kept.
_RESULTS: Final = Path(streams.__path__[0]).resolve().parent / "docs" / "performance"
# Default, kind and meaning of every number.
SIZES: Final = {
    "n": (20_000, int, "messages in a backlog"),
    "runs": (3, int, "the best of so many runs counts"),
    "seconds": (10.0, float, "how long each rate is kept up"),
    "companies": (50, int, "companies of one worker, against one"),
    "partitions": (100, int, "monthly partitions, against 26"),
    "stored": (500_000, int, "messages that are stored already, against none"),
    "backlog": (200_000, int, "messages in the long backlog, against n"),
    "scraped": (200, int, "companies whose page of metrics is measured"),
    "history": (300_000, int, "rows of the history import beside which fairness is measured"),
}


class Options(argparse.Namespace):
    """`n` messages in a backlog, `seconds` of each rate; the results go to the folder `out`."""

    groups: list[Sequence[str]]
    n: int
    runs: int
    seconds: float
    companies: int
    partitions: int
    stored: int
    backlog: int
    scraped: int
    history: int
    out: Path

    def chosen(self, group: Sequence[str]) -> tuple[str, ...]:
        """The lines of a group that are asked for."""
        wanted = set(chain.from_iterable(self.groups)) or set(LINES)
        return tuple(line for line in group if line in wanted)


def options(arguments: Sequence[str]) -> Options:
    """Read the command line; ends the process with a message if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures the worker against a bare pipeline on servers of its own.",
        epilog=f"Lines: {', '.join(LINES)}. Without any choice all are measured.",
    )
    choice: dict[str, Any] = {"dest": "groups", "default": []}
    parser.add_argument("--lines", type=_lines, action="append", metavar="A,B", help="only these", **choice)
    for section, lines in SECTIONS.items():
        only = f"only {', '.join(lines)}"
        parser.add_argument(f"--{section}", action="append_const", const=lines, help=only, **choice)
    for name, (default, kind, meaning) in SIZES.items():
        told = f"{meaning} ({default:g})"
        parser.add_argument(f"--{name}", type=positive(kind), default=default, help=told)
    parser.add_argument("--out", type=Path, default=_RESULTS, help="folder of results.json")
    return parser.parse_args(arguments, namespace=Options())


def _lines(text: str) -> list[str]:
    lines = [word.strip() for word in text.split(",")]
    if unknown := sorted(set(lines) - set(LINES)):
        raise argparse.ArgumentTypeError(f"unknown line {unknown[0]}: expected some of {', '.join(LINES)}")
    return lines


def positive(kind: type[int] | type[float], least: float = 0) -> Callable[[str], Any]:
    """Reads a number that is above 0 and at least `least`."""

    def number(text: str) -> int | float:
        value = kind(text)
        if value <= 0 or value < least:
            raise argparse.ArgumentTypeError(f"{text} is not above 0 or below {least:g}")
        return value

    return number
