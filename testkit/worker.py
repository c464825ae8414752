"""The real worker as a child process, and its metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import streams
from testkit.servers import free_port

ROOT: Final = Path(streams.__path__[0]).resolve().parent
START: Final = 60.0
# More than the worker's own limit (STOP_TIMEOUT).
STOP: Final = 40.0
_POLL: Final = 0.05
# Ends the child with the thread that made it, however that ends, also when its process is killed (on Linux only), and
# also when that was before.
_BOUND: Final = (
    "import ctypes, os, sys; sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 9); "
    f"os.getppid() == {os.getpid()} or sys.exit(1); "
    "os.execv(sys.executable, [sys.executable, '-m', 'faust', *sys.argv[1:]])"
)


class WorkerError(RuntimeError):
    """The worker does not start, or has died; the message says what it wrote last."""


def environment(
    companies: Sequence[str], nats_url: str, postgres_dsn: str, **settings: str
) -> dict[str, str]:
    """What an operator sets, and nothing else of this shell but what a program needs to run."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    ours = {"NATS_URL": nats_url, "POSTGRES_DSN": postgres_dsn, "COMPANY_ID": ",".join(companies)}
    return {**kept, **ours, **settings}


class Scrape(NamedTuple):
    """A metrics page, read once."""

    text: str

    def value(self, name: str, **labels: str) -> float:
        """The sum of all series of this name that have these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        having = (line for line in self.text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
        return sum(
            float(line.rpartition(" ")[2]) for line in having if all(label in line for label in wanted)
        )


class Worker:
    """`faust -A streams.app worker` for some companies. Its stdout goes to `log`, its stderr to `errors`.

    `code`: Python to run in place of the `faust` command, with the same arguments.
    """

    def __init__(
        self,
        companies: Sequence[str],
        *,
        nats_url: str,
        postgres_dsn: str,
        log: Path,
        code: str = _BOUND,
        **settings: str,
    ) -> None:
        self.companies = tuple(companies)
        self._code = code
        self.log = log
        self.errors = log.with_suffix(".err")
        self._env = environment(companies, nats_url, postgres_dsn, **settings)
        self.port = int(self._env.setdefault("SERVER_PORT", str(free_port())))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The child. Fails before `start`."""
        assert self._process is not None, "call start() first"
        return self._process

    @property
    def pid(self) -> int:
        """Of the child."""
        return self.process.pid

    @property
    def url(self) -> str:
        """Where its web server is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process is still there."""
        return self.process.poll() is None

    def start(self) -> None:
        """Start the process; returns at once. To be called from the main thread."""
        with self.log.open("ab") as out, self.errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", self._code, "-A", "streams.app", "worker"],
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                # A Ctrl-C in the terminal is for whoever started it.
                start_new_session=True,
            )

    def wait_ready(self, within: float = START) -> None:
        """Return when /ready says READY. Raises `WorkerError`."""
        self.wait_page("/ready", 200, within)

    def wait_page(self, path: str, status: int, within: float = START) -> str:
        """The body, once the page answers with this status. Raises `WorkerError`."""
        deadline = time.monotonic() + within
        while (answer := self.page(path))[0] != status:
            self.check()
            if time.monotonic() > deadline:
                raise WorkerError(f"{path} says {answer}: {self.written()}")
            time.sleep(_POLL)
        return answer[1]

    def check(self) -> None:
        """Raises `WorkerError` if the process has ended."""
        if not self.running:
            raise WorkerError(f"the worker has ended: {self.written()}")

    def page(self, path: str, timeout: float = 6.0) -> tuple[int, str]:
        """Status and body of a page; status 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=timeout) as answer:
                return int(answer.status), str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> dict[str, Any]:
        """What /ready says."""
        answer: dict[str, Any] = json.loads(self.page("/ready")[1])
        return answer

    def scrape(self) -> Scrape:
        """The metrics as they are now."""
        status, text = self.page("/metrics")
        assert status == 200
        return Scrape(text)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal; the exit code, once the process has ended."""
        self.process.send_signal(number)
        return self.process.wait(STOP)

    def kill(self) -> None:
        """End it as a crash would; safe when repeated, and before `start`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def lines(self) -> list[dict[str, Any]]:
        """What it logged; fails if that is not JSON. A line that it is just writing is left out."""
        whole, _, _ = self.log.read_text(encoding="utf-8").rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def written(self) -> str:
        """The end of what it wrote, for a message."""
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in (self.log, self.errors)]
        return "\n".join(text[-1500:] for text in texts)
