"""`python -m demo`: servers, a worker and traffic, to look at (until Ctrl-C) or to prove (EVENTS=n)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import asyncpg
import nats
from nats.aio.client import Client

from demo.run import Run
from events.subjects import Tenant
from streams.config.scalars import number
from testkit.accounting import Report
from testkit.ports import preferred_port
from testkit.prometheus import RULES, Prometheus
from testkit.publisher import PublishError
from testkit.servers import NatsServer, PostgresServer, ServerError
from testkit.worker import Worker, WorkerError

COMPANIES: Final = ("KopiNusa01", "TokoJaya02")
_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Events a second without a number of them.
_RATE: Final = 50.0
# Between two looks of Prometheus at the worker.
_SCRAPES: Final = "2s"
# Seconds for a server to answer.
_CONNECT: Final = 5
# What the demo decides; every other variable of the shell is passed on.
_OWN: Final = ("COMPANY_ID", "NATS_URL", "POSTGRES_DSN", "SERVER_PORT")


def main() -> int:
    """Run the demo; the exit status: 0 all well, 1 something is wrong."""
    if sys.argv[1:]:
        sys.exit("error: it has no options; the number of events is in the environment: EVENTS=n")
    # Ctrl-C, SIGTERM and a closed terminal all end it in the orderly way, at whatever point it is.
    for end in _ENDS:
        signal.signal(end, _interrupt)
    try:
        events = number(0)(os.environ.get("EVENTS") or "0")
    except ValueError as error:
        sys.exit(f"error: EVENTS: {error}")
    try:
        with ExitStack() as stack:
            return _run(stack, events)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nstopped", flush=True)
        return 1 if events else 0
    except (PublishError, ServerError, WorkerError) as error:
        print(f"\nerror: {error}", file=sys.stderr, flush=True)
        return 1


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _run(stack: ExitStack, events: int) -> int:
    nats_url, dsn = os.environ.get("NATS_URL", ""), os.environ.get("POSTGRES_DSN", "")
    # Rows of an earlier run must not count, so on servers that stay the companies are new each time.
    companies = [f"{name}x{int(time.time()):x}" if nats_url or dsn else name for name in COMPANIES]
    if not nats_url:
        nats_url = stack.enter_context(NatsServer()).url
    if not dsn:
        dsn = stack.enter_context(PostgresServer()).dsn
    asyncio.run(_reachable(nats_url, dsn))
    print("starting the worker: faust -A streams.app worker", flush=True)
    worker = stack.enter_context(_running_worker(companies, nats_url, dsn))
    _print_addresses(worker, _watched(stack, worker), nats_url, dsn, companies)
    return asyncio.run(_drive(worker, nats_url, dsn, companies, events))


def _watched(stack: ExitStack, worker: DemoWorker) -> str:
    """Start Prometheus, if the system has it: where it is, or why there is none. The demo goes on without it."""
    program = shutil.which("prometheus")
    if program is None:
        return "not installed; Debian's package `prometheus` has it"
    jobs = {"demo": [f"127.0.0.1:{worker.port}"]}
    watcher = Prometheus(program, jobs, RULES, interval=_SCRAPES, port=preferred_port(9090))
    try:
        return stack.enter_context(watcher).url
    except ServerError as error:
        return f"none: {error}"


async def _reachable(nats_url: str, dsn: str) -> None:
    """Raises `ServerError`: the worker would wait for its servers, but whoever starts a demo wants to know."""
    # Neither an address nor the text of an error, which may quote it, is told: there may be a password in it.
    try:
        # 0 attempts would mean without end.
        client = await _connected(nats_url, allow_reconnect=False, max_reconnect_attempts=1)
        try:
            await client.jetstream().account_info()
        finally:
            await client.close()
    except (nats.errors.Error, OSError, ValueError, TimeoutError) as error:
        raise ServerError(f"no NATS server with JetStream at NATS_URL: {type(error).__name__}") from error
    try:
        await (await asyncpg.connect(dsn, timeout=_CONNECT)).close()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError, TimeoutError) as error:
        raise ServerError(f"no PostgreSQL at POSTGRES_DSN: {type(error).__name__}") from error


async def _connected(nats_url: str, **reconnecting: Any) -> Client:
    return await nats.connect(
        nats_url.split(","),
        name="daisi demo",
        connect_timeout=_CONNECT,
        error_cb=_ignore,
        **reconnecting,
    )


async def _ignore(_error: Exception) -> None:
    """Errors of the connection come back from the calls that meet them."""


async def _drive(worker: DemoWorker, nats_url: str, dsn: str, companies: Sequence[str], events: int) -> int:
    client = await _connected(nats_url, max_reconnect_attempts=-1)
    run = Run(client, dsn, companies)
    watch = asyncio.create_task(run.watch(worker))
    work: asyncio.Task[Report] = asyncio.create_task(run.prove(events) if events else run.flow(_RATE))
    watch.add_done_callback(lambda _: work.cancel())
    for end in _ENDS:
        asyncio.get_running_loop().add_signal_handler(end, work.cancel)
    try:
        await asyncio.wait([work])
        if watch.done():
            watch.result()
    finally:
        watch.cancel()
        await asyncio.gather(watch, work, return_exceptions=True)
        await run.close()
        await client.close()
    report = work.result()
    print(f"\n{report.text()}", flush=True)
    if not report.ok:
        worker.keep_log = True
        print(f"The worker's log: {worker.log}", flush=True)
    return 0 if report.ok else 1


class DemoWorker(Worker):
    """A worker whose errors are one line that names its log."""

    keep_log = False

    def written(self) -> str:
        """Its first error."""
        said = self.errors.read_text(encoding="utf-8", errors="replace").splitlines()
        said += [str(line.get("msg")) for line in self.lines() if line.get("level") == "error"]
        return f"{said[0][:300] if said else 'it told of no error'} (its log: {self.log})"


@contextmanager
def _running_worker(companies: Sequence[str], nats_url: str, postgres_dsn: str) -> Iterator[DemoWorker]:
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


def _print_addresses(
    worker: DemoWorker, watcher: str, nats_url: str, dsn: str, companies: Sequence[str]
) -> None:
    schema = Tenant(companies[0]).schema
    print(
        f"""
  companies   {", ".join(companies)}
  status page {worker.url}/
  metrics     curl {worker.url}/metrics
  ready       curl {worker.url}/ready
  Prometheus  {watcher}
  PostgreSQL  psql {_shown("POSTGRES_DSN", dsn)} -c 'SELECT * FROM {schema}.messages ORDER BY id DESC LIMIT 5'
  NATS        {_shown("NATS_URL", nats_url)}
  worker log  {worker.log}
""",
        flush=True,
    )


def _shown(variable: str, address: str) -> str:
    """The address of a server of ours; the variable that has another one, with its password perhaps."""
    return f'"${variable}"' if os.environ.get(variable) else address


if __name__ == "__main__":
    sys.exit(main())
