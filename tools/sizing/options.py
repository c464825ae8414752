"""The command line: every number of a demand, and what is simulated."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from tools.sizing import costs
from tools.sizing.costs import Fixed, Mix
from tools.sizing.plan import Demand

_DEMAND: Final = {
    "companies": "companies",
    "rate": "events and history rows a second of all companies, in the peak hour",
    "skew": "Zipf's exponent: 0, all alike; 1, the second has half of the first",
    "headroom": "share of a core or a server that is used in the peak hour",
    "survive": "share of a worker's core that is used while one of its group is away",
    "companies_a_worker": "companies of a worker at most",
    "pool": "POSTGRES_POOL_SIZE",
    "max_connections": "PostgreSQL's max_connections",
    "reserve": "connections of others, the reserved ones included",
    "database_cores": "cores of a PostgreSQL primary",
    "wal_mb": "MB of WAL a second that a primary, its archive and its standby take",
    "database_tb": "TB of a primary's disk for rows",
    "row_days": "days that rows are kept before their month's partition is dropped",
    "stream_rate": "events a second that one stream takes",
    "stream_days": "NATS_REALTIME_MAXAGE",
    "copies": "copies of a stream",
    "assets": "replicated streams and consumers that a NATS server carries",
    "nats_cores": "cores of a NATS server",
    "nats_tb": "TB of a NATS server's disk",
    "realtime_batch": "events of a real-time batch at most",
    "history_batch": "messages of a history batch at most, 100 rows each",
    "ack_wait": "NATS_REALTIME_ACKWAIT, seconds",
}
_MIX: Final = {
    "messages": "new messages among real-time events",
    "new_phones": "first messages of a phone among new messages",
    "repeats": "real-time events that are stored already",
    "history": "history rows among everything",
}
_COST: Final = {
    "worker": "worker's processor, us",
    "postgres": "PostgreSQL's processor, us",
    "nats": "NATS's processor, us, with one copy",
    "wal": "bytes of WAL",
    "table": "bytes of rows and indexes",
    "stored": "bytes in the stream, a copy",
}
_FIXED: Final = {
    "worker_batch": "worker's processor for a batch besides its events, us",
    "postgres_batch": "PostgreSQL's, us",
    "nats_batch": "NATS's, us",
    "worker_idle": "worker's processor for a company and second without events, us",
    "postgres_idle": "PostgreSQL's, us",
    "nats_idle": "NATS's, us",
    "nats_search": "NATS's processor for an event and each company of its stream, us",
    "commit_ms": "how long a commit takes, ms",
}


@dataclass(frozen=True, slots=True)
class Options:
    """`seconds` of the steady state; the rest is what strikes."""

    demand: Demand
    seed: int
    simulate: bool
    seconds: float
    import_rows: int
    outage: float
    restart: float


def options(arguments: Sequence[str]) -> Options:
    """Read the command line; ends the process with a message if it is wrong."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    loads = costs.loads_from()
    mix = Mix(**{name: given[name] for name in _MIX})
    known = costs.blend(loads, mix)
    own = {name: given[f"cost_{name}"] for name in _COST if given[f"cost_{name}"] is not None}
    demand = Demand(
        mix=mix,
        cost=known._replace(**own),
        history=loads["history"],
        fixed=Fixed(**{name: given[name] for name in _FIXED}),
        **{name: given[name] for name in _DEMAND},
    )
    if demand.headroom >= 1 or demand.survive >= 1:
        parser.error("--headroom and --survive are shares below 1")
    if max(mix) > 1:
        parser.error("shares of events are at most 1")
    return Options(
        demand=demand,
        seed=given["seed"],
        simulate=not given["no_simulation"],
        seconds=given["seconds"],
        import_rows=given["import_rows"],
        outage=given["outage"],
        restart=given["restart"],
    )


def _number(kind: type[int] | type[float], least: float) -> Callable[[str], int | float]:
    def number(text: str) -> int | float:
        value = kind(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not {least:g} or more")
        return value

    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.sizing",
        description="Sizes workers, PostgreSQL and NATS for a load, and simulates the plan.",
        epilog="Costs of an event come from docs/performance/results.json where the bench has left some.",
    )
    defaults = {each.name: each.default for each in fields(Demand)}
    _add(parser.add_argument_group("load and limits"), _DEMAND, defaults)
    _add(parser.add_argument_group("shares of events"), _MIX, Mix()._asdict())
    group = parser.add_argument_group("costs of an event of this mix, instead of those measured")
    for name, meaning in _COST.items():
        group.add_argument(f"--cost-{name}", type=_number(float, 0), metavar="N", help=meaning)
    _add(
        parser.add_argument_group("costs that do not depend on the number of events"),
        _FIXED,
        Fixed()._asdict(),
    )
    what = parser.add_argument_group("simulation")
    what.add_argument("--no-simulation", action="store_true", help="only the plan")
    what.add_argument("--seed", type=int, default=1, help="another course of chance (1)")
    simulated = {"seconds": 20.0, "import_rows": 1_000_000, "outage": 60.0, "restart": 20.0}
    _add(what, _SIMULATED, simulated)
    return parser


_SIMULATED: Final = {
    "seconds": "how long the steady state is simulated",
    "import_rows": "rows of the history import",
    "outage": "how long PostgreSQL is away, seconds",
    "restart": "how long it takes to replace a worker, seconds",
}
_MAY_BE_ZERO: Final = {*_MIX, *_FIXED, "skew", "reserve", "row_days"}


def _add(group: Any, meanings: dict[str, str], defaults: dict[str, Any]) -> None:
    for name, meaning in meanings.items():
        default = defaults[name]
        kind = int if isinstance(default, int) and name != "rate" else float
        least = 0.0 if name in _MAY_BE_ZERO else 1.0 if kind is int else 1e-6
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=_number(kind, least),
            default=default,
            metavar="N",
            help=f"{meaning} ({default:g})",
        )
