"""The classes of faults of one NATS server and one PostgreSQL."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import Final

import asyncpg
from nats.js.errors import NotFoundError

from events.subjects import HISTORICAL
from testkit.servers import Server
from testkit.worker import Worker
from tests.acceptance.company_probe import DLQ_STREAM, HISTORY_STREAM, REALTIME_STREAM
from tests.faults.compare import deliveries
from tests.faults.environment import MOST_CONNECTIONS, Environment
from tests.faults.fault import Fault, Injection
from tests.faults.letters import BAD, dead_letters_refused
from tests.faults.load import RETRIED
from tests.servers.proxy import Proxy

_OURS: Final = "datname = current_database() AND application_name = 'daisi-wa-events-processor'"
_TRIES: Final = 2000


# The worker.


async def worker_killed(env: Environment) -> None:
    """SIGKILL, and a new one."""
    async for _ in env.rounds(2):
        worker = env.workers[0]
        env.expect_end(worker)
        worker.kill()
        await env.pause(0.0, 0.3)
        env.launch()


async def first_start_killed(env: Environment) -> None:
    """SIGKILL while the worker makes schema, streams and consumers, or takes its first events."""
    async for _ in env.rounds(3):
        worker = env.workers[0]
        env.expect_end(worker)
        worker.kill()
        env.launch()


async def worker_stopped(env: Environment) -> None:
    """SIGTERM, and a new one once it has ended."""
    async for _ in env.rounds(2):
        await _stop(env, env.workers[0])
        if env.fault.without == RETRIED:
            await _nothing_waits(env)
        env.launch()


async def _nothing_waits(env: Environment) -> None:
    for stream, durable in _durables(env)[:2]:
        info = await env.js.consumer_info(stream, durable)
        if info.num_ack_pending:
            env.complain(f"{info.num_ack_pending} events of {durable} wait for their ack wait")


async def _nothing_came_twice(env: Environment) -> None:
    for (stream, durable), subjects in zip(_durables(env), ("v1.*.*", "v1.history.*", "v1.dlq"), strict=True):
        info = await env.js.consumer_info(stream, durable)
        state = (await env.js.stream_info(stream, subjects_filter=f"{subjects}.{env.company}")).state
        there = sum((state.subjects or {}).values())
        delivered = info.delivered.consumer_seq if info.delivered else 0
        if delivered != there:
            env.complain(f"{durable}: {delivered} deliveries of {there} events")


async def worker_frozen(env: Environment) -> None:
    """SIGSTOP for longer than the ack wait: another worker gets what it holds, and then it goes on with it."""
    await asyncio.to_thread(env.launch().wait_ready)
    async for _ in env.rounds(2):
        process = env.rng.choice(env.workers).process
        process.send_signal(signal.SIGSTOP)
        await env.pause(2.5, 4.0)
        process.send_signal(signal.SIGCONT)


async def replicas_join_and_leave(env: Environment) -> None:
    """A second worker comes, the first one goes, and so on; there is always one."""
    async for _ in env.rounds(2):
        await asyncio.to_thread(env.launch().wait_ready)
        await env.pause(0.2, 1.0)
        await _stop(env, env.workers[0])


async def _stop(env: Environment, worker: Worker) -> None:
    # Before that, it is Python itself that the signal ends.
    await asyncio.to_thread(worker.wait_page, "/health", 200)
    env.expect_end(worker)
    code = await asyncio.to_thread(worker.stop)
    if code:
        env.complain(f"a clean stop ended with {code}")


# NATS.


async def nats_killed(env: Environment) -> None:
    """SIGKILL, and a restart on the same store."""
    await _kill(env, env.nats)


async def _kill(env: Environment, server: Server) -> None:
    async for _ in env.rounds(2):
        await asyncio.to_thread(server.kill)
        await env.pause(0.0, 1.0)
        await asyncio.to_thread(server.start)


async def nats_connection_cut(env: Environment) -> None:
    """The connections end, and none is taken for a while."""
    await _cut(env, env.nats_proxy)


async def _cut(env: Environment, proxy: Proxy) -> None:
    proxy.cut()
    await asyncio.sleep(env.outage((0.0, 8.0), (0.2, 1.0)))
    proxy.heal()


async def nats_connection_frozen(env: Environment) -> None:
    """Nothing comes through, then all of it, or the connections are dropped."""
    await _freeze(env, env.nats_proxy)


async def _freeze(env: Environment, proxy: Proxy) -> None:
    proxy.freeze()
    await asyncio.sleep(env.outage((0.5, 14.0), (0.5, 1.5)))
    if env.rng.random() < 0.5:
        proxy.drop()
    proxy.heal()


async def consumer_deleted(env: Environment) -> None:
    """An operator deletes our durables while we use them."""
    async for _ in env.rounds(2):
        env.delivered_before += await deliveries(env.js, env.company)
        for stream, durable in _durables(env):
            if env.rng.random() < 0.7 or stream == REALTIME_STREAM:
                with suppress(NotFoundError):
                    await env.js.delete_consumer(stream, durable)


async def stream_deleted(env: Environment) -> None:
    """An operator deletes the real-time stream while it still holds events that nobody has settled."""
    async with env.admin() as database, database.transaction():
        await database.execute(f'LOCK TABLE "{env.tenant.schema}".messages IN SHARE MODE')
        await env.pause(0.1, 0.4)
        await env.load.hold()
        era = env.load.eras[-1]
        if not await era.read(env.company):
            env.complain("confirmed events are not in the stream that is about to be deleted")
        env.delivered_before += await deliveries(env.js, env.company)
        settled, delivered = await _stands(env)
        await env.js.delete_stream(REALTIME_STREAM)
        await era.close()
    live = [one.version for one in era.published() if one.publication.event_type not in HISTORICAL]
    env.doubtful = frozenset(version for version in live if settled < version.sequence <= delivered)
    env.undelivered = frozenset(version for version in live if version.sequence > delivered)
    env.load.begin_era()
    env.load.go_on()


async def _stands(env: Environment) -> tuple[int, int]:
    """Up to which stream sequence the real-time events are settled, and up to which they are delivered.

    The worker takes no more of them, because it cannot store those that it holds; or there are no more.
    """
    before: object = None
    while True:
        info = await env.js.consumer_info(REALTIME_STREAM, f"wa_realtime_{env.company}")
        assert info.ack_floor is not None
        assert info.delivered is not None
        stands = info.ack_floor.stream_seq, info.delivered.stream_seq
        if stands == before:
            return stands
        before = stands
        await asyncio.sleep(0.2)


def _durables(env: Environment) -> tuple[tuple[str, str], ...]:
    return (
        (REALTIME_STREAM, f"wa_realtime_{env.company}"),
        (HISTORY_STREAM, f"wa_history_{env.company}"),
        (DLQ_STREAM, f"v1_dlq_worker_consumer_{env.company}"),
    )


# PostgreSQL.


async def postgres_killed(env: Environment) -> None:
    """SIGKILL of all its processes, and a restart."""
    await _kill(env, env.postgres)


async def postgres_stopped(env: Environment) -> None:
    """Away for a minute; meanwhile /ready says so."""
    await asyncio.to_thread(env.postgres.stop)
    end = asyncio.get_running_loop().time() + env.outage((60.0, 60.0), (1.0, 2.0))
    await env.until_told("postgres")
    await asyncio.sleep(end - asyncio.get_running_loop().time())
    await asyncio.to_thread(env.postgres.start)


async def postgres_restarted(env: Environment) -> None:
    """Down and up at once."""
    async for _ in env.rounds(2):
        await asyncio.to_thread(env.postgres.restart)


async def backend_ended_idle(env: Environment) -> None:
    """pg_terminate_backend of connections that wait in the pool."""
    async for _ in env.rounds(4):
        await _end_backend(env, "idle")


async def backend_ended_in_transaction(env: Environment) -> None:
    """pg_terminate_backend between two statements of a transaction."""
    async for _ in env.rounds(4):
        await _end_backend(env, "idle in transaction")


async def backend_ended_in_statement(env: Environment) -> None:
    """pg_terminate_backend while a statement runs."""
    async for _ in env.rounds(4):
        async with env.admin() as database, database.transaction():
            # So that one is surely running.
            await database.execute(f'LOCK TABLE "{env.tenant.schema}".messages IN SHARE MODE')
            await _end_backend(env, "active")


async def _end_backend(env: Environment, state: str) -> None:
    """End one of the worker's backends in this state, at a random one of the moments when there is any."""
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS} AND state = $1 LIMIT 1"
    passed_over = env.rng.randrange(5)
    async with env.admin() as database:
        look = await database.prepare(f"SELECT count(*) FROM pg_stat_activity WHERE {_OURS} AND state = $1")
        for _ in range(_TRIES):
            if await look.fetchval(state):
                if passed_over:
                    passed_over -= 1
                elif await database.fetchval(end, state):
                    return
            await asyncio.sleep(0.002)
    env.complain(f"no backend was ever {state}")


