"""The classes of faults of one NATS server and one PostgreSQL."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final

import asyncpg
from nats.js.errors import NotFoundError

from events.subjects import HISTORICAL
from tests.acceptance.site import DLQ_STREAM, HISTORY_STREAM, REALTIME_STREAM
from tests.acceptance.worker import Worker
from tests.faults.compare import deliveries
from tests.faults.fault import Fault, Strike, rounds
from tests.faults.letters import BAD, dead_letters_refused
from tests.faults.load import RETRIED
from tests.faults.scene import MOST_CONNECTIONS, Scene

_OURS: Final = "datname = current_database() AND application_name = 'daisi-wa-events-processor'"
_TRIES: Final = 2000


# The worker.


async def worker_killed(scene: Scene) -> None:
    """SIGKILL, and a new one."""
    async for _ in rounds(scene, 2):
        worker = scene.workers[0]
        scene.dismiss(worker)
        worker.kill()
        await scene.pause(0.0, 0.3)
        scene.launch()


async def first_start_killed(scene: Scene) -> None:
    """SIGKILL while the worker makes schema, streams and consumers, or takes its first events."""
    async for _ in rounds(scene, 3):
        worker = scene.workers[0]
        scene.dismiss(worker)
        worker.kill()
        scene.launch()


async def worker_stopped(scene: Scene) -> None:
    """SIGTERM, and a new one once it has ended."""
    async for _ in rounds(scene, 2):
        await _stop(scene, scene.workers[0])
        if scene.plan.without == RETRIED:
            await _nothing_waits(scene)
        scene.launch()


async def _nothing_waits(scene: Scene) -> None:
    for stream, durable in _durables(scene)[:2]:
        info = await scene.js.consumer_info(stream, durable)
        if info.num_ack_pending:
            scene.complain(f"{info.num_ack_pending} events of {durable} wait for their ack wait")


async def _nothing_came_twice(scene: Scene) -> None:
    for (stream, durable), subjects in zip(
        _durables(scene), ("v1.*.*", "v1.history.*", "v1.dlq"), strict=True
    ):
        info = await scene.js.consumer_info(stream, durable)
        state = (await scene.js.stream_info(stream, subjects_filter=f"{subjects}.{scene.company}")).state
        there = sum((state.subjects or {}).values())
        delivered = info.num_delivered.consumer_seq if info.num_delivered else 0
        if delivered != there:
            scene.complain(f"{durable}: {delivered} deliveries of {there} events")


async def worker_frozen(scene: Scene) -> None:
    """SIGSTOP for longer than the ack wait: another worker gets what it holds, and then it goes on with it."""
    await asyncio.to_thread(scene.launch().wait_ready)
    async for _ in rounds(scene, 2):
        process = scene.rng.choice(scene.workers).process
        process.send_signal(signal.SIGSTOP)
        await scene.pause(2.5, 4.0)
        process.send_signal(signal.SIGCONT)


async def replicas_join_and_leave(scene: Scene) -> None:
    """A second worker comes, the first one goes, and so on; there is always one."""
    async for _ in rounds(scene, 2):
        await asyncio.to_thread(scene.launch().wait_ready)
        await scene.pause(0.2, 1.0)
        await _stop(scene, scene.workers[0])


async def _stop(scene: Scene, worker: Worker) -> None:
    # Before that, it is Python itself that the signal ends.
    await asyncio.to_thread(worker.wait_page, "/health", 200)
    scene.dismiss(worker)
    code = await asyncio.to_thread(worker.stop)
    if code:
        scene.complain(f"a clean stop ended with {code}")


# NATS.


async def nats_killed(scene: Scene) -> None:
    """SIGKILL, and a restart on the same store."""
    async for _ in rounds(scene, 2):
        await asyncio.to_thread(scene.nats.kill)
        await scene.pause(0.0, 1.0)
        await asyncio.to_thread(scene.nats.start)


async def nats_connection_cut(scene: Scene) -> None:
    """The connections end, and none is taken for a while."""
    scene.nats_proxy.cut()
    await asyncio.sleep(scene.outage((0.0, 8.0), (0.2, 1.0)))
    scene.nats_proxy.heal()


async def nats_connection_frozen(scene: Scene) -> None:
    """Nothing comes through, then all of it, or the connections are dropped."""
    scene.nats_proxy.freeze()
    await asyncio.sleep(scene.outage((0.5, 14.0), (0.5, 1.5)))
    if scene.rng.random() < 0.5:
        scene.nats_proxy.drop()
    scene.nats_proxy.heal()


async def consumer_deleted(scene: Scene) -> None:
    """An operator deletes our durables while we use them."""
    async for _ in rounds(scene, 2):
        scene.delivered_before += await deliveries(scene.js, scene.company)
        for stream, durable in _durables(scene):
            if scene.rng.random() < 0.7 or stream == REALTIME_STREAM:
                with suppress(NotFoundError):
                    await scene.js.delete_consumer(stream, durable)


async def stream_deleted(scene: Scene) -> None:
    """An operator deletes the real-time stream while it still holds events that nobody has settled."""
    async with scene.admin() as database, database.transaction():
        await database.execute(f'LOCK TABLE "{scene.tenant.schema}".messages IN SHARE MODE')
        await scene.pause(0.1, 0.4)
        await scene.load.hold()
        era = scene.load.eras[-1]
        if not await era.read(scene.company):
            scene.complain("confirmed events are not in the stream that is about to be deleted")
        scene.delivered_before += await deliveries(scene.js, scene.company)
        settled, delivered = await _stands(scene)
        await scene.js.delete_stream(REALTIME_STREAM)
        await era.close()
    live = [one.version for one in era.published() if one.publication.event_type not in HISTORICAL]
    scene.doubtful = frozenset(version for version in live if settled < version.sequence <= delivered)
    scene.undelivered = frozenset(version for version in live if version.sequence > delivered)
    scene.load.begin_era()
    scene.load.go_on()


async def _stands(scene: Scene) -> tuple[int, int]:
    """Up to which stream sequence the real-time events are settled, and up to which they are delivered.

    The worker takes no more of them, because it cannot store those that it holds; or there are no more.
    """
    before: object = None
    while True:
        info = await scene.js.consumer_info(REALTIME_STREAM, f"wa_realtime_{scene.company}")
        assert info.ack_floor is not None
        assert info.num_delivered is not None
        stands = info.ack_floor.stream_seq, info.num_delivered.stream_seq
        if stands == before:
            return stands
        before = stands
        await asyncio.sleep(0.2)


def _durables(scene: Scene) -> tuple[tuple[str, str], ...]:
    return (
        (REALTIME_STREAM, f"wa_realtime_{scene.company}"),
        (HISTORY_STREAM, f"wa_history_{scene.company}"),
        (DLQ_STREAM, f"v1_dlq_worker_consumer_{scene.company}"),
    )


# PostgreSQL.


async def postgres_killed(scene: Scene) -> None:
    """SIGKILL of all its processes, and a restart."""
    async for _ in rounds(scene, 2):
        await asyncio.to_thread(scene.postgres.kill)
        await scene.pause(0.0, 1.0)
        await asyncio.to_thread(scene.postgres.start)


async def postgres_stopped(scene: Scene) -> None:
    """Away for a minute; meanwhile /ready says so."""
    await asyncio.to_thread(scene.postgres.stop)
    end = asyncio.get_running_loop().time() + scene.outage((60.0, 60.0), (1.0, 2.0))
    await scene.until_told("postgres")
    await asyncio.sleep(end - asyncio.get_running_loop().time())
    await asyncio.to_thread(scene.postgres.start)


async def postgres_restarted(scene: Scene) -> None:
    """Down and up at once."""
    async for _ in rounds(scene, 2):
        await asyncio.to_thread(scene.postgres.restart)


async def backend_ended_idle(scene: Scene) -> None:
    """pg_terminate_backend of connections that wait in the pool."""
    async for _ in rounds(scene, 4):
        await _end_backend(scene, "idle")


async def backend_ended_in_transaction(scene: Scene) -> None:
    """pg_terminate_backend between two statements of a transaction."""
    async for _ in rounds(scene, 4):
        await _end_backend(scene, "idle in transaction")


async def backend_ended_in_statement(scene: Scene) -> None:
    """pg_terminate_backend while a statement runs."""
    async for _ in rounds(scene, 4):
        async with scene.admin() as database, database.transaction():
            # So that one is surely running.
            await database.execute(f'LOCK TABLE "{scene.tenant.schema}".messages IN SHARE MODE')
            await _end_backend(scene, "active")


async def _end_backend(scene: Scene, state: str) -> None:
    """End one of the worker's backends in this state, at a random one of the moments when there is any."""
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS} AND state = $1 LIMIT 1"
    passed_over = scene.rng.randrange(5)
    async with scene.admin() as database:
        look = await database.prepare(f"SELECT count(*) FROM pg_stat_activity WHERE {_OURS} AND state = $1")
        for _ in range(_TRIES):
            if await look.fetchval(state):
                if passed_over:
                    passed_over -= 1
                elif await database.fetchval(end, state):
                    return
            await asyncio.sleep(0.002)
    scene.complain(f"no backend was ever {state}")


