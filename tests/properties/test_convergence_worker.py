"""The property of `test_convergence_property`, with real workers on real servers, and workers that are killed.

Two workers of a company share its consumers. The worlds are published as events and dead letters (`script`), while
workers end and start anew (`worker_pair`): what these held is delivered again. The oracle gets the versions that
JetStream gave. Rows of the existing service are there before the workers start.

An update without a row is given up at last, so nothing may count as lost that only came late: the workers begin with
much patience, and are started anew with little once each row is there that has to be.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

import asyncpg
import nats
import pytest
from hypothesis import given
from nats.js.errors import NotFoundError

from events.subjects import Tenant
from tables.connection.pool import Database
from tables.schema.migrations import migrate
from testkit.evidence import backlog, gather_rows
from testkit.oracle import Published, expected, facts
from testkit.servers import PostgresServer
from tests.acceptance.company_probe import DLQ_STREAM, HISTORY_STREAM, REALTIME_STREAM, CompanyProbe, comes_to
from tests.acceptance.conftest import Launch
from tests.conftest import _administer
from tests.properties.conftest import SOAK, cases, takes_long
from tests.properties.outcome import leave, problems, rows_of
from tests.properties.script import Publishing, Script
from tests.properties.worker_pair import HASTY, PATIENCE, Interruption, WorkerPair
from tests.properties.worlds import FAMILIES, REPLICAS, Builder, World, worlds

# Worlds of a family, and how many are played at a time.
WORLDS: Final = 1040 if SOAK else 70
AT_A_TIME: Final = 260
# Interruptions while events come; one more ends each worker when the last event has come.
INTERRUPTIONS: Final = 4 if SOAK else 1
# Own times of events lie around the moments when these are stored.
_BEFORE: Final = 4
# The share of the publications that come between the pause before a interruption and the interruption.
_LEAD: Final = 0.08
_DRAIN: Final = 120.0
_SHOWN: Final = 20

pytestmark = takes_long


class Servers(NamedTuple):
    """Where a case is played."""

    nats_url: str
    postgres: PostgresServer
    folder: Path


@pytest.fixture
def servers(nats_url: str, postgres_server: PostgresServer, tmp_path: Path) -> Servers:
    """The session's servers."""
    return Servers(nats_url, postgres_server, tmp_path)


@pytest.mark.rule("VER-9", "RUN-12")
@pytest.mark.parametrize("family", FAMILIES if SOAK else ["everything"])
def test_workers_that_are_killed_leave_the_rows_of_the_model(
    servers: Servers, family: str, record_property: Callable[[str, object], None]
) -> None:
    """Two workers, killed and stopped and started anew, with dead letters in between."""
    drawn = _drawn(family)
    figures: Counter[str] = Counter()
    for start in range(0, len(drawn), AT_A_TIME):
        seed = random.randrange(10**6) if SOAK else 1
        figures += asyncio.run(_play(servers, drawn[start : start + AT_A_TIME], seed))
    told = ", ".join(f"{name} {count}" for name, count in figures.items())
    record_property("convergence", f"{family}: {told}, differences 0")


def _drawn(family: str) -> list[World]:
    """Drawn one by one: so many would be more than one case of hypothesis may hold."""
    found: list[World] = []

    @cases(normal=WORLDS, soak=WORLDS)
    @given(worlds(family, most=9))
    def draw(world: World) -> None:
        found.append(world)

    draw()
    return found


async def _play(servers: Servers, drawn: Sequence[World], seed: int) -> Counter[str]:
    base = (int(time.time()) - _BEFORE) // 6 * 6
    tenant = Tenant(f"Kopi{uuid4().hex[:12].upper()}nusa")
    built = [Builder(world, base, tenant.company) for world in drawn]
    async with _probe(servers, tenant) as (dsn, probe):
        await _adopt(dsn, tenant, built)
        launch = Launch(servers.folder, servers.nats_url, dsn)
        try:
            pair = WorkerPair(tenant.company, launch)
            await pair.ready()
            figures = await _Case(probe, pair, built, seed).play()
            await pair.stop()
        finally:
            launch.kill_all()
        logged_errors = launch.logged_errors()
        assert not logged_errors, logged_errors[:5]
    return figures


@asynccontextmanager
async def _probe(servers: Servers, tenant: Tenant) -> AsyncIterator[tuple[str, CompanyProbe]]:
    """A database of its own, and the company's probe."""
    name = f"test_{uuid4().hex}"
    dsn = servers.postgres.dsn_of(name)
    async with AsyncExitStack() as stack:
        await _administer(servers.postgres.dsn, f"CREATE DATABASE {name}")
        stack.push_async_callback(_administer, servers.postgres.dsn, f"DROP DATABASE {name} WITH (FORCE)")
        client = await nats.connect(servers.nats_url)
        stack.push_async_callback(client.close)
        database = await asyncpg.connect(dsn)
        stack.push_async_callback(database.close)
        yield dsn, CompanyProbe(tenant, client, database)


