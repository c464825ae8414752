"""The simulation against a speed that was measured: one worker, one company, a backlog, two cores for everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from tools.sizing.costs import Cost
from tools.sizing.plan import Cell, Demand, Group
from tools.sizing.simulation import Simulation

EVENTS: Final = 20_000
# The machine of docs/performance.md, and what was measured there while nothing else ran.
CORES: Final = 2
QUIET: Final[Mapping[str, tuple[float, float]]] = {"realtime": (17_984, 19_620)}
QUIET_P50: Final = 0.00073  # seconds, at 100 messages a second
_STEP: Final = 0.001  # seconds


def squeeze(cost: Cost, cores: int) -> float:
    """How much longer everything takes because worker, PostgreSQL and NATS share the cores."""
    return max(1.0, (cost.worker + cost.postgres + cost.nats) / (cores * max(cost.worker, cost.postgres)))


def drain(demand: Demand, cost: Cost, *, cores: int = CORES, events: int = EVENTS) -> float:
    """Events a second at which a worker drains a backlog, by the simulation."""
    factor = squeeze(cost, cores)
    slower = cost._replace(worker=cost.worker * factor, postgres=cost.postgres * factor)
    alone = dataclasses.replace(demand, cost=slower, database_cores=1)
    simulation = Simulation(alone, Cell([Group([0.0], replicas=1)]), seed=1, steady=True)
    simulation.backlog_of(simulation.sources[0], events)
    while simulation.served < events:
        simulation.run(simulation.now + _STEP)
    return events / simulation.now


def latency(demand: Demand, cost: Cost, rate: float, *, seconds: float = 60.0) -> float:
    """Median seconds from an event's coming to its commit, of one company at a steady rate, by the simulation."""
    alone = dataclasses.replace(demand, cost=cost)
    simulation = Simulation(alone, Cell([Group([rate], replicas=1)]), seed=1, steady=True)
    simulation.run(seconds)
    return simulation.waits["others"].percentile(0.5, 0.0, seconds)
