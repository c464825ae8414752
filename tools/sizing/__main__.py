"""`python -m tools.sizing`: print the plan for a load, and what a simulation says of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from tools.sizing import options as command_line
from tools.sizing import report, scenarios
from tools.sizing.options import Options
from tools.sizing.plan import DAY_SHAPE, Plan, plan

QUIETEST: Final = f"steady at {min(DAY_SHAPE):.0%} of the peak"


def main(arguments: Sequence[str]) -> int:
    """Plan, print, simulate, print."""
    options = command_line.options(arguments)
    made = plan(options.demand)
    print(report.planned(options.demand, made))
    print(f"\n{report.cells(made)}", flush=True)
    if options.simulate:
        print(f"\n{report.checked(options.demand)}", flush=True)
        print(f"\n{report.played(_simulated(options, made))}")
    return 0


def _simulated(options: Options, made: Plan) -> list[scenarios.Outcome]:
    """The steady state of each cell, and what may strike one: cells share nothing."""
    demand, cell = options.demand, scenarios.hottest(made)
    outcomes = [
        scenarios.steady(demand, each, name=f"steady, cell {at}", seconds=options.seconds, seed=options.seed)
        for at, each in enumerate(made.cells, 1)
    ]
    night = scenarios.at_share(cell, min(DAY_SHAPE))
    name = f"{QUIETEST}, cell {made.cells.index(cell) + 1}"
    outcomes.append(scenarios.steady(demand, night, name=name, seconds=options.seconds, seed=options.seed))
    for scenario in scenarios.scenarios(
        demand, made, import_rows=options.import_rows, outage=options.outage, restart=options.restart
    ):
        print(f"simulating: {scenario.name}", file=sys.stderr, flush=True)
        outcomes.append(scenarios.play(demand, scenario, seed=options.seed))
    return outcomes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
