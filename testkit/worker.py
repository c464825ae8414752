"""The demo's worker: the real `faust -A streams.app worker`, kept by a guard so that it never outlives us."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from testkit import process_guard
from testkit.servers import free_port

PREFERRED_PORT: Final = 8080
START_TIMEOUT: Final = 60.0
# More than the worker's own budget for its drain.
STOP_TIMEOUT: Final = 30.0
_POLL: Final = 0.05
_ROOT: Final = Path(__file__).resolve().parent.parent


class WorkerError(RuntimeError):
    """The worker does not start, or has died; the message is one line that names its log."""


class Worker:
    """One worker process for some companies; in a `with` statement ready on entry, stopped on leaving."""

    def __init__(self, companies: Sequence[str], *, nats_url: str, postgres_dsn: str) -> None:
        self.port = 0
        descriptor, log = tempfile.mkstemp(prefix="daisi-demo-worker-", suffix=".log")
        os.close(descriptor)
        self.log = Path(log)
        self.pid = 0
        self.keep_log = False
        self._environment = {
            **os.environ,
            "COMPANY_ID": ",".join(companies),
            "NATS_URL": nats_url,
            "POSTGRES_DSN": postgres_dsn,
            # Not from this folder: the guard runs its program in /.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")])),
        }
        self._keeper: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Where its web server is."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, timeout: float = 2.0) -> str | None:
        """The page, or None if it is not served (with status 200). Blocks."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=timeout) as answer:
                return str(answer.read().decode())
        except (OSError, urllib.error.URLError):
            return None

    def check(self) -> None:
        """Raises `WorkerError` if the worker is gone."""
        if self._order("status") != "running":
            raise WorkerError(f"the worker has ended: {self._last_words()}")

    def start(self) -> None:
        """Return when the worker is ready. Raises `WorkerError`."""
        self._launch(PREFERRED_PORT if _free(PREFERRED_PORT) else free_port())
        try:
            self._await_ready()
        except WorkerError:
            # Somebody else may have taken the port in the meantime; nothing else gets a second try.
            if _free(self.port):
                raise
            self._dismiss()
            self._launch(free_port())
            self._await_ready()

    def stop(self) -> None:
        """SIGTERM, and the time it needs to drain."""
        if not self.pid:
            return
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT
        while self._order("status") == "running" and time.monotonic() < deadline:
            time.sleep(_POLL)
        self.pid = 0

    def close(self) -> None:
        """Stop the worker if it runs, end its guard, remove its log unless `keep_log`; safe when repeated."""
        self.stop()
        self._dismiss()
        if not self.keep_log:
            self.log.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException as error:
            self.keep_log = isinstance(error, WorkerError)
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.keep_log = self.keep_log or isinstance(error, WorkerError)
        self.close()

    def _launch(self, port: int) -> None:
        self.port = port
        self._keeper = self._hire()
        answer, _, detail = self._order("start").partition(" ")
        if answer != "pid":
            raise WorkerError(f"the worker cannot be started: {detail}")
        self.pid = int(detail)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._listens() or self.get("/ready") is None:
            self.check()
            if time.monotonic() > deadline:
                raise WorkerError(f"the worker is not ready after {START_TIMEOUT:g} s; its log: {self.log}")
            time.sleep(_POLL)

    def _listens(self) -> bool:
        """Whether the port is this worker's: a stranger on it may well be ready."""
        try:
            connections = psutil.Process(self.pid).net_connections("tcp")
        except psutil.Error:
            return False
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == self.port for one in connections)

    def _dismiss(self) -> None:
        keeper, self._keeper, self.pid = self._keeper, None, 0
        if keeper is not None:
            keeper.communicate()

    def _hire(self) -> subprocess.Popen[str]:
        port = str(self.port)
        program = process_guard.Program(
            arguments=[sys.executable, "-m", "faust", "-A", "streams.app", "worker", "--web-port", port],
            folder=tempfile.mkdtemp(prefix="daisi-demo-worker-"),
            log=str(self.log),
            stop_signal=signal.SIGTERM,
        )
        return subprocess.Popen(
            [sys.executable, "-I", process_guard.__file__, program.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**self._environment, "SERVER_PORT": port},
            start_new_session=True,
        )

    def _order(self, order: str) -> str:
        keeper = self._keeper
        if keeper is None or keeper.stdin is None or keeper.stdout is None:
            return "exited"
        try:
            keeper.stdin.write(f"{order}\n")
            keeper.stdin.flush()
            return keeper.stdout.readline().strip()
        except OSError:
            return "exited"

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if '"level": "error"' in line or not line.startswith("{")] or lines
        return f"{_message(said[0])[:300] if said else 'it said nothing'} (its log: {self.log})"


def _message(line: str) -> str:
    try:
        return str(json.loads(line)["msg"])
    except (ValueError, KeyError, TypeError):
        return line.strip()


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