async def postgres_connection_cut(scene: Scene) -> None:
    """The connections end, and none is taken for a while."""
    scene.postgres_proxy.cut()
    await asyncio.sleep(scene.outage((0.0, 8.0), (0.2, 1.0)))
    scene.postgres_proxy.heal()


async def postgres_connection_frozen(scene: Scene) -> None:
    """Nothing comes through, then all of it, or the connections are dropped."""
    scene.postgres_proxy.freeze()
    await asyncio.sleep(scene.outage((0.5, 14.0), (0.5, 1.5)))
    if scene.rng.random() < 0.5:
        scene.postgres_proxy.drop()
    scene.postgres_proxy.heal()


async def read_only(scene: Scene) -> None:
    """default_transaction_read_only, as on a primary that was demoted."""
    async with scene.admin() as database:
        await database.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await database.execute("SELECT pg_reload_conf()")
        await asyncio.sleep(scene.outage((0.5, 8.0), (0.5, 1.0)))
        await database.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await database.execute("SELECT pg_reload_conf()")


async def connections_full(scene: Scene) -> None:
    """Others have taken every connection that the server allows, and the worker loses its own."""
    others: list[asyncpg.Connection[asyncpg.Record]] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + scene.outage((1.0, 8.0), (0.7, 1.0))
    try:
        async with scene.admin("postgres") as database:
            while loop.time() < end:
                await database.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'daisi-wa-events-processor'"
                )
                with suppress(asyncpg.PostgresError, OSError):
                    while len(others) < MOST_CONNECTIONS:
                        others.append(await asyncpg.connect(scene.postgres.dsn))
                await asyncio.sleep(0.1)
    finally:
        await asyncio.gather(*(one.close(timeout=5) for one in others), return_exceptions=True)


