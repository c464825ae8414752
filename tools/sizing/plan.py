"""Which companies share workers, which workers share a database: the plan for a load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tools.sizing import formulas
from tools.sizing.costs import MEASURED, Cost, Fixed, Mix, blend

# The load of each hour as a share of the peak hour; midnight first.
DAY_SHAPE: Final = (
    *(0.10, 0.06, 0.04, 0.04, 0.06, 0.15, 0.30, 0.50, 0.75, 0.90, 1.00, 0.95),
    *(0.85, 0.90, 0.95, 0.95, 0.90, 0.85, 0.85, 0.90, 0.80, 0.60, 0.40, 0.20),
)
DAY_MEAN: Final = sum(DAY_SHAPE) / len(DAY_SHAPE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of the plan, and what its parts can carry. `rate` is of the peak hour."""

    companies: int = 1000
    rate: float = 100_000
    skew: float = 1.0  # Zipf's exponent
    mix: Mix = field(default_factory=Mix)
    cost: Cost = field(default_factory=lambda: blend(MEASURED, Mix()))
    history: Cost = MEASURED["history"]
    fixed: Fixed = field(default_factory=Fixed)
    headroom: float = 0.6  # share of a core or server that is used at the peak
    survive: float = 0.85  # share of a worker's core while another one of its group is away
    companies_a_worker: int = 50
    pool: int = 10
    max_connections: int = 500
    reserve: int = 20
    database_cores: int = 16
    wal_mb: float = 150  # a second, archived and sent to a standby
    database_tb: float = 100
    row_days: float = 30
    stream_rate: float = 20_000  # events a second through one stream
    stream_days: float = 30
    copies: int = 3
    assets: int = 2000  # replicated streams and consumers a NATS server
    nats_cores: int = 8
    nats_tb: float = 20
    realtime_batch: int = 500
    history_batch: int = 5
    ack_wait: float = 30
    cycle: float = 0.001  # seconds from a pull to the next one, as the simulation has it


@dataclass(slots=True)
class Group:
    """A deployment: companies (their rates), and replicas that all serve these companies."""

    rates: list[float] = field(default_factory=list)
    replicas: int = 0

    @property
    def rate(self) -> float:
        """Events a second."""
        return sum(self.rates)


@dataclass(frozen=True, slots=True)
class Cell:
    """A PostgreSQL primary and a NATS account with the groups that use them: it shares nothing with other cells."""

    groups: list[Group]

    @property
    def rates(self) -> list[float]:
        """Of all companies."""
        return [rate for group in self.groups for rate in group.rates]

    @property
    def workers(self) -> int:
        """Replicas of all groups."""
        return sum(group.replicas for group in self.groups)


@dataclass(frozen=True, slots=True)
class Plan:
    """The cells, and which limit each number comes from."""

    cells: list[Cell]
    databases_because: str
    nats_servers: int
    nats_because: str

    @property
    def groups(self) -> list[Group]:
        """Of all cells."""
        return [group for cell in self.cells for group in cell.groups]

    @property
    def workers(self) -> int:
        """Replicas of all groups."""
        return sum(cell.workers for cell in self.cells)


def zipf(companies: int, rate: float, skew: float) -> list[float]:
    """The companies' shares of the rate, the largest first."""
    weights = [1 / rank**skew for rank in range(1, companies + 1)]
    total = sum(weights)
    return [rate * weight / total for weight in weights]


def grouped(rates: Sequence[float], most: int) -> list[Group]:
    """Put companies together, at most so many: the largest first, each where least is. One that has more than an
    average group's share gets a group of its own."""
    wanted = formulas.up(len(rates) / most)
    fair = sum(rates) / wanted
    alone = [rate for rate in rates if rate > fair]
    rest = sorted((rate for rate in rates if rate <= fair), reverse=True)
    groups = [Group() for _ in range(formulas.up(len(rest) / most))]
    for rate in rest:
        min(
            (group for group in groups if len(group.rates) < most), key=lambda group: group.rate
        ).rates.append(rate)
    return [*(Group([rate]) for rate in alone), *groups]