async def postgres_connection_cut(env: Environment) -> None:
    """The connections end, and none is taken for a while."""
    await _cut(env, env.postgres_proxy)


async def postgres_connection_frozen(env: Environment) -> None:
    """Nothing comes through, then all of it, or the connections are dropped."""
    await _freeze(env, env.postgres_proxy)


async def read_only(env: Environment) -> None:
    """default_transaction_read_only, as on a primary that was demoted."""
    async with env.admin() as database:
        await database.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await database.execute("SELECT pg_reload_conf()")
        await asyncio.sleep(env.outage((0.5, 8.0), (0.5, 1.0)))
        await database.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await database.execute("SELECT pg_reload_conf()")


async def connections_full(env: Environment) -> None:
    """Others have taken every connection that the server allows, and the worker loses its own."""
    others: list[asyncpg.Connection[asyncpg.Record]] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + env.outage((1.0, 8.0), (0.7, 1.0))
    try:
        async with env.admin("postgres") as database:
            while loop.time() < end:
                await database.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'daisi-wa-events-processor'"
                )
                with suppress(asyncpg.PostgresError, OSError):
                    while len(others) < MOST_CONNECTIONS:
                        others.append(await asyncpg.connect(env.postgres.dsn))
                await asyncio.sleep(0.1)
    finally:
        await asyncio.gather(*(one.close(timeout=5) for one in others), return_exceptions=True)


