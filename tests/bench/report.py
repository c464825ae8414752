"""The table that is printed, and the file in which the results are kept."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from streams.version import VERSION
from tests.bench.lines import Line
from tests.bench.runs import Runs

_HEADERS: Final = ("", "measured", "against", "", "target", "")
_AGAINST: Final = {
    "drain": "backlog, rows a second against the bare pipeline's real-time messages",
    "paced": "steady rate, publishing to commit, against the bare pipeline",
    "cost": "cost of real-time messages, against the bare pipeline",
    "growth": "growth of a backlog's speed, against one company, 26 partitions, nothing stored",
    "metrics": "/metrics of many companies, compressed as Prometheus asks for it; events beside it, against none",
    "fairness": "real-time latency while one company imports its history, against quiet",
}


def table(lines: Sequence[Line]) -> str:
    """All lines by group, in columns; what falls short is marked."""
    cells = [[line.name, line.measured, line.against, line.shown, line.aim, line.verdict] for line in lines]
    widths = [max(len(row[at]) for row in (list(_HEADERS), *cells)) for at in range(len(_HEADERS))]
    text: list[str] = []
    for group, meaning in _AGAINST.items():
        rows = [row for row, line in zip(cells, lines, strict=True) if line.group == group]
        if rows:
            text += ["", f"{meaning}:", *(_row(row, widths) for row in rows)]
    missed = sum(not line.met for line in lines)
    return "\n".join([*text, "", f"{len(lines) - missed} of {len(lines)} lines are as they should be"])


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *rest = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"  {name}  {'  '.join(rest)}".rstrip()


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


def keep(
    folder: Path, measured: Sequence[Line], behind: Mapping[str, Runs], settings: dict[str, Any]
) -> None:
    """Write `results.json`; what was not measured now stays as an earlier run left it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    lines = {(line["group"], line["name"]): line for line in known.get("lines", ())}
    lines |= {(line.group, line.name): {**line.record(), "at": now} for line in measured}
    runs = known.get("runs", {})
    for name, section in behind.items():
        runs[name] = {"at": now, "version": VERSION, "settings": settings, "lines": section.all()}
    order = list(_AGAINST)
    ordered = sorted(lines.values(), key=lambda line: order.index(line["group"]))
    content = {"machine": _machine(), "lines": ordered, "runs": runs}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
