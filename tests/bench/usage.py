"""What a process has used: processor time and memory, its children included."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from testkit import process_guard

_PEAK: Final = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_MEGABYTE: Final = 1e6
_EVERY: Final = 0.2


def cpu(pid: int) -> float:
    """Processor seconds (user and system) of a process and its children, those that have ended too."""
    total = 0.0
    for process in process_guard.family(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        # Only Linux reports those of ended children.
        ended = (getattr(times, f"children_{kind}", 0.0) for kind in ("user", "system"))
        total += times.user + times.system + sum(ended)
    return total


class Memory(NamedTuple):
    """Megabytes (10^6 bytes) now, and at most since the process began."""

    now: float
    peak: float


def memory(pid: int) -> Memory:
    """Resident memory. Where the system keeps no peak, it is what there is now."""
    now = sum(_resident(process) for process in process_guard.family(pid))
    try:
        found = _PEAK.search(Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    except OSError:
        found = None
    peak = int(found[1]) * 1024 / _MEGABYTE if found else now
    return Memory(now, max(now, peak))


def _resident(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / _MEGABYTE
    except psutil.NoSuchProcess:
        return 0.0


class Highest:
    """The highest resident memory that was read so far, in megabytes."""

    value = 0.0

    async def watch(self, pid: int) -> None:
        """Take readings until cancelled."""
        while True:
            self.value = max(self.value, memory(pid).now)
            await asyncio.sleep(_EVERY)


@asynccontextmanager
async def watching(pid: int) -> AsyncIterator[Highest]:
    """Take readings until the block ends."""
    highest = Highest()
    task = asyncio.create_task(highest.watch(pid))
    try:
        yield highest
        highest.value = max(highest.value, memory(pid).now)
    finally:
        task.cancel()
