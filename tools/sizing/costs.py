"""What an event costs: processor time and bytes, as measured, and blended for a mix of events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

RESULTS: Final = Path(__file__).parents[2] / "docs" / "performance" / "results.json"


class Cost(NamedTuple):
    """Of one event in a full batch: processor microseconds, bytes of WAL, tables with indexes, and the stream."""

    worker: float
    postgres: float
    nats: float
    wal: float
    table: float
    stored: float


# Loads of the bench, an event each of history a row. Processor time of `realtime` in the worker is of the quiet
# sitting in docs/performance.md; the rest is of one run beside other work, which makes it a little too high. Bytes
# are those of bodies of 0.8 to 1 KB right after a checkpoint, full page images included. The old rows that
# `repeats` leaves are used again after a vacuum.
MEASURED: Final[Mapping[str, Cost]] = {
    "realtime": Cost(51, 24, 12, 2300, 1640, 1070),
    "mixed": Cost(60, 30, 14, 2620, 1570, 840),
    "inbound_new": Cost(120, 74, 20, 4730, 3480, 1080),
    "repeats": Cost(95, 35, 15, 5090, 0, 1130),
    "history": Cost(38, 22, 3.5, 2380, 1640, 1010),
}
# The share of new messages in the bench's mixed load.
_MESSAGES_IN_MIXED: Final = 0.70


class Fixed(NamedTuple):
    """What comes on top: processor microseconds of each batch, whatever is in it, and of each second of a company
    that a worker serves (idle pulls, figures, jobs), measured with single events and with 40 idle companies;
    milliseconds of a commit, in which no processor works, so that the p50 at 100 messages a second is as measured.

    `nats_search` is for an event and each company of its stream: every consumer passes over the others' events.
    """

    worker_batch: float = 360
    postgres_batch: float = 250
    nats_batch: float = 150
    worker_idle: float = 900
    postgres_idle: float = 1600
    nats_idle: float = 530
    nats_search: float = 0.5
    commit_ms: float = 0.07


class Mix(NamedTuple):
    """Shares. `messages`: new messages among real-time events, the others being updates, chats and contacts as
    15 : 10 : 5; `new_phones` of these messages are the first of a contact; `repeats` of the real-time events are
    stored already; `history` of everything are rows of history imports."""

    messages: float = 0.70
    new_phones: float = 0.02
    repeats: float = 0.01
    history: float = 0.05

    def weights(self) -> dict[str, float]:
        """Kind of event -> its share; together 1."""
        live = 1 - self.history
        fresh = live * (1 - self.repeats)
        return {
            "realtime": fresh * self.messages * (1 - self.new_phones),
            "inbound_new": fresh * self.messages * self.new_phones,
            "other": fresh * (1 - self.messages),
            "repeats": live * self.repeats,
            "history": self.history,
        }


def others(loads: Mapping[str, Cost]) -> Cost:
    """What an event costs that is no new message: what is left of the mixed load without its messages."""
    share = _MESSAGES_IN_MIXED
    pairs = zip(loads["mixed"], loads["realtime"], strict=True)
    return Cost(*(max((mixed - share * message) / (1 - share), 0.0) for mixed, message in pairs))


def blend(loads: Mapping[str, Cost], mix: Mix) -> Cost:
    """What an event of the mix costs on average."""
    kinds = {**loads, "other": others(loads)}
    weights = mix.weights()
    return Cost(
        *(sum(share * kinds[kind][at] for kind, share in weights.items()) for at in range(len(Cost._fields)))
    )


def loads_from(results: Path = RESULTS) -> dict[str, Cost]:
    """`MEASURED`, with the processor times of the bench's results on this machine where there are some."""
    loads = dict(MEASURED)
    for name, run in _runs(results).items():
        if name in loads:
            cpu = {field: float(run[key]) for field, key in _FIELDS if key in run}
            loads[name] = loads[name]._replace(**cpu)
    return loads


_FIELDS: Final = (("worker", "cpu_us"), ("postgres", "postgres_cpu_us"), ("nats", "nats_cpu_us"))


def speeds_from(results: Path = RESULTS) -> dict[str, float]:
    """Load -> events a second at which one worker drained it, as the bench kept it."""
    return {name: float(run["per_s"]) for name, run in _runs(results).items() if "per_s" in run}


def _runs(results: Path) -> dict[str, dict[str, Any]]:
    """The fastest run of the worker on each load."""
    if not results.exists():
        return {}
    lines = json.loads(results.read_text(encoding="utf-8")).get("runs", {}).get("matrix", {}).get("lines", {})
    drains = {name: runs["worker"] for name, runs in lines.items() if runs.get("worker")}
    return {name: max(runs, key=_speed) for name, runs in drains.items()}


def _speed(run: Mapping[str, Any]) -> float:
    return float(run.get("per_s", 0.0))
