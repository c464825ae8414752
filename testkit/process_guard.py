"""Keeps one server process, and ends it together with whoever asked for it.

Run as a program, it takes one order a line on standard input and answers each with one line:

    start   -> pid <n> | failed <reason>
    status  -> running | exited
    stop    -> exited        (the server's own orderly way; killed if that takes too long)
    kill    -> exited        (SIGKILL, as a crash or the out-of-memory killer would)

When the input ends, because the owner closed it or was killed itself, the server is stopped and its folder
removed. The guard leads a session of its own, so a Ctrl-C in the owner's terminal does not reach the server.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

import psutil

PATIENCE: Final = 10.0


@dataclass(frozen=True, slots=True)
class Program:
    """A server to run. `uid` and `gid` None: as the guard's own account."""

    arguments: list[str]
    folder: str
    log: str
    stop_signal: int
    uid: int | None = None
    gid: int | None = None

    def to_json(self) -> str:
        """The form in which the guard gets it on its command line."""
        return json.dumps(asdict(self))


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


def _await_end(processes: list[psutil.Process]) -> None:
    """Until none of them holds a port, a file or shared memory any more; a zombie holds nothing."""
    deadline = time.monotonic() + PATIENCE
    while any(map(_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.005)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Guard:
    """The server of one owner."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Start the server unless it runs."""
        if self._server is None or self._server.poll() is not None:
            try:
                self._server = self._spawn()
            except (OSError, subprocess.SubprocessError) as error:
                return f"failed {error}"
        return f"pid {self._server.pid}"

    def status(self) -> str:
        """Whether the server runs."""
        return "running" if self._server is not None and self._server.poll() is None else "exited"

    def stop(self) -> str:
        """End the server in its orderly way, paused or not."""
        if self._server is not None and self._server.poll() is None:
            signal_family(self._server.pid, signal.SIGCONT)
            self._server.send_signal(self._program.stop_signal)
            try:
                self._server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                return self.kill()
        return "exited"

    def kill(self) -> str:
        """End the server and all its children at once."""
        if self._server is not None and self._server.poll() is None:
            processes = family(self._server.pid)
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._server.wait()
            _await_end(processes)
        return "exited"

    def _spawn(self) -> subprocess.Popen[bytes]:
        program = self._program
        with open(program.log, "ab") as log:
            return subprocess.Popen(
                program.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                user=program.uid,
                group=program.gid,
                extra_groups=None if program.uid is None else [],
            )


def _carry_on(_number: int, _frame: object) -> None:
    """Ignores a signal; unlike SIG_IGN, it is not inherited by the server."""


def main() -> None:
    """Serve the owner until it is gone."""
    # A signal to the owner's whole process tree must not leave the server behind: only the input's end counts.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _carry_on)
    program = Program(**json.loads(sys.argv[1]))
    guard = Guard(program)
    orders = {"start": guard.start, "status": guard.status, "stop": guard.stop, "kill": guard.kill}
    try:
        for line in sys.stdin:
            print(orders[line.strip()](), flush=True)
    except OSError:
        pass  # the owner went away while it was being answered
    finally:
        guard.stop()
        shutil.rmtree(program.folder, ignore_errors=True)
        # Nobody reads the answers any more: leave without flushing them.
        os._exit(0)


if __name__ == "__main__":
    main()