def group_load(demand: Demand, group: Group) -> float:
    """Cores of a group's work in full batches, with what its idle sources cost."""
    idle = len(group.rates) * demand.fixed.worker_idle
    return formulas.cores(group.rate, demand.cost.worker) + idle / 1e6


def served(groups: Sequence[Group]) -> int:
    """Companies times the workers that serve each: so many sets of sources and of chores."""
    return sum(len(group.rates) * group.replicas for group in groups)


def database_cores(demand: Demand, cell: Cell) -> float:
    """Busy cores of a cell's primary, with the batches that come about by themselves."""
    busy = formulas.cores(
        sum(cell.rates),
        demand.cost.postgres,
        batches=formulas.batches(cell.rates, demand.cycle),
        batch=demand.fixed.postgres_batch,
    )
    return busy + served(cell.groups) * demand.fixed.postgres_idle / 1e6


def connections(demand: Demand, cell: Cell) -> int:
    """Connections to a cell's primary at most."""
    return formulas.connections(cell.workers, demand.pool, len(cell.groups))


def row_days(demand: Demand) -> float:
    """Days of rows on disk: partitions are months, and go as a whole."""
    return demand.row_days + 31


_LIMITS: Final[dict[str, Callable[[Demand, Cell], bool]]] = {
    "processor": lambda demand, cell: database_cores(demand, cell) <= demand.database_cores * demand.headroom,
    "WAL": lambda demand, cell: sum(cell.rates) * demand.cost.wal <= demand.wal_mb * demand.headroom * 1e6,
    "disk": lambda demand, cell: (
        formulas.disk(sum(cell.rates) * DAY_MEAN, demand.cost.table, row_days(demand)) <= demand.database_tb
    ),
    "connections": lambda demand, cell: connections(demand, cell) <= demand.max_connections - demand.reserve,
    "stream": lambda demand, cell: sum(cell.rates) <= demand.stream_rate,
}


def celled(demand: Demand, groups: Sequence[Group]) -> tuple[list[Cell], str]:
    """The fewest cells within all limits, and which limit asks for so many. A group is never divided: if one alone
    is too much, each group has a cell of its own, and the limit is named with `exceeded`."""
    because = "one is enough"
    for count in range(1, len(groups) + 1):
        cells = [Cell([]) for _ in range(count)]
        for group in sorted(groups, key=lambda group: group.rate, reverse=True):
            min(cells, key=lambda cell: sum(cell.rates)).groups.append(group)
        over = [name for name, within in _LIMITS.items() if not all(within(demand, cell) for cell in cells)]
        if not over:
            return cells, because
        because = ", ".join(over)
    return cells, f"{because}: exceeded"


def nats_servers(demand: Demand, groups: Sequence[Group], cells: Sequence[Cell]) -> tuple[int, str]:
    """Servers, in clusters of as many as there are copies, and the limit that asks for so many."""
    copies, cost = demand.copies, demand.cost
    batches = formulas.batches([rate for group in groups for rate in group.rates], demand.cycle)
    busy = formulas.cores(demand.rate, cost.nats * copies, batches=batches, batch=demand.fixed.nats_batch)
    busy += served(groups) * demand.fixed.nats_idle / 1e6
    busy += sum(sum(cell.rates) * len(cell.rates) for cell in cells) * demand.fixed.nats_search / 1e6
    assets = (formulas.consumers(demand.companies) + 3 * len(cells)) * copies if copies > 1 else 0
    stored = formulas.disk(demand.rate * DAY_MEAN, cost.stored * copies, demand.stream_days)
    needs = {
        "processor": busy / (demand.nats_cores * demand.headroom),
        "replicated streams and consumers": assets / demand.assets,
        "disk": stored / demand.nats_tb,
    }
    because = max(needs, key=lambda name: needs[name])
    return max(formulas.up(needs[because] / copies), 1) * copies, because


def plan(demand: Demand) -> Plan:
    """The plan for a demand."""
    groups = grouped(zipf(demand.companies, demand.rate, demand.skew), demand.companies_a_worker)
    for group in groups:
        group.replicas = formulas.replicas(
            group_load(demand, group), headroom=demand.headroom, survive=demand.survive
        )
    cells, because = celled(demand, groups)
    return Plan(cells, because, *nats_servers(demand, groups, cells))
