"""One embedded server: a process on a port of this machine, with its data in a folder of its own.

A guard process (`testkit.process_guard`) sees to it that nothing is left over even when the owner is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final, Self

import psutil

from testkit import process_guard
from testkit.binaries import Account, ServerError, as_account
from testkit.ports import free_port as free_port

START_TIMEOUT: Final = 30.0
_POLL: Final = 0.02


class Server(ABC):
    """One server process; its port and its data outlive `stop` and `kill`, and go with `close`.

    Used in a `with` statement, it is started and closed.
    """

    name: str
    stop_signal: signal.Signals

    def __init__(self, account: Account | None = None) -> None:
        self.port = 0
        self.pid = 0
        self._account = account
        self._folder = Path()
        self._guard: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when the server answers, on the port and data it had before, if any. Raises `ServerError`."""
        if self._guard is None:
            self._guard = self._start_guard()
        self.port = self.port or free_port()
        self._log.write_bytes(b"")
        self._configure()
        if not self.running:
            self._process = self._spawn()
            self.pid = self._process.pid
        try:
            self._await_ready()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End in the orderly way; the data stays."""
        if self.running:
            process_guard.stop(self.pid, self.stop_signal)
        self._gone()

    def kill(self) -> None:
        """End as in a crash (SIGKILL); the data stays as it is."""
        if self.running:
            process_guard.kill(self.pid)
        self._gone()

    def _gone(self) -> None:
        if self._process is not None:
            self._process.wait()
        self.pid = 0

    def restart(self) -> None:
        """Stop, then start on the same port and data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server with all its processes: connections stay open, and nobody answers."""
        process_guard.signal_family(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        process_guard.signal_family(self.pid, signal.SIGCONT)

    @property
    def running(self) -> bool:
        """Whether the process is there (also while paused)."""
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """End the server, its guard and its data; safe when repeated."""
        self.stop()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.communicate()
            # Once more, in case the guard was killed.
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _arguments(self) -> list[str]:
        """The command line; it names the server's folder."""

    @abstractmethod
    def _configure(self) -> None:
        """Write the configuration for `self.port`, and the first data."""

    def _ready(self) -> bool:
        """Whether this very process, not a stranger on its port, takes clients."""
        try:
            connections = psutil.Process(self.pid).net_connections("tcp")
        except psutil.Error:  # it has just ended
            return False
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == self.port for one in connections)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not (self.running and self._ready()):
            if not self.running:
                raise ServerError(f"{self.name} ended while starting: {self._log_tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name} does not answer in {START_TIMEOUT:g} s: {self._log_tail()}")
            time.sleep(_POLL)

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _start_guard(self) -> subprocess.Popen[bytes]:
        self._folder = _own_folder(self.name, self._account)
        return subprocess.Popen(
            [sys.executable, "-I", process_guard.__file__, str(self._folder), str(int(self.stop_signal))],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                process_guard.while_owned(self._arguments()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                **as_account(self._account),
                # A Ctrl-C in the terminal is for the owner.
                start_new_session=True,
            )

    def _log_tail(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-6:] if line.strip()) or "its log is empty"


def _own_folder(name: str, account: Account | None) -> Path:
    """A fresh folder that belongs to the server's account, at a place where that account may go."""
    place = Path(tempfile.gettempdir())
    if account and not all(each.stat().st_mode & stat.S_IXOTH for each in (place, *place.parents)):
        place = Path("/tmp")
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=place))
    if account:
        os.chown(folder, account.pw_uid, account.pw_gid)
    return folder
