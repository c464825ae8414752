"""Who is measured: the real worker, or the bare pipeline; each a process that pulls what is published for it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from events.delivery import ConsumerType
from streams.jetstream import specs
from testkit import process_guard
from tests.acceptance.worker import ROOT, Worker
from tests.bench.bare import durable
from tests.bench.scene import BARE_PREFIX, BARE_STREAM, Place, Scene
from tests.bench.trouble import BenchError

_POLL: Final = 0.05
# Without any progress for so long, something is broken. Longer than an ack wait.
_STALLED: Final = 90.0


@dataclass(frozen=True, slots=True)
class Contestant:
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

    async def backlog(self, scene: Scene, role: ConsumerType) -> int:
        """How many events are not settled yet: waiting in the stream, or unacknowledged."""
        return sum([await _unsettled(scene, *consumer) for consumer in self.consumers[role]])

    async def drained(
        self, scene: Scene, role: ConsumerType, look: Callable[[], None] = lambda: None
    ) -> None:
        """Return when every event is settled; `look` is called often. Raises `BenchError` when nothing moves."""
        for consumer in self.consumers[role]:
            left, moved = -1, time.monotonic()
            while now := await _unsettled(scene, *consumer):
                if now != left:
                    left, moved = now, time.monotonic()
                elif time.monotonic() - moved > _STALLED:
                    raise BenchError(
                        f"{self.name}: {now} events are left, and nothing has moved for {_STALLED:g} s"
                    )
                look()
                await asyncio.sleep(_POLL)


async def _unsettled(scene: Scene, stream: str, durable: str) -> int:
    info = await scene.js.consumer_info(stream, durable)
    return int(info.num_pending or 0) + int(info.num_ack_pending or 0)


@asynccontextmanager
async def worker(scene: Scene, place: Place, folder: Path) -> AsyncIterator[Contestant]:
    """The real worker with default settings, ready, for all companies of a place; stopped in the orderly way."""
    process = launch(scene, place, folder)
    try:
        await asyncio.to_thread(process.wait_ready)
        yield contestant(process, place)
        await asyncio.to_thread(process.stop)
    except AssertionError as error:
        raise BenchError(str(error)) from error
    finally:
        process.kill()


def launch(scene: Scene, place: Place, folder: Path) -> Worker:
    """Start a worker; returns at once. Its log goes into a new file of `folder`."""
    log = Path(tempfile.mkdtemp(prefix="worker-", dir=folder)) / "worker.log"
    servers = scene.servers
    process = Worker(place.companies, nats_url=servers.nats.url, postgres_dsn=place.dsn, log=log)
    # From this thread, which lives as long as the bench: the worker ends with the thread that made it.
    process.start()
    return process


def contestant(process: Worker, place: Place) -> Contestant:
    """A worker as what is measured."""
    found: dict[ConsumerType, list[tuple[str, str]]] = {"realtime": [], "historical": [], "dlq": []}
    for tenant in place.tenants:
        for spec in specs.consumers(specs.TopologyConfig(), tenant):
            found[spec.role].append((spec.stream, spec.durable))
    return Contestant("worker", process.process.pid, "", place.schemas, found)


@asynccontextmanager
async def bare(scene: Scene, place: Place) -> AsyncIterator[Contestant]:
    """The bare pipeline, ready, for all companies of a place."""
    arguments = {
        "nats": scene.servers.nats.url,
        "postgres": place.dsn,
        "stream": BARE_STREAM,
        "schemas": ",".join(place.schemas),
    }
    for tenant in place.tenants:
        await scene.consumer(BARE_STREAM, durable(tenant.schema), f"{BARE_PREFIX}v1.*.*.{tenant.company}")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.bench.bare",
            *(f"--{name}={value}" for name, value in arguments.items()),
        ],
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
        yield Contestant("bare", process.pid, BARE_PREFIX, place.schemas, consumers)
    finally:
        process.kill()
        process.communicate()
