"""Two workers without NATS: the real agents on pools of their own, and a JetStream played in memory."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from agents.batch_writer import BatchWriter
from agents.dead_letter_publisher import DeadLetterPublisher
from agents.dead_letter_replay import DeadLetterReplayer
from agents.event_writer import EventWriter
from agents.history_throttle import HistoryThrottle
from agents.onboarding import Onboarding
from agents.received_event import ReceivedEvent
from agents.routing import Routing
from agents.settlement import DeadLetterSettlement, Settlement
from events.delivery import Batch, MessageMetadata
from events.subjects import ConsumerType, Tenant, consumer_type
from tables.connection.pool import Database
from tables.tenant import TenantTables
from tests.unit.fakes import LIMITS

_Item = TypeVar("_Item")
PATIENCE: Final = 60.0  # seconds
WORKERS: Final = 8


class Delivery:
    """One message in a replica's hands; `settled` is how it ended."""

    def __init__(self, message: Message, delivered: int, made: int) -> None:
        self.message = message
        self.subject = message.subject
        self.data = message.data
        self.headers: Mapping[str, str] | None = message.headers
        self.metadata = MessageMetadata(
            message.stream, "durable", "", message.sequence, message.sequence, delivered, message.ns, 0, made
        )
        self.received = time.perf_counter()
        self.settled: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def ack(self) -> None:
        self.settled.set_result("ack")

    async def nak(self, delay: float = 0.0) -> None:
        self.settled.set_result("nak")

    async def term(self) -> None:
        self.settled.set_result("term")


@dataclass(eq=False)
class Message:
    """A message in a stream. It is gone from its consumer once it was acknowledged or ended."""

    stream: str
    subject: str
    data: bytes
    ns: int
    sequence: int
    headers: Mapping[str, str] | None = None
    num_delivered: int = 0
    outcome: str = ""
    made: int = 0  # when its stream was made; 0: nobody knows
    half_known: bool = False  # one of the replicas does not know that

    def deliver(self, attempt: int = 0, *, unaware: bool = False) -> Delivery:
        """The next delivery of it, by a replica that may be `unaware`; `attempt` if it is to count as another."""
        self.num_delivered += 1
        made = 0 if self.half_known and unaware else self.made
        return Delivery(self, attempt or self.num_delivered, made)


class DeadLetterStream:
    """Keeps envelopes; one `Nats-Msg-Id` is stored once, unless the duplicate window is over each time."""

    forgetful = False

    def __init__(self) -> None:
        self.letters: dict[str, Message] = {}
        self._sequences = itertools.count(1)

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> None:
        await asyncio.sleep(0)
        json.loads(body)  # an envelope is JSON, whatever the event was
        sequence = next(self._sequences)
        name = str(sequence) if self.forgetful else headers["Nats-Msg-Id"]
        self.letters.setdefault(name, Message("dlq_stream", subject, body, time.time_ns(), sequence, headers))

    def waiting(self) -> list[Message]:
        """The envelopes that have not come to their end."""
        return [letter for letter in self.letters.values() if not letter.outcome]


class Meter:
    """Counts what ended how; nothing else is of interest."""

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()

    def settled(self, company: str, event_type: str, action: str, error_type: str, *seconds: float) -> None:
        self.errors[error_type] += 1

    def __getattr__(self, verb: str) -> Callable[..., None]:
        return lambda *values, **named: None


