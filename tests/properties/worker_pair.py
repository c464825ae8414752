"""Two real workers of one company, which end in the middle of their work and start anew."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from testkit.worker import Worker
from tests.acceptance.conftest import Launch
from tests.faults.environment import SETTINGS
from tests.properties.worlds import REPLICAS

# While events still come, an update may wait for its row as long as it takes: a real-time one without end, a dead
# letter (2 + 4 + 8 + 16 + 32 s, less a fifth) longer than everything here lasts.
PATIENT: Final = SETTINGS | {
    "NATS_REALTIME_MAXDELIVER": "1000",
    "NATS_REALTIME_NAKMAXDELAY": "1s",
    "NATS_DLQBASEDELAYMINUTES": "0.034",
    "NATS_DLQMAXDELAYMINUTES": "1",
}
PATIENCE: Final = 49.0
# Once every row is there, what still finds none is given up soon.
HASTY: Final = SETTINGS | {
    "NATS_REALTIME_NAKMAXDELAY": "1s",
    "NATS_DLQBASEDELAYMINUTES": "0.003",
    "NATS_DLQMAXDELAYMINUTES": "0.01",
}


class Interruption(NamedTuple):
    """The end of one worker: by SIGKILL or SIGTERM, after which share of the publications, and for how long (s)."""

    after: float
    number: int
    kill: bool
    pause: float


class WorkerPair:
    """The workers; to be used in the main thread."""

    def __init__(self, company: str, launch: Launch) -> None:
        self.kills = 0
        self.stops = 0
        self.settings = PATIENT
        self._company = company
        self._launch = launch
        self._locks = [asyncio.Lock() for _ in range(REPLICAS)]
        self._workers = [self._started() for _ in range(REPLICAS)]

    def _started(self) -> Worker:
        return self._launch(self._company, ready=False, also=self.settings)

    async def ready(self) -> None:
        """Wait until both are, also those that are about to be started anew."""
        for number, lock in enumerate(self._locks):
            async with lock:
                await asyncio.to_thread(self._workers[number].wait_ready)

    async def interrupt(self, interruption: Interruption) -> None:
        """End a worker, and start it anew after a while, with the settings of that moment."""
        async with self._locks[interruption.number]:
            await self._end(self._workers[interruption.number], kill=interruption.kill)
            await asyncio.sleep(interruption.pause)
            self._workers[interruption.number] = self._started()

    async def _end(self, worker: Worker, *, kill: bool) -> None:
        if kill:
            self.kills += 1
            worker.kill()
            return
        self.stops += 1
        # Before that, it is Python itself that the signal ends.
        await asyncio.to_thread(worker.wait_page, "/health", 200)
        code = await asyncio.to_thread(worker.stop)
        assert code == 0, f"a clean stop ended with {code}: {worker.written()}"

    async def stop(self) -> None:
        """Arrival both for good; fails unless both worked until then."""
        await self.ready()
        await asyncio.gather(*(self._end(worker, kill=False) for worker in self._workers))