async def _adopt(dsn: str, tenant: Tenant, built: Sequence[Builder]) -> None:
    """Leave the rows of the existing service, before any worker starts: then it looks which keys are missing."""
    adopted = [row for world in built for row in world.adopted]
    if not adopted:
        return  # the workers make the schema, both at a time
    database = Database(dsn, size=1)
    await database.open()
    try:
        await migrate(database, tenant.schema)
        async with database.transaction() as connection:
            await leave(connection, tenant, adopted)
    finally:
        await database.close()


class _Case:
    """Some worlds played by a pair."""

    def __init__(self, probe: CompanyProbe, pair: WorkerPair, built: Sequence[Builder], seed: int) -> None:
        self._probe = probe
        self._pair = pair
        self._worlds = len(built)
        self._seed = seed
        self._chance = random.Random(seed)
        self._elsewhere = f"{probe.company}Lost"
        self._script = Script(built, self._elsewhere, self._chance)

    async def play(self) -> Counter[str]:
        """Publish all of it, wait until nothing waits any more, and compare."""
        begun = time.monotonic()
        events = await self._publish()
        await self._all_there(events)
        waited = time.monotonic() - begun
        self._pair.settings = HASTY
        async with asyncio.TaskGroup() as tasks:
            for number, kill in enumerate(self._chance.sample((True, False), REPLICAS)):
                tasks.create_task(self._pair.interrupt(Interruption(1.0, number, kill, 0.0)))
        await self._drained()
        evidence = await gather_rows(self._probe.database, self._probe.company)
        found = problems(self._probe.company, events, self._script.adopted, evidence)
        versions = {event.publication.number: event.version for event in events}
        assert not found, (
            f"{len(found)} differences, seed {self._seed}: {found[:_SHOWN]}\n"
            f"{self._script.described(str(found[:_SHOWN]), versions)}\n"
            f"(the rows took {waited:.0f} s; dead letters have a patience of {PATIENCE:.0f} s)"
        )
        return await self._figures()

    async def _publish(self) -> list[Published]:
        publishing = Publishing(self._probe, self._chance)
        await publishing.follow(self._probe.company, self._elsewhere)
        interruptions = self._interruptions()
        # Both work again before the next one ends; mostly.
        pauses = [interruption.after - _LEAD for interruption in interruptions if self._chance.random() < 0.8]
        async with asyncio.TaskGroup() as tasks:
            async for share in publishing.run(self._script):
                while interruptions and interruptions[0].after <= share:
                    tasks.create_task(self._pair.interrupt(interruptions.pop(0)))
                while pauses and pauses[0] <= share:
                    pauses.pop(0)
                    await self._pair.ready()
        events = await publishing.published(self._script)
        await publishing.close()
        return events

    def _interruptions(self) -> list[Interruption]:
        """Each second one is a SIGKILL at least."""
        chance = self._chance
        return sorted(
            Interruption(
                after=chance.uniform(0.1, 0.95),
                number=chance.randrange(REPLICAS),
                kill=place % 2 == 0 or chance.random() < 0.5,
                pause=chance.uniform(0, 0.3),
            )
            for place in range(INTERRUPTIONS)
        )

    async def _all_there(self, events: Sequence[Published]) -> None:
        """Wait until every row is there, whatever it holds. What never comes, the comparison will miss."""
        wanted = expected(facts(events), rows_of(self._script.adopted)).rows
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            evidence = await gather_rows(self._probe.database, self._probe.company)
            if all(rows.keys() <= evidence.rows[table].keys() for table, rows in wanted.items()):
                return
            await asyncio.sleep(0.2)

    async def _drained(self) -> None:
        """Wait until nothing waits in any consumer, dead letters included."""
        await comes_to(0, self._lag, _DRAIN)
        # A dead letter is in its stream before its event is settled.
        await comes_to(0, self._letters_waiting, _DRAIN)

    async def _lag(self) -> int:
        return (await backlog(self._probe.js, self._probe.company)).lag

    async def _letters_waiting(self) -> int:
        info = await self._probe.consumer(DLQ_STREAM)
        try:
            last = await self._probe.js.get_last_msg(DLQ_STREAM, self._probe.tenant.subject("v1.dlq"))
        except NotFoundError:
            return 0
        heard = info.delivered is not None and info.delivered.stream_seq >= (last.seq or 0)
        return (info.num_pending or 0) + (info.num_ack_pending or 0) + (0 if heard else 1)

    async def _figures(self) -> Counter[str]:
        streams = (REALTIME_STREAM, HISTORY_STREAM)
        deliveries = sum([await self._probe.deliveries(stream) for stream in streams])
        events = sum(not self._script.is_lost(one) for one in self._script.publications)
        return Counter(
            {
                "worlds": self._worlds,
                "events": events,
                "deliveries": deliveries,
                "redelivered": deliveries - events,
                "dead letters": await self._probe.letters(),
                "of these of the script": self._script.letters,
                "kills": self._pair.kills,
                "stops": self._pair.stops,
            }
        )
