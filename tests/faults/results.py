"""What the runs came to, a line of JSON each, and the table that is made of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tests.faults.compare import Outcome

Record = Mapping[str, Any]

_SUMS: Final = (
    "published",
    "stored",
    "exhausted",
    "waiting",
    "gone",
    "lost",
    "doubled",
    "wrong",
    "needless",
    "troubles",
    "server_faults",
    "redelivered",
)
_HEADINGS: Final = (
    "class",
    "runs",
    *(name.replace("_", " ") for name in _SUMS),
    "recovery median, s",
    "recovery max, s",
)


class Results:
    """Runs on record in a file that is only ever added to; those of the `short` form count apart."""

    def __init__(self, path: Path, *, short: bool) -> None:
        self._path = path
        self._short = short
        self._records: list[Record] = []
        if path.exists():
            self._records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def add(self, name: str, seed: int, outcome: Outcome) -> Record:
        """Put a run on record."""
        record = {"class": name, "seed": seed, "short": self._short, **asdict(outcome)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(record)}\n")
        self._records.append(record)
        return record

    def of(self, name: str) -> list[Record]:
        """The runs of a class."""
        return [one for one in self._records if (one["class"], one["short"]) == (name, self._short)]

    def failed(self, names: Iterable[str]) -> list[Record]:
        """The runs in which the promise was not kept."""
        return [one for name in names for one in self.of(name) if one["problems"]]

    def excused(self, names: Iterable[str]) -> list[Record]:
        """The runs that failed by a fault of the server's own, by the evidence on record."""
        return [one for name in names for one in self.of(name) if one.get("server_faults")]

    def table(self, names: Sequence[str]) -> str:
        """A Markdown table with a line for each class, and one for all."""
        lines = [_line(_HEADINGS), _line(["---", *["--:"] * (len(_HEADINGS) - 1)])]
        every: list[Record] = []
        for name in names:
            if records := self.of(name):
                every += records
                lines.append(_line([name, *_cells(records)]))
        if every:
            lines.append(_line(["all", *_cells(every)]))
        return "\n".join(lines)


def _cells(records: Sequence[Record]) -> list[str]:
    recovered = [one["recovered"] for one in records if one["recovered"] is not None]
    times = ["never", "never"]
    if len(recovered) == len(records):
        times = [f"{statistics.median(recovered):.1f}", f"{max(recovered):.1f}"]
    return [str(len(records)), *(str(sum(one.get(name, 0) for one in records)) for name in _SUMS), *times]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
