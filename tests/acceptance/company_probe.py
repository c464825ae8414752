"""One company seen from outside: what is published for it, and what became of that in PostgreSQL and JetStream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo, PubAck

from events.subjects import HISTORICAL, Tenant
from tables.queries import quoted
from tests import builders
from tests.fleets import FLEETS

PATIENCE: Final = 60.0
REALTIME_STREAM: Final = "wa_events_stream"
HISTORY_STREAM: Final = "wa_history_events_stream"
DLQ_STREAM: Final = "dlq_stream"
_POLL: Final = 0.05
_WINDOW: Final = 200

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]


async def comes_to(expected: object, ask: Callable[[], Awaitable[object]], within: float = PATIENCE) -> None:
    """Wait until `ask` answers `expected`; at the deadline the assertion shows the last answer."""
    deadline = time.monotonic() + within
    while (answer := await ask()) != expected and time.monotonic() < deadline:
        await asyncio.sleep(_POLL)
    assert answer == expected


async def comes_true(ask: Callable[[], object], within: float = PATIENCE) -> None:
    """Wait until `ask` (which may block) is true."""

    async def answer() -> bool:
        return bool(await asyncio.to_thread(ask))

    await comes_to(True, answer, within)


@dataclass(frozen=True, slots=True)
class CompanyProbe:
    """A company, a connection to its NATS and one to its database."""

    tenant: Tenant
    nc: Client
    database: Connection
    _published: dict[str, int] = field(
        default_factory=dict, init=False, repr=False
    )  # newest sequence a stream

    @property
    def company(self) -> str:
        """The company."""
        return self.tenant.company

    @property
    def schema(self) -> str:
        """Its schema, quoted."""
        return quoted(self.tenant.schema)

    @property
    def js(self) -> JetStreamContext:
        """JetStream."""
        return self.nc.jetstream()

    async def publish(self, event_type: str, payload: Any = None, **headers: str) -> PubAck:
        """Publish an event: a payload (`company_id` is ours unless it has one of another kind), or a raw body."""
        body = payload if isinstance(payload, bytes) else builders.body(self.of_us(payload))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        ack = await self.js.publish(self.tenant.subject(event_type), body, headers=named or None)
        self.expect(ack.stream, ack.seq)
        return ack

    def expect(self, stream: str, sequence: int) -> None:
        """Let `settled` wait for this one, too, which somebody else has published for us."""
        self._published[stream] = max(sequence, self._published.get(stream, 0))

    async def publish_many(self, event_type: str, payloads: list[Any]) -> None:
        """Publish in order, some at a time, each confirmed."""
        for start in range(0, len(payloads), _WINDOW):
            part = payloads[start : start + _WINDOW]
            await asyncio.gather(*(self.publish(event_type, payload) for payload in part))

    def of_us(self, payload: Any) -> Any:
        """The payload with our company in place of the builders' one, in items too."""
        if isinstance(payload, dict):
            changed = {name: self.of_us(value) for name, value in payload.items()}
            if changed.get("company_id") == builders.COMPANY:
                changed["company_id"] = self.company
            return changed
        return [self.of_us(item) for item in payload] if isinstance(payload, list) else payload

    async def rows(self, table: str, order: str = "id") -> list[dict[str, Any]]:
        """All rows of a table."""
        found = await self.database.fetch(f"SELECT * FROM {self.schema}.{table} ORDER BY {order}")
        return [dict(row) for row in found]

    async def value(self, statement: str, *arguments: object) -> Any:
        """One value; `{schema}` is our schema."""
        return await self.database.fetchval(statement.replace("{schema}", self.schema), *arguments)

    async def execute(self, statement: str) -> None:
        """Run a statement; `{schema}` is our schema."""
        await self.database.execute(statement.replace("{schema}", self.schema))

    async def count(self, table: str) -> int:
        """How many rows a table has."""
        return int(await self.value(f"SELECT count(*) FROM {{schema}}.{table}"))

    async def holds(self, table: str, count: int, within: float = PATIENCE) -> None:
        """Wait until a table has exactly this many rows."""
        await comes_to(count, lambda: self.count(table), within)

    async def consumer(self, stream: str = REALTIME_STREAM) -> ConsumerInfo:
        """Our consumer on a stream."""
        names = {
            REALTIME_STREAM: f"wa_realtime_{self.company}",
            HISTORY_STREAM: f"wa_history_{self.company}",
            DLQ_STREAM: f"v1_dlq_worker_consumer_{self.company}",
        }
        if (prefix := FLEETS.get(self.company)) is not None:
            names = {
                REALTIME_STREAM: f"{prefix}realtime",
                HISTORY_STREAM: f"{prefix}history",
                DLQ_STREAM: f"{prefix}dlq",
            }
        info: ConsumerInfo = await self.js.consumer_info(stream, names[stream])
        return info

    async def settled(self, stream: str = REALTIME_STREAM, within: float = PATIENCE) -> None:
        """Wait until what was published to a stream is delivered, and nothing is pending or unacknowledged."""

        async def open_messages() -> int:
            info = await self.consumer(stream)
            # A consumer hears of a message a moment after its publisher: until then nothing is pending either.
            heard = info.delivered is not None and info.delivered.stream_seq >= self._published.get(stream, 0)
            return (info.num_pending or 0) + (info.num_ack_pending or 0) + (0 if heard else 1)

        await comes_to(0, open_messages, within)

    async def deliveries(self, stream: str = REALTIME_STREAM) -> int:
        """How often the server delivered anything to our consumer, redeliveries included."""
        delivered = (await self.consumer(stream)).delivered
        return 0 if delivered is None else delivered.consumer_seq

    async def letters(self) -> int:
        """How many dead letters we have in the stream, handled or not."""
        subject = self.tenant.subject("v1.dlq")
        state = (await self.js.stream_info(DLQ_STREAM, subjects_filter=subject)).state
        return (state.subjects or {}).get(subject, 0)

    async def letter(self) -> dict[str, Any]:
        """Our newest dead letter."""
        message = await self.js.get_last_msg(DLQ_STREAM, self.tenant.subject("v1.dlq"))
        found: dict[str, Any] = json.loads(message.data or b"")
        return found

    async def trip(self, table: str, condition: str, sqlstate: str) -> None:
        """Let every write of a row with `condition` (of NEW) fail with this SQLSTATE, until `untrip`."""
        await self.execute(
            f"""CREATE FUNCTION {{schema}}.trip_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF {condition} THEN
                    RAISE EXCEPTION 'tripped' USING ERRCODE = '{sqlstate}';
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER trip BEFORE INSERT OR UPDATE ON {{schema}}.{table}
            FOR EACH ROW EXECUTE FUNCTION {{schema}}.trip_{table}()"""
        )

    async def untrip(self, table: str) -> None:
        """Let writes succeed again."""
        await self.execute(
            f"DROP TRIGGER trip ON {{schema}}.{table}; DROP FUNCTION {{schema}}.trip_{table}()"
        )


def stream_of(event_type: str) -> str:
    """The stream that carries this event type."""
    return HISTORY_STREAM if event_type in HISTORICAL else REALTIME_STREAM
