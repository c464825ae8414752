"""The servers of one run, and the databases on them: as many companies, partitions and stored messages as
a line wants."""

from __future__ import annotations

import datetime
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import asyncpg
import nats
from nats.aio.client import Client
from nats.js import JetStreamContext

from events.subjects import Tenant
from streams.jetstream import specs
from tables.connection.pool import Database
from tables.schema.migrations import migrate
from testkit.servers import NatsServer, PostgresServer
from tests.bench.events import KEYS, Load
from tests.reconcile import default_settings

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

APPLICATION: Final = "bench"
# The bare pipeline's stream: the processor's subjects behind this prefix.
BARE_STREAM: Final = "BENCH_BARE"
BARE_PREFIX: Final = "bare."
# What a run leaves in a schema.
_TABLES: Final = (
    *("messages", "message_keys", "chats", "chat_steps", "contacts", "agents", "onboarding_log"),
    *("post_scan_jobs", "exhausted_events"),
)
# Rows in one statement while messages are made.
_SEED_STEP: Final = 250_000
_STEP_PATIENCE: Final = 600.0
# A gigabyte is PostgreSQL's default for the WAL between two checkpoints; the bench makes no more between two runs.
_WAL_MEGABYTES: Final = 2048


class BenchError(RuntimeError):
    """A line cannot be measured; the message says why. The others still can."""


@dataclass(frozen=True, slots=True)
class Place:
    """A database with the schemas of some companies; `stored` messages in all of them together. `connection` is the
    bench's own."""

    dsn: str
    connection: Connection
    tenants: tuple[Tenant, ...]
    stored: int

    @property
    def companies(self) -> list[str]:
        """Their companies."""
        return [tenant.company for tenant in self.tenants]

    @property
    def schemas(self) -> list[str]:
        """Their schemas."""
        return [tenant.schema for tenant in self.tenants]

    async def clear(self) -> None:
        """Equal conditions for the next run: no rows of an earlier one (unless messages are to be stored), and no
        checkpoint that is due."""
        if not self.stored:
            tables = (f'"{schema}".{table}' for schema in self.schemas for table in _TABLES)
            await self.connection.execute(f"TRUNCATE {', '.join(tables)}", timeout=_STEP_PATIENCE)
        await self.checkpoint()

    async def checkpoint(self) -> None:
        """Write out what earlier work has left to be written."""
        await self.connection.execute("CHECKPOINT", timeout=_STEP_PATIENCE)

    async def commits(self, schemas: Sequence[str], load: Load, since: float) -> list[asyncpg.Record]:
        """When each row of a load was last written, after `since` (Unix seconds): `name`, `key` and `at`."""
        tables = load.expected()
        parts = [
            f"""SELECT '{table}' AS name, {KEYS[table]} AS key, at
            FROM (SELECT {KEYS[table]}, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS at
                  FROM "{schema}".{table} WHERE agent_id = ANY ($1::text[])) AS written
            WHERE at >= $2"""
            for schema in schemas
            for table in tables
        ]
        return await self.connection.fetch(" UNION ALL ".join(parts), load.agents, since)

    async def connections(self) -> int:
        """How many connections to this database are not the bench's."""
        return int(
            await self.connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND backend_type = 'client backend' AND NOT starts_with(application_name, $1)",
                APPLICATION,
            )
        )


