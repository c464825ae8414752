"""`python -m tests.bench`: measure the worker on fresh servers, print a table of ratios, keep it as JSON.

Nothing here fails because it is slow: it ends with 1 only if a line could not be measured.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

from streams.worker.application import use_fast_loop
from tests.bench import fairness, growth, matrix, report, scrapes
from tests.bench import options as command_line
from tests.bench.environment import environment
from tests.bench.lines import Line
from tests.bench.measuring import Section
from tests.bench.options import SECTIONS, SIZES, Options
from tests.bench.runs import Runs

_MEASURE: Final = {
    "matrix": matrix.measure,
    "growth": growth.measure,
    "fairness": fairness.measure,
    "scrapes": scrapes.measure,
}


def main() -> int:
    """Measure what the command line asks for."""
    options = command_line.options(sys.argv[1:])
    # Either way the servers are closed on the way out; a shell in the background has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        use_fast_loop()
        lines, runs = asyncio.run(_measure(options))
    except KeyboardInterrupt:
        return 130
    print(report.table(lines))
    report.keep(options.out, lines, runs, {name: getattr(options, name) for name in SIZES})
    print(f"kept in {options.out}")
    return 1 if any(line.problem for line in lines) else 0


async def _measure(options: Options) -> tuple[list[Line], dict[str, Runs]]:
    """The lines of all sections, and the runs behind them by section."""
    lines, runs = [], {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name, measure in _MEASURE.items():
            if options.chosen(SECTIONS[name]):
                async with environment() as env:
                    section = Section(env, options, Path(folder), Runs())
                    lines += await measure(section)
                    runs[name] = section.runs
    return lines, runs


def _interrupt(_number: int, _frame: object) -> None:
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
