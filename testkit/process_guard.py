"""Ends a server and its children; as a program, together with whoever asked for it.

The program takes the folder of a server and the signal that ends it. When its input ends, because the owner closed it
or was killed itself, what runs with this folder in its command line is stopped, and the folder removed. A server whose
owner is killed before its command line says so never begins (`while_owned`).
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from typing import Final

import psutil

PATIENCE: Final = 10.0


def while_owned(command: list[str]) -> list[str]:
    """A command line that runs this command if its parent is still this process. The command keeps the process id."""
    # From the check on, the guard finds it by its arguments; an owner that was gone before has another pid than $PPID.
    return ["/bin/sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid()), *command]


def family(pid: int) -> list[psutil.Process]:
    """The process and its descendants, eldest first; empty when it is gone."""
    try:
        eldest = psutil.Process(pid)
        return [eldest, *eldest.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def signal_family(pid: int, number: int) -> None:
    """Send a signal to the process and its descendants: PostgreSQL's backends have sessions of their own."""
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def stop(pid: int, number: int) -> None:
    """End a process in its orderly way (`number`), paused or not; killed if that takes too long."""
    signal_family(pid, signal.SIGCONT)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).send_signal(number)
    if not _ended(family(pid)[:1]):
        kill(pid)


def kill(pid: int) -> None:
    """End a process and its descendants at once (SIGKILL), as a crash or the out-of-memory killer would."""
    processes = family(pid)
    signal_family(pid, signal.SIGKILL)
    _ended(processes)


def _ended(processes: list[psutil.Process]) -> bool:
    """Wait until none of them holds a port, a file or shared memory any more; a zombie holds nothing."""
    deadline = time.monotonic() + PATIENCE
    while any(map(_alive, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main() -> None:
    """Wait for the end of the owner, and clear up."""
    # A signal to the owner's whole process tree must not leave the server behind: only the input's end counts.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder, stop_signal = sys.argv[1:]
    sys.stdin.read()
    own = psutil.Process()
    for process in psutil.process_iter(["cmdline"]):
        if process != own and any(folder in part for part in process.info["cmdline"] or ()):
            stop(process.pid, int(stop_signal))
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