@dataclass(eq=False)
class Replica:
    """One worker: its pool, its tables and its agents."""

    database: Database
    tenant: Tenant
    stream: DeadLetterStream
    unaware: bool = False  # of when streams were made, where that is half known
    meter: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        self.tables = TenantTables(self.database, self.tenant.schema, lambda *_: None)
        self._stored: asyncio.Queue[Sequence[ReceivedEvent]] = asyncio.Queue()
        self._batches: asyncio.Queue[Batch] = asyncio.Queue()
        meter: Any = self.meter
        throttle = HistoryThrottle()
        letters = DeadLetterPublisher(
            publisher=self.stream,
            stream="dlq_stream",
            tables=lambda _: self.tables,
            meter=meter,
            health=meter,
        )
        settlement = Settlement(dead_letters=letters, subject="v1.dlq", meter=meter)
        writer = EventWriter(
            tables=lambda _: self.tables, writer=BatchWriter("storing", meter), throttle=throttle
        )
        onboarding = Onboarding(
            tables=lambda _: self.tables,
            writer=BatchWriter("onboarding", meter),
            settlement=settlement,
            meter=meter,
            send=self._stored.put,
        )
        self.routing = Routing(
            writer=writer,
            settlement=settlement,
            onboarding=onboarding,
            policies=LIMITS,
            throttle=throttle,
            meter=meter,
        )
        policy = LIMITS["dlq"]
        self.dlq = DeadLetterReplayer(
            writer=writer,
            onboarding=onboarding,
            settlement=DeadLetterSettlement(tables=lambda _: self.tables, policy=policy, meter=meter),
            policy=policy,
            workers=WORKERS,
            meter=meter,
        )
        self._agents = [
            asyncio.create_task(_drive(onboarding.run(_items(self._stored)))),
            asyncio.create_task(_drive(self.routing.run(_items(self._batches)))),
        ]

    async def close(self) -> None:
        """End the agents and the pool."""
        for agent in self._agents:
            agent.cancel()
            with suppress(asyncio.CancelledError):
                await agent
        await self.database.close()

    async def take(self, messages: Iterable[Message], *, last_try: bool = False) -> None:
        """Handle messages as batches of their two consumers, side by side."""
        batches: dict[ConsumerType, list[Delivery]] = {"realtime": [], "historical": []}
        for message in messages:
            role = consumer_type(message.subject.rpartition(".")[0])
            attempt = LIMITS[role].max_deliver if last_try else 0
            batches[role].append(message.deliver(attempt, unaware=self.unaware))
        for kind, deliveries in batches.items():
            if deliveries:
                await self._batches.put(Batch(self.tenant, kind, deliveries))
        await _settle([delivery for deliveries in batches.values() for delivery in deliveries])

    async def on_max_deliveries(self, messages: Iterable[Message]) -> None:
        """Turn messages into dead letters, as when they killed their worker each time."""
        deliveries = [message.deliver(unaware=self.unaware) for message in messages]
        await asyncio.gather(
            *(
                self.routing.on_max_deliveries(self.tenant, consumer_type(it.subject.rpartition(".")[0]), it)
                for it in deliveries
            )
        )
        await _settle(deliveries)

    async def replay(self, letters: Iterable[Message], attempt: int = 0) -> None:
        """Handle dead letters, as many at a time as a worker does; `attempt` says which try it is."""
        deliveries = [letter.deliver(attempt) for letter in letters]
        slots = asyncio.Semaphore(WORKERS)

        async def handle(delivery: Delivery) -> None:
            async with slots:
                await self.dlq.handle(self.tenant, delivery)

        await asyncio.gather(*map(handle, deliveries))
        await _settle(deliveries)


async def _items(queue: asyncio.Queue[_Item]) -> AsyncIterator[_Item]:
    while True:
        yield await queue.get()


async def _drive(agent: AsyncIterator[object]) -> None:
    async for _ in agent:
        pass


async def _settle(deliveries: list[Delivery]) -> None:
    """Wait until each is settled (onboarding does it later), and note how."""
    async with asyncio.timeout(PATIENCE):
        for delivery in deliveries:
            outcome = await delivery.settled
            if outcome != "nak":
                delivery.message.outcome = outcome


class LoggedErrors(logging.Handler):
    """Keeps what is logged as an unexpected exception, or as something that could not be stored."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or "not stored yet" in record.msg:
            self.texts.append(self.format(record))
