"""`python -m tests.bench`: measure the worker on fresh servers, print a table of ratios, keep it as JSON.

Nothing here fails because it is slow: it ends with 1 only if a line could not be measured.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from tests.bench import options as command_line
from tests.bench import report
from tests.bench.environment import Environment, environment
from tests.bench.fairness import Fairness
from tests.bench.growth import Growth
from tests.bench.lines import Line
from tests.bench.matrix import Matrix
from tests.bench.options import FAIRNESS, GROWTH, MATRIX, Options
from tests.bench.report import Section
from tests.bench.runs import Runs


class _Part(Protocol):
    """Measures the lines of one section."""

    runs: Runs

    async def run(self) -> list[Line]:
        """All that was chosen."""
        ...


_SECTIONS: Final[dict[str, tuple[Sequence[str], Callable[[Environment, Options, Path], _Part]]]] = {
    "matrix": (MATRIX, Matrix),
    "growth": (GROWTH, Growth),
    "fairness": (FAIRNESS, Fairness),
}


def main() -> int:
    """Measure what the command line asks for."""
    options = command_line.options(sys.argv[1:])
    # Either way the servers are closed on the way out; a shell in the background has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            sections = runner.run(_measure(options))
    except KeyboardInterrupt:
        return 130
    lines = [line for section in sections for line in section.lines]
    print(report.table(lines))
    if options.out is not None:
        report.keep(options.out, sections, _settings(options))
        print(f"kept in {options.out}")
    return 1 if any(line.problem for line in lines) else 0


async def _measure(options: Options) -> list[Section]:
    sections = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name, (group, kind) in _SECTIONS.items():
            if options.chosen(group):
                async with environment() as env:
                    part = kind(env, options, Path(folder))
                    sections.append(Section(name, await part.run(), part.runs.all()))
    return sections


def _settings(options: Options) -> dict[str, Any]:
    return {
        name: value for name, value in dataclasses.asdict(options).items() if name not in ("lines", "out")
    }


def _loop_factory() -> Any:
    """The faster event loop for publishing, where it is installed; the systems have their own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _interrupt(_number: int, _frame: object) -> None:
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
