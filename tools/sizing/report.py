"""What is printed: the plan with its formulas, and the table of the scenarios."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tools.sizing import check, costs, formulas
from tools.sizing import plan as planning
from tools.sizing.plan import DAY_MEAN, Cell, Demand, Plan
from tools.sizing.scenarios import Outcome, hottest


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in Markdown, the first one as head."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def planned(demand: Demand, plan: Plan) -> str:
    """Every number of the plan, and where it comes from."""
    return table([("What", "How much", "Why"), *_load(demand), *_workers(demand, plan), *_postgres(demand, plan),
                  *_nats(demand, plan)])  # fmt: skip


def _load(demand: Demand) -> Iterator[tuple[str, str, str]]:
    rates, cost = planning.zipf(demand.companies, demand.rate, demand.skew), demand.cost
    yield (
        "companies",
        f"{demand.companies:,}",
        f"{rates[0]:,.0f}/s the largest, {rates[len(rates) // 2]:,.0f}/s the middle one",
    )
    yield "events in the peak hour", f"{demand.rate:,.0f}/s", f"day's mean {DAY_MEAN:.0%} of it"
    yield (
        "an event",
        f"{cost.worker:.0f} + {cost.postgres:.0f} + {cost.nats:.0f} us",
        "processor of worker, PostgreSQL, NATS, in full batches",
    )


def _workers(demand: Demand, plan: Plan) -> Iterator[tuple[str, str, str]]:
    work = formulas.cores(demand.rate, demand.cost.worker)
    idle = planning.served(plan.groups) * demand.fixed.worker_idle / 1e6
    most = max(len(group.rates) for group in plan.groups)
    yield "work of the workers", f"{work:.1f} + {idle:.1f} cores", "events in full batches + idle sources"
    yield (
        "groups of companies",
        f"{len(plan.groups)}",
        f"at most {demand.companies_a_worker} companies each; "
        f"{sum(len(group.rates) == 1 for group in plan.groups)} companies alone",
    )
    replicas = sorted({group.replicas for group in plan.groups})
    yield "workers", f"{plan.workers}", f"{' or '.join(map(str, replicas))} a group"
    yield "memory of a worker", f"{formulas.memory(most):.0f} MB", f"85 + 3 x {most} companies"
    largest = max(group.replicas for group in plan.groups)
    yield (
        "max_ack_pending, if set",
        f"> {formulas.ack_pending(largest, demand.realtime_batch):,}",
        f"{largest} replicas x {demand.realtime_batch} x 2 batches",
    )


def _postgres(demand: Demand, plan: Plan) -> Iterator[tuple[str, str, str]]:
    hot = hottest(plan)
    rate = sum(hot.rates)
    yield (
        "PostgreSQL primaries",
        f"{len(plan.cells)}",
        f"one fewer is not enough for: {plan.databases_because}",
    )
    yield (
        "busiest: cores",
        f"{planning.database_cores(demand, hot):.1f} of {demand.database_cores}",
        f"{rate:,.0f} events, {formulas.batches(hot.rates, demand.cycle):,.0f} batches a second",
    )
    yield "busiest: WAL", f"{rate * demand.cost.wal / 1e6:.0f} MB/s", f"{demand.cost.wal:,.0f} bytes an event"
    yield (
        "most connections",
        f"{max(planning.connections(demand, cell) for cell in plan.cells)}",
        "(workers + groups) x pool, in a rollout",
    )
    day = formulas.disk(demand.rate * DAY_MEAN, demand.cost.table, 1)
    days = planning.row_days(demand)
    yield (
        "disk for rows, all",
        f"{day * days:,.0f} TB",
        f"{day:.1f} TB a day, {demand.row_days:g} days and the month that is not over",
    )


def _nats(demand: Demand, plan: Plan) -> Iterator[tuple[str, str, str]]:
    stored = demand.rate * demand.cost.stored / 1e6
    assets = formulas.consumers(demand.companies)
    disk = formulas.disk(demand.rate * DAY_MEAN, demand.cost.stored * demand.copies, demand.stream_days)
    yield (
        "NATS accounts",
        f"{len(plan.cells)}",
        f"three streams each, at most {demand.stream_rate:,.0f} events/s",
    )
    yield "consumers", f"{assets:,}", "3 a company"
    yield (
        "into the streams",
        f"{stored:.0f} MB/s",
        f"{demand.cost.stored:,.0f} bytes an event, x {demand.copies} copies",
    )
    yield "disk for streams, all", f"{disk:,.0f} TB", f"{demand.stream_days:g} days, {demand.copies} copies"
    yield "NATS servers", f"{plan.nats_servers}", f"because of: {plan.nats_because}"


def checked(demand: Demand) -> str:
    """The simulation's speed of one worker beside the measured one."""
    loads, speeds = costs.loads_from(), costs.speeds_from()
    rows = [("One worker, one company, 2 cores", "simulated", "measured")]
    for name in ("realtime", "mixed", "inbound_new", "repeats"):
        quiet = " to ".join(f"{speed:,.0f}/s" for speed in check.QUIET.get(name, ()))
        measured = f"{speeds[name]:,.0f}/s" if name in speeds else quiet or "not on a quiet machine"
        rows.append((f"a backlog of {name}", f"{check.drain(demand, loads[name]):,.0f}/s", measured))
    p50 = check.latency(demand, loads["realtime"], 100)
    rows.append(("100 messages a second, p50", f"{p50 * 1e3:.2f} ms", f"{check.QUIET_P50 * 1e3:.2f} ms"))
    return table(rows)


def played(outcomes: Sequence[Outcome]) -> str:
    """The scenarios, a row each."""
    head = (
        "What happens",
        "backlog at most",
        "p50",
        "p99",
        "longest",
        "p99 of others",
        "as before after",
        "workers",
        "PostgreSQL",
    )
    return table([head, *(_row(outcome) for outcome in outcomes)])


def _row(outcome: Outcome) -> tuple[str, ...]:
    after = outcome.normal_after
    return (
        outcome.name,
        f"{outcome.most:,}",
        _time(outcome.p50),
        _time(outcome.p99),
        _time(outcome.longest),
        "" if outcome.others_p99 is None else _time(outcome.others_p99),
        "never" if after is None else f"{after:.0f} s" if after else "",
        f"{outcome.workers:.0%}",
        f"{outcome.database:.0%}",
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def cells(plan: Plan) -> str:
    """Each cell's share."""
    rows = [
        ("Cell", "companies", "events/s", "groups", "workers"),
        *(_cell(at, cell) for at, cell in enumerate(plan.cells, 1)),
    ]
    return table(rows)


def _cell(number: int, cell: Cell) -> tuple[str, ...]:
    return (
        f"{number}",
        f"{len(cell.rates)}",
        f"{sum(cell.rates):,.0f}",
        f"{len(cell.groups)}",
        f"{cell.workers}",
    )
