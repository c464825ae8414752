"""The onboarding agent: the first contact of a phone number, in batches beside the routing (contract 5).

A job's tasks are stored in one transaction, by the `BatchWriter` that the routing uses too: an outage is waited for, a
refused batch is bisected until the task to blame is alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

from agents.backoff import Backoff
from agents.batch_writer import BatchWriter, Health
from agents.event_writes import event_error
from agents.onboarding_queue import KnownPairs, Load, TaskQueue, nothing_new
from streams.errors import EventError
from streams.fields import Campaign
from streams.payloads import is_to_many
from streams.subjects import Tenant
from tables.contact_book import clean_phone
from tables.errors import StorageError
from tables.first_contact import Incoming, Touch
from tables.onboarding import Outcome, Pair
from tables.versions import Origin, Version
from tables.write_probe import kind_of

logger = logging.getLogger(__name__)

Status = Literal["success_created", "success_exists", "error_db", "error_other"]

POOL_SIZE: Final = 10
QUEUE_SIZE: Final = 10_000
MAX_BLOCK: Final = 1.0


class Task(NamedTuple):
    """One incoming message; `message_timestamp` in Unix seconds."""

    agent_id: str
    from_phone: str
    message_id: str
    message_timestamp: int
    chat_id: str
    jid: str
    campaign: Campaign | None
    origin: Origin


Results = Sequence[EventError | None]


@dataclass(slots=True, eq=False)
class Job:
    """One channel item: the incoming messages of one routing batch, or of one replayed envelope.

    `done` is called once, with an entry for each task: None when its outcome is settled (also when it is
    `error_other`), else the error its message is to be given up for. `submitted` is a time of
    `time.perf_counter()`, `bodies` the bytes of the messages that `done` needs. `replayed`: of a dead letter.
    """

    tenant: Tenant
    tasks: list[Task]
    done: Callable[[Results], Awaitable[None]]
    submitted: float
    bodies: int = 0
    replayed: bool = False

    @property
    def load(self) -> Load:
        """What it takes of the queue."""
        return Load(self.tenant, len(self.tasks), self.bodies)


class OnboardingMeter(Protocol):
    """What is counted here (contract 9, rows 19-21)."""

    def onboarding_submitted(self, company: str, count: int) -> None:
        """Tasks were offered."""
        ...

    def onboarding_ended(self, company: str, status: str, seconds: float) -> None:
        """A task came to its end, `seconds` after it was submitted."""
        ...


class Tables(Protocol):
    """What is needed of `tables.onboarding.OnboardingTables`."""

    def known(self, company: str, pairs: Iterable[Pair]) -> Awaitable[dict[Pair, Version | None]]:
        """Which pairs are in the log."""
        ...

    def onboard(self, company: str, messages: Sequence[Incoming]) -> Awaitable[list[Outcome]]:
        """Onboard the senders, in one transaction."""
        ...


class Probe(Protocol):
    """What is needed of `tables.write_probe.WriteProbe`."""

    def store(self, like: Incoming, company: str) -> Awaitable[None]:
        """Return if PostgreSQL onboards a sender that cannot exist. Raises `StorageError`."""
        ...


def wants_onboarding(flow: str, from_phone: str, jid: str) -> bool:
    """Whether a stored message is a task: incoming, with a phone, from a person or group (contract 5.1, design 6)."""
    return flow == "IN" and from_phone != "" and not is_to_many(jid)


@dataclass(slots=True)
class _Ledger:
    """How each task of a job ended."""

    statuses: list[Status | None]
    errors: list[EventError | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.errors = [None] * len(self.statuses)


class Onboarding:
    """Takes jobs from the routing, runs some at a time, and tells each job how its tasks ended."""

    def __init__(
        self,
        *,
        tables: Callable[[Tenant], Tables],
        probe: Callable[[Tenant], Probe],
        meter: OnboardingMeter,
        send: Callable[[Job], Awaitable[None]],
        pool_size: int = POOL_SIZE,
        queue_size: int = QUEUE_SIZE,
        max_block: float = MAX_BLOCK,
        health: Health,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        """`send` puts a job on the agent's channel; `queue_size` counts tasks, `max_block` is in seconds."""
        self._tables = tables
        self._probe = probe
        self._meter = meter
        self._send = send
        self._writer = BatchWriter("onboarding", health, backoff=backoff)
        self._known = KnownPairs()
        self._queue = TaskQueue(queue_size, max_block)
        self._slots = asyncio.Semaphore(pool_size)
        self._turns: defaultdict[Tenant, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._running: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Tasks that no worker has taken yet (contract 9, row 22)."""
        return self._queue.waiting

    async def submit(self, job: Job) -> None:
        """Offer a job; returns once it is queued. A full queue is waited for, with a warning after `max_block`."""
        self._meter.onboarding_submitted(job.tenant.company, len(job.tasks))
        await self._queue.enter(job.load)
        try:
            await self._send(job)
        except BaseException:
            self._queue.leave(job.load)
            raise

    async def run(self, stream: AsyncIterable[Job]) -> AsyncIterator[int]:
        """The agent's body. Nothing that happens to a job may leave the loop."""
        try:
            async for job in stream:
                # They wait for a place here, not in the channel, which is short: our own queue is the limit.
                worker = asyncio.create_task(self._take_turn(job))
                self._running.add(worker)
                worker.add_done_callback(self._running.discard)
                yield len(job.tasks)
            await asyncio.gather(*self._running)
        finally:
            for worker in self._running:
                worker.cancel()

    async def _take_turn(self, job: Job) -> None:
        async with AsyncExitStack() as turn:
            try:
                # Jobs of one company would only wait for each other's locks, each with a connection in hand.
                await turn.enter_async_context(self._turns[job.tenant])
                await turn.enter_async_context(self._slots)
            finally:
                self._queue.leave(job.load)
            await self._work(job)

    async def _work(self, job: Job) -> None:
        ledger = _Ledger([None] * len(job.tasks))
        try:
            await self._handle(job, ledger)
        except Exception:
            logger.exception("unexpected exception while onboarding")
        seconds = time.perf_counter() - job.submitted
        for status in ledger.statuses:
            self._meter.onboarding_ended(job.tenant.company, status or "error_other", seconds)
        try:
            await job.done(ledger.errors)
        except Exception:
            logger.exception("unexpected exception while settling onboarded messages; they come again")

    async def _handle(self, job: Job, ledger: _Ledger) -> None:
        messages = [_incoming(task) for task in job.tasks]
        places = []
        for place, message in enumerate(messages):
            if message.agent_id and message.phone:
                places.append(place)
            else:
                ledger.statuses[place] = "error_other"
                logger.warning("message names no agent, or no phone that is left after cleaning")
        writes = _TaskWrites(
            job, messages, ledger, self._known, self._tables(job.tenant), self._probe(job.tenant)
        )
        await self._writer.store(places, writes)


@dataclass(frozen=True, slots=True)
class _TaskWrites:
    """A `Target` for the tasks of a job, by their places in it; the ledger gets each one's outcome."""

    job: Job
    messages: Sequence[Incoming]
    ledger: _Ledger
    known: KnownPairs
    tables: Tables
    tenant_probe: Probe

    @property
    def company(self) -> str:
        """Whose job it is."""
        return self.job.tenant.company

    async def write(self, items: Sequence[int]) -> bool:
        """Onboard the senders of these places. Raises `StorageError`."""
        skipped = await self._skipped(items)
        chosen = [place for place in items if place not in skipped]
        outcomes = await self.tables.onboard(self.company, [self.messages[place] for place in chosen])
        for place in skipped:
            self.ledger.statuses[place] = "success_exists"
        for place, outcome in zip(chosen, outcomes, strict=True):
            self.ledger.statuses[place] = "success_created" if outcome.created else "success_exists"
            if outcome.settled:
                self.known.add(self.job.tenant, self.messages[place].pair, outcome.since)
        return bool(chosen)

    async def _skipped(self, items: Sequence[int]) -> set[int]:
        """The places whose messages have nothing to add to what is stored."""
        seen = [
            place
            for place in items
            if (message := self.messages[place]).campaign is None
            and self.known.has(self.job.tenant, message.pair, message.origin.version)
        ]
        if not seen:
            return set()
        logged = await self.tables.known(self.company, {self.messages[place].pair for place in seen})
        return {place for place in seen if nothing_new(self.messages[place], logged)}

    async def probe(self, item: int) -> None:
        """Onboard a sender that cannot exist. Raises `StorageError`."""
        await self.tenant_probe.store(self.messages[item], self.company)

    def kind(self, item: int) -> Hashable:
        """All tasks are of one kind."""
        return kind_of(self.messages[item])

    def event(self, item: int) -> Hashable:
        """Stream and sequence of the message; a replay does not count, for it was blamed before."""
        if self.job.replayed:
            return None
        metadata = json.loads(self.messages[item].origin.metadata)
        return metadata.get("stream"), metadata.get("stream_sequence")

    def blame(self, item: int, error: Exception) -> None:
        """Settle the task: the message is given up if the database refused it, and kept if we failed."""
        if isinstance(error, StorageError):
            self.ledger.statuses[item] = "error_db"
            self.ledger.errors[item] = event_error(error)
        else:
            self.ledger.statuses[item] = "error_other"
            logger.error("unexpected exception while onboarding a message", exc_info=error)


def _incoming(task: Task) -> Incoming:
    campaign = task.campaign
    touch = None
    if campaign is not None and campaign.is_campaign:
        touch = Touch(campaign.tags or "", campaign.assigned_to or "", campaign.origin or "")
    return Incoming(
        task.agent_id,
        clean_phone(task.from_phone),
        task.message_id,
        task.message_timestamp,
        task.chat_id,
        task.jid,
        touch,
        task.origin,
    )
