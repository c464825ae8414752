"""Who is measured: the real worker, or the bare pipeline; each a process that pulls what is published for it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from events.subjects import ConsumerType
from streams.jetstream import specs
from testkit import process_guard
from testkit.worker import ROOT, Worker, WorkerError
from tests.bench.bare import durable
from tests.bench.environment import BARE_PREFIX, BARE_STREAM, BenchError, Environment, Place
from tests.reconcile import default_settings

_POLL: Final = 0.05
# Without any progress for so long, something is broken. Longer than an ack wait.
_STALLED: Final = 90.0


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
    """A running process, and where it takes events from and puts rows. `prefix` goes before each subject."""

    name: str
    pid: int
    prefix: str
    schemas: list[str]
    consumers: dict[ConsumerType, list[tuple[str, str]]]

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Freeze it (SIGSTOP), so that publishing a backlog costs it nothing."""
        process_guard.signal_family(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            process_guard.signal_family(self.pid, signal.SIGCONT)

    async def backlog(self, env: Environment, role: ConsumerType) -> int:
        """How many events are not settled yet: waiting in the stream, or unacknowledged."""
        return sum([await _unsettled(env, *consumer) for consumer in self.consumers[role]])

    async def drained(self, env: Environment, role: ConsumerType) -> None:
        """Return when every event is settled. Raises `BenchError` when nothing moves."""
        for consumer in self.consumers[role]:
            left, moved = -1, time.monotonic()
            while now := await _unsettled(env, *consumer):
                if now != left:
                    left, moved = now, time.monotonic()
                elif time.monotonic() - moved > _STALLED:
                    raise BenchError(
                        f"{self.name}: {now} events are left, and nothing has moved for {_STALLED:g} s"
                    )
                await asyncio.sleep(_POLL)


async def _unsettled(env: Environment, stream: str, durable: str) -> int:
    info = await env.js.consumer_info(stream, durable)
    return int(info.num_pending or 0) + int(info.num_ack_pending or 0)


@asynccontextmanager
async def worker(env: Environment, place: Place, folder: Path) -> AsyncIterator[SystemUnderTest]:
    """The real worker with default settings, ready, for all companies of a place; stopped in the orderly way."""
    process = launch(env, place, folder)
    try:
        await asyncio.to_thread(process.wait_ready)
        yield under_test(process, place)
        await asyncio.to_thread(process.stop)
    except WorkerError as error:
        raise BenchError(str(error)) from error
    finally:
        process.kill()


def launch(env: Environment, place: Place, folder: Path) -> Worker:
    """Start a worker; returns at once. Its log goes into a new file of `folder`."""
    log = Path(tempfile.mkdtemp(prefix="worker-", dir=folder)) / "worker.log"
    process = Worker(place.companies, nats_url=env.broker.url, postgres_dsn=place.dsn, log=log)
    # From this thread, which lives as long as the bench: the worker ends with the thread that made it.
    process.start()
    return process


def under_test(process: Worker, place: Place) -> SystemUnderTest:
    """A worker as what is measured."""
    found: dict[ConsumerType, list[tuple[str, str]]] = {"realtime": [], "historical": [], "dlq": []}
    for tenant in place.tenants:
        for spec in specs.consumers(default_settings(), tenant):
            found[spec.consumer_type].append((spec.stream, spec.durable))
    return SystemUnderTest("worker", process.process.pid, "", place.schemas, found)


@asynccontextmanager
async def bare(env: Environment, place: Place) -> AsyncIterator[SystemUnderTest]:
    """The bare pipeline, ready, for all companies of a place."""
    js = env.client.jetstream()
    for tenant in place.tenants:
        subject = f"{BARE_PREFIX}v1.*.*.{tenant.company}"
        await js.add_consumer(
            BARE_STREAM, durable_name=durable(tenant.schema), filter_subject=subject, max_ack_pending=-1
        )
    arguments = {
        "nats": env.broker.url,
        "postgres": place.dsn,
        "stream": BARE_STREAM,
        "schemas": place.schemas,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.bare", json.dumps(arguments)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if await asyncio.to_thread(process.stdout.readline) != "ready\n":
            raise BenchError("the bare pipeline does not start")
        consumers: dict[ConsumerType, list[tuple[str, str]]] = {
            "realtime": [(BARE_STREAM, durable(schema)) for schema in place.schemas]
        }
        yield SystemUnderTest("bare", process.pid, BARE_PREFIX, place.schemas, consumers)
    finally:
        process.kill()
        process.communicate()
