"""What may happen to a planned cell, and how it gets over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tools.sizing.parts import Sample, utilisation
from tools.sizing.plan import Cell, Demand, Group, Plan
from tools.sizing.simulation import Simulation

WARM: Final = 10.0
# Without an end, a scenario is left after so many seconds.
LONGEST: Final = 600.0
# Less than a tenth of a second's events, or three times what there was before, is no backlog.
_TENTH: Final = 0.1
_TIMES: Final = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a scenario went. Waits are seconds of the events that came from the strike until all was as before;
    `normal_after` counts from the strike, None: not within the time simulated."""

    name: str
    p50: float
    p99: float
    longest: float
    others_p99: float | None
    most: int
    normal_after: float | None
    workers: float
    database: float
    arrived: int
    served: int
    left: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """`strike` does it to a cell and puts its end on the agenda; it lasts `seconds`. `narrow`: to a part only."""

    name: str
    cell: Cell
    strike: Callable[[Simulation], None]
    seconds: float
    narrow: bool = True


def hottest(plan: Plan) -> Cell:
    """The cell with the most events."""
    return max(plan.cells, key=lambda cell: sum(cell.rates))


def at_share(cell: Cell, share: float) -> Cell:
    """The same cell in an hour with this share of the events of the peak hour."""
    return Cell([Group([rate * share for rate in group.rates], group.replicas) for group in cell.groups])


def steady(demand: Demand, cell: Cell, *, name: str, seconds: float, seed: int) -> Outcome:
    """An hour with nothing but the usual bursts."""
    simulation = Simulation(demand, cell, seed=seed)
    simulation.run(WARM + seconds)
    return _outcome(name, simulation, since=WARM, until=simulation.now, narrow=False, normal_after=0.0)


def play(demand: Demand, scenario: Scenario, *, seed: int) -> Outcome:
    """Let it strike after a while, and go on until everything is as before."""
    cell = scenario.cell
    simulation = Simulation(demand, cell, seed=seed)
    simulation.run(WARM)
    usual = max(_TIMES * _backlog(simulation.samples), sum(cell.rates) * _TENTH)
    scenario.strike(simulation)
    normal_after = None
    while simulation.now < WARM + LONGEST:
        simulation.run(simulation.now + 1)
        if simulation.now > WARM + scenario.seconds and simulation.backlog <= usual:
            normal_after = simulation.now - WARM
            break
    return _outcome(
        scenario.name,
        simulation,
        # What was in work at the strike has come before.
        since=WARM - 1,
        until=simulation.now,
        narrow=scenario.narrow,
        normal_after=normal_after,
    )


def _backlog(samples: list[Sample]) -> float:
    late = samples[len(samples) // 2 :]
    return sum(sample.backlog for sample in late) / len(late)


def _outcome(
    name: str,
    simulation: Simulation,
    *,
    since: float,
    until: float,
    narrow: bool,
    normal_after: float | None,
) -> Outcome:
    ours, others = simulation.waits["struck" if narrow else "others"], simulation.waits["others"]
    samples = [sample for sample in simulation.samples if sample.at >= since]
    busy = utilisation(samples, len(simulation.workers), simulation.database.cores)
    left = simulation.backlog
    return Outcome(
        name=name,
        p50=ours.percentile(0.5, since, until),
        p99=ours.percentile(0.99, since, until),
        longest=ours.percentile(1.0, since, until),
        others_p99=others.percentile(0.99, since, until) if narrow else None,
        most=max([left, *(sample.backlog for sample in samples)]),
        normal_after=normal_after,
        workers=busy[0],
        database=busy[1],
        arrived=simulation.arrived,
        served=simulation.served,
        left=left,
    )


def scenarios(
    demand: Demand, made: Plan, *, import_rows: int, outage: float, restart: float
) -> list[Scenario]:
    """A worker dies; the database goes away; a company imports its history; one has five times its events. All in
    the hottest cell, but for the largest company's burst."""
    cell, home = hottest(made), max(made.cells, key=lambda cell: max(cell.rates))
    busiest = max(range(len(cell.groups)), key=lambda at: cell.groups[at].rate)
    fullest = max(range(len(cell.groups)), key=lambda at: len(cell.groups[at].rates))
    first = _first_source(cell, fullest)

    def worker_dies(simulation: Simulation) -> None:
        for source in simulation.sources:
            if source.group == busiest:
                source.kind = "struck"
        simulation.kill(simulation.groups[busiest][0], restart)

    def database_away(simulation: Simulation) -> None:
        simulation.stop_database()
        simulation.at(simulation.now + outage, simulation.start_database)

    def history(simulation: Simulation) -> None:
        # Real-time events of its group are what must not suffer.
        for source in simulation.sources:
            if source.group == fullest:
                source.kind = "struck"
        simulation.history(fullest, import_rows)

    burst = f"has {_BURST:g} x for {_BURST_SECONDS:g} s"
    return [
        Scenario("a worker of the busiest group is killed", cell, worker_dies, demand.ack_wait),
        Scenario(f"PostgreSQL is away for {outage:g} s", cell, database_away, outage, narrow=False),
        Scenario(f"a company imports {import_rows:,} rows", cell, history, 0.0),
        Scenario(f"a company among others {burst}", cell, _burst(first), _BURST_SECONDS),
        Scenario(f"the largest company {burst}", home, _burst(_largest(home)), _BURST_SECONDS),
    ]


_BURST_SECONDS: Final = 30.0
_BURST: Final = 5.0


def _burst(at: int) -> Callable[[Simulation], None]:
    def strike(simulation: Simulation) -> None:
        source = simulation.sources[at]
        source.kind = "struck"
        simulation.multiply(source, _BURST)
        simulation.at(simulation.now + _BURST_SECONDS, simulation.multiply, source, 1 / _BURST)

    return strike


def _largest(cell: Cell) -> int:
    return max(range(len(cell.rates)), key=cell.rates.__getitem__)


def _first_source(cell: Cell, group: int) -> int:
    """Where the largest company of a group is among all sources of its cell."""
    return sum(len(each.rates) for each in cell.groups[:group])
