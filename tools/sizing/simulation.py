"""A cell at work, batch by batch: a discrete-event simulation.

What it takes for granted:

* Events of a company come independently of each other (Poisson), at a rate that stays the same for some seconds:
  a tenth of the time it is three times as high as otherwise on average, and lower the rest.
* A worker is one core. A batch (what has come, up to the most) occupies it for `worker_batch` + n x cost in one piece;
  then the transaction occupies one core of the database for `postgres_batch` + n x cost, its WAL is written at
  `wal_mb` a second, one after the other, and a commit's delay follows. Settling counts with the first part.
* A source has at most two batches in a worker's hands: one is stored while the next is prepared. All replicas
  of a group ask for all its companies, and who gets the next events is chance.
* A worker that is killed loses what it holds: that comes again after the ack wait, as new work, even if it was
  stored. A database that is away keeps its transactions waiting; they begin anew when it is back.
* The core of a worker is its own. Its idle sources and chores make all else take longer, in the database too.
* NATS and the network cost nothing, and never wait: NATS is sized by formula.
* An event costs what the mix costs on average; only an import comes as history batches.
* Times of service do not vary, locks are never waited for, checkpoints and vacuums do not happen. So the simulated
  p99 is a floor, and what matters is how it differs between situations.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any, Final

from tools.sizing.costs import Cost, Fixed
from tools.sizing.parts import Batch, Database, Kind, Sample, Source, Stretch, Worker, poisson, slower_beside
from tools.sizing.plan import Cell, Demand, Group, served
from tools.sizing.waits import Waits

BURST: Final = 3.0
BURST_SHARE: Final = 0.1
BURST_SECONDS: Final = 10.0
_QUIET: Final = (1 - BURST * BURST_SHARE) / (1 - BURST_SHARE)
_OUTSTANDING: Final = 2
HISTORY_MESSAGE: Final = 100  # rows of a history message


class Simulation:
    """One cell, from second 0 on. The same seed, the same course."""

    def __init__(self, demand: Demand, cell: Cell, *, seed: int, steady: bool = False) -> None:
        self.now = 0.0
        self.arrived = 0
        self.served = 0
        self.samples: list[Sample] = []
        self.waits: dict[Kind, Waits] = {"struck": Waits(), "others": Waits(), "aside": Waits()}
        self._demand = demand
        self._fixed: Fixed = demand.fixed
        self._rng = random.Random(seed)
        self._order = itertools.count()
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        idle = served(cell.groups) * demand.fixed.postgres_idle / 1e6 / demand.database_cores
        self.database = Database(demand.database_cores, pace=slower_beside(idle))
        self.groups = [self._crew(at, group) for at, group in enumerate(cell.groups)]
        self.sources = [
            self._source(at, rate, demand.cost, demand.realtime_batch)
            for at, group in enumerate(cell.groups)
            for rate in group.rates
        ]
        for source in self.sources:
            self._doze(source)
            if not steady:
                self._swing(source)
        self._sample()

    @property
    def workers(self) -> list[Worker]:
        """Of all groups."""
        return [worker for group in self.groups for worker in group]

    @property
    def backlog(self) -> int:
        """Events that came and are not stored."""
        for source in self.sources:
            self._draw(source)
        return self.arrived - self.served

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """Put something on the agenda."""
        heapq.heappush(self._agenda, (time, next(self._order), action, arguments))

    def run(self, until: float) -> None:
        """Go on to a moment."""
        agenda = self._agenda
        while agenda and agenda[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(agenda)
            action(*arguments)
        self.now = until

    # What can happen to a cell.

    def kill(self, worker: Worker, back_after: float) -> None:
        """A worker dies, and another takes its place some seconds later."""
        for batch in worker.die():
            self.at(self.now + self._demand.ack_wait, self._redeliver, batch)
        self.at(self.now + back_after, self._revive, worker)
        for source in self.sources:
            if source.group == worker.group:
                self._offer(source)

    def stop_database(self) -> None:
        """The database goes away; what it worked on begins anew later."""
        self.database.up = False
        self.database.waiting.extendleft(reversed(self.database.working))
        self.database.working.clear()

    def start_database(self) -> None:
        """It is back."""
        self.database.up = True
        self._store()

    def backlog_of(self, source: Source, count: int) -> None:
        """So many events of a source are there at once."""
        self._came(source, Stretch(self.now, self.now, count))
        for _ in self.groups[source.group]:
            self._offer(source)

    def multiply(self, source: Source, factor: float) -> None:
        """A company has so many times its usual events from now on."""
        self._pace(source, source.usual * factor)
        source.usual *= factor

    def history(self, group: int, rows: int) -> Source:
        """A company's import of so many rows is there at once; returns its source."""
        most = self._demand.history_batch * HISTORY_MESSAGE
        source = self._source(group, 0.0, self._demand.history, most)
        source.asleep, source.kind = True, "aside"
        self.sources.append(source)
        self.backlog_of(source, rows)
        return source

    # Arrivals.

    def _crew(self, at: int, group: Group) -> list[Worker]:
        pace = slower_beside(len(group.rates) * self._fixed.worker_idle / 1e6)
        return [Worker(at, pace) for _ in range(group.replicas)]

    def _source(self, group: int, rate: float, cost: Cost, most: int) -> Source:
        return Source(group, rate, cost.worker, cost.postgres, cost.wal, most, rate=rate)

    def _came(self, source: Source, stretch: Stretch) -> None:
        source.put(stretch)
        self.arrived += stretch.count

    def _draw(self, source: Source) -> None:
        """Find out what came since the last look; while it is asleep, that is nothing."""
        if source.asleep or source.drawn >= self.now:
            return
        count = poisson(self._rng, source.rate * (self.now - source.drawn))
        if count:
            self._came(source, Stretch(source.drawn, self.now, count))
        source.drawn = self.now

    def _doze(self, source: Source) -> None:
        """Nothing waits: the next arrival wakes it."""
        source.asleep = True
        source.version += 1
        if source.rate > 0:
            self.at(self.now + self._rng.expovariate(source.rate), self._wake, source, source.version)

    def _wake(self, source: Source, version: int) -> None:
        if version == source.version and source.asleep:
            source.asleep, source.drawn = False, self.now
            self._came(source, Stretch(self.now, self.now, 1))
            self._offer(source)

    def _pace(self, source: Source, rate: float) -> None:
        self._draw(source)
        source.rate = rate
        if source.asleep:
            self._doze(source)

    def _swing(self, source: Source, high: bool = False) -> None:
        """A company's rate goes up for some seconds now and then."""
        self._pace(source, source.usual * (BURST if high else _QUIET))
        mean = BURST_SECONDS if high else BURST_SECONDS * (1 / BURST_SHARE - 1)
        self.at(self.now + self._rng.expovariate(1 / mean), self._swing, source, not high)

    # Workers.

    def _offer(self, source: Source) -> None:
        """Give a source's events to one of the replicas that ask for them."""
        if not source.queued:
            return
        group = self.groups[source.group]
        start = self._rng.randrange(len(group))
        for worker in (*group[start:], *group[:start]):
            if worker.alive and worker.asked[source] < _OUTSTANDING and source not in worker.prepared:
                worker.asked[source] += 1
                worker.ready.append(source)
                self._work(worker)
                return

    def _work(self, worker: Worker) -> None:
        while worker.ready and not worker.working:
            source = worker.ready.popleft()
            self._draw(source)
            if not source.queued:
                worker.asked[source] -= 1
                continue
            stretches = source.take()
            batch = Batch(source, worker, stretches, sum(stretch.count for stretch in stretches))
            worker.holds[batch] = None
            seconds = (self._fixed.worker_batch + batch.count * source.worker) / 1e6 * worker.pace
            worker.working, worker.busy = True, worker.busy + seconds
            self.at(self.now + seconds, self._worked, batch)
            if source.queued:
                self._offer(source)
            elif not source.asleep:
                self._doze(source)

    def _worked(self, batch: Batch) -> None:
        if batch.lost:
            return
        worker, source = batch.worker, batch.source
        worker.working = False
        if source in worker.storing:
            worker.prepared[source] = batch
        else:
            self._transact(batch)
        self._work(worker)

    def _transact(self, batch: Batch) -> None:
        worker = batch.worker
        worker.storing.add(batch.source)
        if worker.transactions >= self._demand.pool:
            worker.without_connection.append(batch)
            return
        worker.transactions += 1
        self.database.waiting.append(batch)
        self._store()

    def _redeliver(self, batch: Batch) -> None:
        batch.source.give_back(batch.stretches)
        self._offer(batch.source)

    def _revive(self, worker: Worker) -> None:
        worker.alive = True
        for source in self.sources:
            if source.group == worker.group:
                self._offer(source)

    # The database.

    def _store(self) -> None:
        database = self.database
        while database.up and database.waiting and len(database.working) < database.cores:
            batch = database.waiting.popleft()
            if batch.lost:
                continue
            seconds = (self._fixed.postgres_batch + batch.count * batch.source.postgres) / 1e6 * database.pace
            database.working[batch] = None
            self.at(self.now + seconds, self._stored, batch, seconds)

    def _stored(self, batch: Batch, seconds: float) -> None:
        if batch not in self.database.working:
            return  # the database was away meanwhile
        database = self.database
        del database.working[batch]
        database.busy += seconds
        written = batch.count * batch.source.wal / (self._demand.wal_mb * 1e6)
        database.log_free = max(database.log_free, self.now) + written
        self.at(database.log_free + self._fixed.commit_ms / 1e3, self._committed, batch)
        self._store()

    def _committed(self, batch: Batch) -> None:
        if batch.lost:
            return
        worker, source = batch.worker, batch.source
        self.served += batch.count
        waits = self.waits[source.kind]
        for stretch in batch.stretches:
            waits.add(stretch.since, stretch.until, stretch.count, self.now)
        del worker.holds[batch]
        worker.storing.discard(source)
        worker.asked[source] -= 1
        worker.transactions -= 1
        if worker.without_connection:
            self._transact(worker.without_connection.popleft())
        if (following := worker.prepared.pop(source, None)) is not None:
            self._transact(following)
        self._draw(source)
        self._offer(source)

    def _sample(self) -> None:
        busy = sum(worker.busy for worker in self.workers)
        self.samples.append(Sample(self.now, self.backlog, busy, self.database.busy))
        self.at(self.now + 1, self._sample)
