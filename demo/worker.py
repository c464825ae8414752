"""The demo's worker: on port 8080 where that is free, its log in a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from testkit.ports import preferred_port
from testkit.worker import Worker, WorkerError

# What the demo decides; every other variable of the shell is passed on.
_OWN: Final = ("COMPANY_ID", "NATS_URL", "POSTGRES_DSN", "SERVER_PORT")


class DemoWorker(Worker):
    """A worker whose errors are one line that names its log."""

    keep_log = False

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
    settings["SERVER_PORT"] = str(preferred_port(8080))
    log = folder / "worker.log"
    worker = DemoWorker(companies, nats_url=nats_url, postgres_dsn=postgres_dsn, log=log, **settings)
    try:
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
