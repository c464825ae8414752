"""The demo's worker: on port 8080 where that is free, its log in a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from testkit.ports import free_port
from testkit.worker import START, Worker, WorkerError

PREFERRED_PORT: Final = 8080
_POLL: Final = 0.05
# What the demo decides; every other variable of the shell is passed on.
_OWN: Final = ("COMPANY_ID", "NATS_URL", "POSTGRES_DSN", "SERVER_PORT")


class DemoWorker(Worker):
    """A worker whose errors are one line that names its log."""

    keep_log = False

    def wait_ready(self, within: float = START) -> None:
        """See `Worker.wait_ready`; a stranger on the port may well be ready."""
        deadline = time.monotonic() + within
        while not self._listens() and time.monotonic() < deadline:
            self.check()
            time.sleep(_POLL)
        super().wait_ready(within)

    def get(self, path: str) -> str | None:
        """The page, or None if it is not served (with status 200). Blocks."""
        status, text = self.page(path, timeout=2.0)
        return text if status == 200 else None

    def check(self) -> None:
        """Raises `WorkerError` if the worker is gone."""
        if not self.running:
            raise WorkerError(f"the worker has ended: {self.written()}")

    def _listens(self) -> bool:
        try:
            connections = psutil.Process(self.pid).net_connections("tcp")
        except psutil.Error:
            return False
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == self.port for one in connections)

    def written(self) -> str:
        """Its first error, else its first line."""
        lines = [line for path in (self.errors, self.log) for line in _lines(path)]
        errors = [line for line in lines if '"level": "error"' in line or not line.startswith("{")] or lines
        return f"{_message(errors[0])[:300] if errors else 'it wrote nothing'} (its log: {self.log})"


@contextmanager
def running_worker(companies: Sequence[str], nats_url: str, postgres_dsn: str) -> Iterator[DemoWorker]:
    """A worker that is ready on entry, and stopped on leaving. Raises `WorkerError`, and keeps the log then."""
    folder = Path(tempfile.mkdtemp(prefix="daisi-demo-worker-"))
    settings = {name: value for name, value in os.environ.items() if name not in _OWN}

    def on(port: int) -> DemoWorker:
        return DemoWorker(
            companies,
            nats_url=nats_url,
            postgres_dsn=postgres_dsn,
            log=folder / "worker.log",
            **settings,
            SERVER_PORT=str(port),
        )

    worker = on(PREFERRED_PORT if _free(PREFERRED_PORT) else free_port())
    try:
        worker.start()
        try:
            worker.wait_ready()
        except WorkerError:
            # Somebody else may have taken the port in the meantime; nothing else gets a second try.
            if _free(worker.port):
                raise
            worker.kill()
            worker = on(free_port())
            worker.start()
            worker.wait_ready()
        yield worker
    except WorkerError:
        worker.keep_log = True
        raise
    finally:
        with suppress(AssertionError, subprocess.TimeoutExpired):
            worker.stop()
        worker.kill()
        if not worker.keep_log:
            shutil.rmtree(folder, ignore_errors=True)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


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