@dataclass(frozen=True, slots=True)
class Environment:
    """Running servers and a connection to each; what is opened later is closed with `stack`."""

    broker: NatsServer
    postgres: PostgresServer
    client: Client
    admin: Connection
    stack: AsyncExitStack

    @property
    def js(self) -> JetStreamContext:
        """JetStream."""
        return self.client.jetstream()

    async def place(self, name: str, *, companies: int = 1, partitions: int = 0, stored: int = 0) -> Place:
        """A new database, with more partitions than the processor makes by itself if so many are wanted."""
        tenants = tuple(Tenant(f"Bench{name}{number:02}") for number in range(1, companies + 1))
        database = f"bench_{name.lower()}"
        await self.admin.execute(f'CREATE DATABASE "{database}"')
        dsn = self.postgres.dsn_of(database)
        schemas = [tenant.schema for tenant in tenants]
        await _migrate(dsn, schemas)
        connection = await _connect(dsn)
        self.stack.push_async_callback(connection.close)
        for schema in schemas:
            await _partition(connection, schema, partitions)
        if stored:
            for tenant in tenants:
                await _store(connection, tenant, stored // len(tenants))
            await connection.execute("VACUUM (ANALYZE)", timeout=_STEP_PATIENCE)
        return Place(dsn, connection, tenants, stored)

    async def purge(self, *, letters: bool = False) -> None:
        """Empty all streams. Raises `BenchError` if there are dead letters, unless `letters` may be there."""
        topology = default_settings()
        found = (await self.js.stream_info(topology.dlq_stream)).state.messages
        for stream in (*(spec.name for spec in specs.streams(topology)), BARE_STREAM):
            await self.js.purge_stream(stream)
        if found and not letters:
            raise BenchError(f"{found} events became dead letters")


@asynccontextmanager
async def environment() -> AsyncIterator[Environment]:
    """Fresh servers, PostgreSQL with fsync and commit timestamps, and the streams."""
    with NatsServer() as broker, PostgresServer({"fsync": "on", "full_page_writes": "on"}) as postgres:
        async with AsyncExitStack() as stack:
            client = await nats.connect(broker.url)
            stack.push_async_callback(client.close)
            admin = await _connect(postgres.dsn)
            stack.push_async_callback(admin.close)
            await _age(admin)
            bare = specs.StreamSpec(BARE_STREAM, (f"{BARE_PREFIX}>",), 0)
            for spec in (*specs.streams(default_settings()), bare):
                await _create(client, spec)
            yield Environment(broker, postgres, client, admin, stack)


async def _age(admin: Connection) -> None:
    """Give PostgreSQL the WAL files of a server that has run for a while.

    A new one makes them as it goes, and every commit waits meanwhile, some 45 ms for each 16 MB. A history import
    writes several of them a second.
    """
    for name in ("min_wal_size", "max_wal_size"):
        await admin.execute(f"ALTER SYSTEM SET {name} = '{_WAL_MEGABYTES}MB'")
    await admin.execute("SELECT pg_reload_conf()")
    await admin.execute(
        "SELECT pg_logical_emit_message(false, 'bench', repeat('x', 1000000))"
        f" FROM generate_series(1, {_WAL_MEGABYTES})",
        timeout=_STEP_PATIENCE,
    )
    await admin.execute("CHECKPOINT", timeout=_STEP_PATIENCE)


async def _create(client: Client, spec: specs.StreamSpec) -> None:
    subject, body = f"$JS.API.STREAM.CREATE.{spec.name}", json.dumps(spec.config()).encode()
    answer = json.loads((await client.request(subject, body, 5)).data)
    if "error" in answer:
        raise BenchError(f"{spec.name}: {answer['error']['description']}")


async def _connect(dsn: str) -> Connection:
    return await asyncpg.connect(dsn, server_settings={"application_name": APPLICATION, "timezone": "UTC"})


async def _migrate(dsn: str, schemas: Sequence[str]) -> None:
    database = Database(dsn, size=2)
    await database.open()
    try:
        for schema in schemas:
            await migrate(database, schema)
    finally:
        await database.close()


async def _partition(connection: Connection, schema: str, wanted: int) -> None:
    """Add months before the first one until there are `wanted` partitions."""
    children = await connection.fetch(
        "SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = $1::regclass AND c.relname ~ '^messages_y[0-9]{4}m[0-9]{2}$' ORDER BY 1",
        f'"{schema}".messages',
    )
    year, month = map(int, children[0]["relname"].removeprefix("messages_y").split("m"))
    end = datetime.date(year, month, 1)
    for _ in range(wanted - len(children)):
        start = (end - datetime.timedelta(days=1)).replace(day=1)
        await connection.execute(
            f'CREATE TABLE "{schema}".messages_y{start:%Y}m{start:%m} PARTITION OF "{schema}".messages'
            f" FOR VALUES FROM ('{start}') TO ('{end}')"
        )
        end = start


async def _store(connection: Connection, tenant: Tenant, count: int) -> None:
    """Make messages of the last year, in random order of their ids, as if the worker had stored them."""
    await connection.execute("SET synchronous_commit = off")
    for start in range(0, count, _SEED_STEP):
        end = min(start + _SEED_STEP, count)
        await connection.execute(
            _SEED.replace("{schema}", f'"{tenant.schema}"').replace("{company}", tenant.company)
            .replace("{start}", str(start)).replace("{end}", str(end)),
            timeout=_STEP_PATIENCE,
        )  # fmt: skip
    await connection.execute("RESET synchronous_commit")


_SEED: Final = """
WITH made AS (
    SELECT
        '3EB0' || md5('stored ' || n) AS message_id, '628' || lpad((n % 40000)::text, 9, '0') AS phone,
        'agent-stored-' || n % 20 AS agent, (current_date - (n % 365)::int) AS day, n
    FROM generate_series({start}::bigint, {end}::bigint - 1) AS n
), keyed AS (
    INSERT INTO {schema}.message_keys (message_id, message_date) SELECT message_id, day FROM made
)
INSERT INTO {schema}.messages (
    message_id, from_phone, to_phone, chat_id, jid, flow, message_text, message_url, message_type, agent_id,
    company_id, message_obj, key, status, message_timestamp, message_date, last_metadata, created_at, updated_at)
SELECT
    message_id, '628990002222', phone, agent || '_' || phone, phone || '@s.whatsapp.net', 'OUT',
    'stok kopi gayo masih ada ' || n, '', 'conversation', agent, '{company}',
    jsonb_build_object('conversation', 'stok kopi gayo masih ada ' || n),
    jsonb_build_object('id', message_id, 'fromMe', true), 'sent',
    extract(epoch FROM day)::bigint, day,
    jsonb_build_object('stream', 'wa_events_stream', 'stream_sequence', n, 'version', '1700000000000000000-' || n),
    now(), now()
FROM made"""