async def table_locked(env: Environment) -> None:
    """Somebody has locked the messages, for longer than the lock time-out at times."""
    async with env.admin() as database, database.transaction():
        await database.execute(f'LOCK TABLE "{env.tenant.schema}".messages IN ACCESS EXCLUSIVE MODE')
        await asyncio.sleep(env.outage((1.0, 14.0), (0.5, 1.5)))


# Several at once.

_OF_WORKER: Final = (worker_killed, worker_stopped, replicas_join_and_leave)
_OF_NATS: Final = (nats_killed, nats_connection_cut, nats_connection_frozen)
_OF_POSTGRES: Final = (
    *(postgres_killed, postgres_restarted, postgres_connection_cut, postgres_connection_frozen),
    *(read_only, table_locked),
)


async def mixed(env: Environment) -> None:
    """One fault of the worker's, one of NATS's and one of PostgreSQL's, side by side; at times with two workers."""
    if env.rng.random() < 0.5:
        await asyncio.to_thread(env.launch().wait_ready)

    async def later(inject: Injection) -> None:
        await env.pause(0.0, 1.5)
        await inject(env)

    injections = [env.rng.choice(group) for group in (_OF_WORKER, _OF_NATS, _OF_POSTGRES)]
    await asyncio.gather(*map(later, injections))


FAULTS: Final = {
    "worker killed": Fault(inject=worker_killed),
    "first start killed": Fault(inject=first_start_killed, cold=True),
    "worker stopped": Fault(inject=worker_stopped, without=RETRIED, afterwards=_nothing_came_twice),
    "worker frozen beside another": Fault(inject=worker_frozen),
    "replicas join and leave": Fault(inject=replicas_join_and_leave),
    "nats killed": Fault(inject=nats_killed),
    "nats connection cut": Fault(inject=nats_connection_cut, proxies=True),
    "nats connection frozen": Fault(inject=nats_connection_frozen, proxies=True),
    "consumer deleted": Fault(inject=consumer_deleted),
    "stream deleted": Fault(inject=stream_deleted, letters=True),
    "postgres killed": Fault(inject=postgres_killed),
    "postgres stopped": Fault(
        inject=postgres_stopped, rate=30.0, without=RETRIED, afterwards=_nothing_came_twice
    ),
    "postgres restarted": Fault(inject=postgres_restarted),
    "backend ended idle": Fault(inject=backend_ended_idle),
    "backend ended in transaction": Fault(inject=backend_ended_in_transaction),
    "backend ended in statement": Fault(inject=backend_ended_in_statement),
    "postgres connection cut": Fault(inject=postgres_connection_cut, proxies=True),
    "postgres connection frozen": Fault(inject=postgres_connection_frozen, proxies=True),
    "read only": Fault(inject=read_only, without=RETRIED, afterwards=_nothing_came_twice),
    "connections full": Fault(inject=connections_full, without=RETRIED, afterwards=_nothing_came_twice),
    "table locked": Fault(inject=table_locked),
    "dead letters soon": Fault(
        inject=worker_killed,
        drained=True,
        settings={"NATS_DLQBASEDELAYMINUTES": "0.003", "NATS_DLQMAXDELAYMINUTES": "0.01"},
    ),
    "mixed": Fault(inject=mixed, proxies=True),
    "dead letters refused": Fault(inject=dead_letters_refused, often=BAD),
}