async def table_locked(scene: Scene) -> None:
    """Somebody has locked the messages, for longer than the lock time-out at times."""
    async with scene.admin() as database, database.transaction():
        await database.execute(f'LOCK TABLE "{scene.tenant.schema}".messages IN ACCESS EXCLUSIVE MODE')
        await asyncio.sleep(scene.outage((1.0, 14.0), (0.5, 1.5)))


# Several at once.

_OF_WORKER: Final = (worker_killed, worker_stopped, replicas_join_and_leave)
_OF_NATS: Final = (nats_killed, nats_connection_cut, nats_connection_frozen)
_OF_POSTGRES: Final = (
    *(postgres_killed, postgres_restarted, postgres_connection_cut, postgres_connection_frozen),
    *(read_only, table_locked),
)


async def mixed(scene: Scene) -> None:
    """One fault of the worker's, one of NATS's and one of PostgreSQL's, side by side; at times with two workers."""
    if scene.rng.random() < 0.5:
        await asyncio.to_thread(scene.launch().wait_ready)

    async def later(strike: Strike) -> None:
        await scene.pause(0.0, 1.5)
        await strike(scene)

    strikes = [scene.rng.choice(group) for group in (_OF_WORKER, _OF_NATS, _OF_POSTGRES)]
    await asyncio.gather(*map(later, strikes))


FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        "worker killed": Fault(strike=worker_killed),
        "first start killed": Fault(strike=first_start_killed, cold=True),
        "worker stopped": Fault(strike=worker_stopped, without=RETRIED, afterwards=_nothing_came_twice),
        "worker frozen beside another": Fault(strike=worker_frozen),
        "replicas join and leave": Fault(strike=replicas_join_and_leave),
        "nats killed": Fault(strike=nats_killed),
        "nats connection cut": Fault(strike=nats_connection_cut, proxies=True),
        "nats connection frozen": Fault(strike=nats_connection_frozen, proxies=True),
        "consumer deleted": Fault(strike=consumer_deleted),
        "stream deleted": Fault(strike=stream_deleted, letters=True),
        "postgres killed": Fault(strike=postgres_killed),
        "postgres stopped": Fault(
            strike=postgres_stopped, rate=30.0, without=RETRIED, afterwards=_nothing_came_twice
        ),
        "postgres restarted": Fault(strike=postgres_restarted),
        "backend ended idle": Fault(strike=backend_ended_idle),
        "backend ended in transaction": Fault(strike=backend_ended_in_transaction),
        "backend ended in statement": Fault(strike=backend_ended_in_statement),
        "postgres connection cut": Fault(strike=postgres_connection_cut, proxies=True),
        "postgres connection frozen": Fault(strike=postgres_connection_frozen, proxies=True),
        "read only": Fault(strike=read_only, without=RETRIED, afterwards=_nothing_came_twice),
        "connections full": Fault(strike=connections_full, without=RETRIED, afterwards=_nothing_came_twice),
        "table locked": Fault(strike=table_locked),
        "dead letters soon": Fault(
            strike=worker_killed,
            drained=True,
            settings={"NATS_DLQBASEDELAYMINUTES": "0.003", "NATS_DLQMAXDELAYMINUTES": "0.01"},
        ),
        "mixed": Fault(strike=mixed, proxies=True),
        "dead letters refused": Fault(strike=dead_letters_refused, often=BAD),
    }
)
