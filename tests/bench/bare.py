"""The bare pipeline, the limit that the processor is measured against: it stores messages and does nothing else.

Pull, decode, one statement a batch into tables of the processor's own shape, commit, acknowledge; the next batch
is pulled and decoded meanwhile. No framework, no validation, no versions, no onboarding, no metrics, no drain: what
stores the same rows on the same two servers can hardly be faster. Run by the bench as a process of its own, it
says `ready` and works until it is killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import datetime
import json
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]

APPLICATION: Final = "bench-bare"
BATCH: Final = 500
# As many as the worker has at most.
CONNECTIONS: Final = 10
_EXPIRES: Final = 1.0
# A request that the server has forgotten, for example while we were stopped.
_FORGOTTEN: Final = 3.0
_DAY: Final = 86_400
_FIRST_DAY: Final = datetime.date(1970, 1, 1)

# The fields of a payload as they are stored, in the order of the statement.
_TEXTS: Final = (
    *("message_id", "chat_id", "agent_id", "company_id", "jid", "flow", "from_phone", "to_phone"),
    *("message_type", "message_text", "message_url", "status"),
)
_OBJECTS: Final = ("message_obj", "key", "last_metadata")
_COLUMNS: Final = (*_TEXTS, *_OBJECTS, "message_timestamp", "message_date")
_REPLACED: Final = ("message_text", "message_url", "message_type", "message_obj", "status", "last_metadata")


class _Message(msgspec.Struct):
    message_id: str
    chat_id: str
    agent_id: str
    company_id: str
    message_timestamp: int
    jid: str = ""
    flow: str = ""
    from_phone: str = ""
    to_phone: str = ""
    message_type: str = ""
    message_text: str = ""
    message_url: str = ""
    status: str = ""
    message_obj: msgspec.Raw = msgspec.Raw(b"null")
    key: msgspec.Raw = msgspec.Raw(b"null")


_decode = msgspec.json.Decoder(_Message).decode


def statement(schema: str) -> str:
    """Writes a batch: one row a message_id over all partitions, and an older event never wins."""
    kinds = dict.fromkeys(_COLUMNS, "text") | {"message_timestamp": "bigint", "message_date": "date"}
    arrays = ", ".join(f"${at}::{kinds[column]}[]" for at, column in enumerate(_COLUMNS, 1))
    names = ", ".join(_COLUMNS)
    values = ", ".join(
        "owned.message_date" if column == "message_date"
        else f"batch.{column}::jsonb" if column in _OBJECTS
        else f"batch.{column}"
        for column in _COLUMNS
    )  # fmt: skip
    replaced = ", ".join(f"{column} = EXCLUDED.{column}" for column in _REPLACED)
    return f"""
        WITH batch AS MATERIALIZED (
            SELECT * FROM unnest({arrays}) AS batch ({names})
        ), owned AS (
            INSERT INTO "{schema}".message_keys AS known (message_id, message_date)
            SELECT message_id, message_date FROM batch ORDER BY message_id
            ON CONFLICT (message_id) DO UPDATE SET message_date = known.message_date
            RETURNING message_id, message_date
        )
        INSERT INTO "{schema}".messages AS stored ({names}, created_at, updated_at)
        SELECT {values}, now(), now() FROM batch JOIN owned ON owned.message_id = batch.message_id
        ON CONFLICT (message_id, message_date) DO UPDATE SET {replaced}, updated_at = EXCLUDED.updated_at
        WHERE (stored.last_metadata ->> 'stream_sequence')::bigint
            <= (EXCLUDED.last_metadata ->> 'stream_sequence')::bigint"""


def row(delivered: Msg) -> tuple[Any, ...]:
    """The values of one message, in the order of the statement."""
    message = _decode(delivered.data)
    # $JS.ACK.<stream>.<durable>.<delivered>.<stream sequence>.<consumer sequence>.<time>.<pending>
    parts = delivered.reply.split(".")
    sequence, stream, durable = parts[-4], parts[2], parts[3]
    metadata = (
        f'{{"stream":"{stream}","consumer":"{durable}","stream_sequence":{sequence},'
        f'"message_subject":"{delivered.subject}"}}'
    )
    return (
        *(message.message_id, message.chat_id, message.agent_id, message.company_id),
        *(message.jid, message.flow, message.from_phone, message.to_phone),
        *(message.message_type, message.message_text, message.message_url, message.status),
        *(bytes(message.message_obj).decode(), bytes(message.key).decode(), metadata),
        message.message_timestamp,
        _FIRST_DAY + datetime.timedelta(days=message.message_timestamp // _DAY),
    )


def durable(schema: str) -> str:
    """The consumer whose messages go into this schema."""
    return f"bench_{schema}"


class Pipeline:
    """Pulls one consumer into one schema."""

    def __init__(self, client: Client, database: Pool, *, stream: str, schema: str) -> None:
        self._client = client
        self._database = database
        self._sql = statement(schema)
        self._pull = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable(schema)}"
        self._inbox = client.new_inbox()
        self._arrived: asyncio.Queue[Msg] = asyncio.Queue()

    async def listen(self) -> None:
        """Before `run`."""
        await self._client.subscribe(self._inbox, cb=self._on_message)

    async def run(self) -> None:
        """Work until cancelled. Whatever fails ends it: the bench notices."""
        order = json.dumps({"batch": BATCH, "no_wait": True, "expires": int(_EXPIRES * 10**9)}).encode()
        writing: asyncio.Task[None] | None = None
        while True:
            await self._client.publish(self._pull, order, reply=self._inbox)
            batch = await self._next()
            if not batch:
                continue
            columns = list(map(list, zip(*map(row, batch), strict=True)))
            if writing is not None:
                await writing
            writing = asyncio.create_task(self._store(batch, columns))

    async def _on_message(self, message: Msg) -> None:
        self._arrived.put_nowait(message)

    async def _next(self) -> list[Msg]:
        """What has arrived when the request is full or over."""
        batch: list[Msg] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(_FORGOTTEN):
                while len(batch) < BATCH:
                    message = await self._arrived.get()
                    if not message.reply:  # a status: the request is over
                        break
                    batch.append(message)
        return batch

    async def _store(self, batch: Sequence[Msg], columns: list[list[Any]]) -> None:
        async with self._database.acquire() as connection, connection.transaction():
            await connection.fetch(self._sql, *columns)
        for message in batch:
            await message.ack()


async def main() -> None:
    """Connect, then run a pipeline for each of the `schemas`; the one argument is JSON."""
    options = json.loads(sys.argv[1])
    schemas = options["schemas"]
    database = await asyncpg.create_pool(
        options["postgres"],
        min_size=1,
        max_size=min(CONNECTIONS, len(schemas)),
        reset=_nothing,
        statement_cache_size=len(schemas),
        max_cached_statement_lifetime=0,
        server_settings={"application_name": APPLICATION},
    )
    client = await nats.connect(options["nats"])
    pipelines = [Pipeline(client, database, stream=options["stream"], schema=schema) for schema in schemas]
    for pipeline in pipelines:
        await pipeline.listen()
    print("ready", flush=True)
    await asyncio.gather(*(pipeline.run() for pipeline in pipelines))


async def _nothing(_: object) -> None:
    """No connection is left in a state that would have to be reset."""


if __name__ == "__main__":
    if sys.platform == "linux":
        # End with the bench, however that ends, also while stopped.
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    asyncio.run(main())
