"""The onboarding agent: the first contact of a phone number, as a second stage of a routing batch.

The tasks of a job are stored in one transaction by a `BatchWriter`, as in the routing: an outage is waited out, a
refused batch is bisected.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from agents.batch_writer import BatchWriter
from agents.event_writer import event_error
from agents.onboarding_queue import KnownPairs, Load, TaskQueue, nothing_new
from agents.received_event import ReceivedEvent
from agents.retry_policy import RetryPolicy
from agents.settlement import Settlement
from agents.slots import Slot
from events.errors import EventError
from events.models import MessageUpsert
from events.senders import is_to_many, sender_phone
from events.subjects import Tenant
from tables.attribution import CampaignAttribution, Incoming
from tables.contact_index import clean_phone
from tables.errors import StorageError
from tables.last_writer_wins import EventStamp, Version
from tables.onboarding import Outcome, Pair
from tables.write_probe import kind_of

logger = logging.getLogger(__name__)

POOL_SIZE: Final = 10
QUEUE_SIZE: Final = 10_000
MAX_BLOCK: Final = 1.0

Status = Literal["success_created", "success_exists", "error_db", "error_other"]


class OnboardingMeter(Protocol):
    """What is counted here."""

    def onboarding_submitted(self, company: str, count: int) -> None:
        """Tasks were submitted."""
        ...

    def onboarding_ended(self, company: str, status: str, seconds: float) -> None:
        """A task came to its end, `seconds` after it was submitted."""
        ...


class OnboardingTables(Protocol):
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


@dataclass(slots=True, eq=False)
class OnboardingTask:
    """A stored incoming message whose sender is to be onboarded, and how that ended.

    `error` is what its event is dead-lettered for; None when the outcome is final, also with `error_other`.
    """

    event: ReceivedEvent
    message: Incoming
    status: Status | None = None
    error: EventError | None = None


@dataclass(slots=True, eq=False)
class OnboardingJob:
    """One channel item: the incoming messages of one routing batch, or of one replayed dead letter.

    Its events are settled by `policy` when it is done; those of a replay (`replayed`) are not: who replays awaits
    `outcome` instead. `submitted` is a time of `time.perf_counter()`.
    """

    tenant: Tenant
    tasks: list[OnboardingTask]
    policy: RetryPolicy
    submitted: float
    outcome: asyncio.Future[EventError | None] | None = None

    @property
    def replayed(self) -> bool:
        """Whether its only task is of a dead letter."""
        return self.outcome is not None

    @property
    def load(self) -> Load:
        """What it takes of the queue: a replay's message is held by the replay."""
        bodies = 0 if self.replayed else sum(len(task.event.delivery.data) for task in self.tasks)
        return Load(self.tenant, len(self.tasks), bodies)


def onboarding_task(event: ReceivedEvent) -> OnboardingTask | None:
    """The task of a stored event: an incoming real-time message with a phone, from a person or group; else None."""
    message = event.payload
    if event.error is not None or not isinstance(message, MessageUpsert) or message.flow != "IN":
        return None
    phone = sender_phone(message.from_phone or "", message.jid or "", message, message.key)
    if not phone or is_to_many(message.jid or ""):
        return None
    campaign, attribution = message.campaign, None
    if campaign is not None and campaign.is_campaign:
        attribution = CampaignAttribution(
            campaign.tags or "", campaign.assigned_to or "", campaign.origin or ""
        )
    return OnboardingTask(
        event,
        Incoming(
            message.agent_id or "",
            clean_phone(phone),
            message.message_id or "",
            message.sent_at,
            message.chat_id or "",
            message.jid or "",
            attribution,
            EventStamp(event.metadata.version, event.metadata.last_metadata),
        ),
    )


class Onboarding:
    """Takes jobs from the routing, runs some at a time, and settles the events of each when it is done."""

    def __init__(
        self,
        *,
        tables: Callable[[Tenant], OnboardingTables],
        probe: Callable[[Tenant], Probe],
        writer: BatchWriter,
        settlement: Settlement,
        meter: OnboardingMeter,
        send: Callable[[OnboardingJob], Awaitable[None]],
        pool_size: int = POOL_SIZE,
        queue_size: int = QUEUE_SIZE,
        max_block: float = MAX_BLOCK,
    ) -> None:
        """`send` puts a job on the agent's channel; `queue_size` counts tasks, `max_block` is in seconds."""
        self._tables = tables
        self._probe = probe
        self._writer = writer
        self._settlement = settlement
        self._meter = meter
        self._send = send
        self._known = KnownPairs()
        self._queue = TaskQueue(queue_size, max_block)
        self._slots = asyncio.Semaphore(pool_size)
        self._company_locks: defaultdict[Tenant, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._running: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Tasks that no worker has taken yet."""
        return self._queue.waiting

    async def submit(self, tasks: list[OnboardingTask], policy: RetryPolicy) -> None:
        """Queue the tasks of one batch, of one company; their events are settled when they are done.

        A full queue is waited for, with a warning after `max_block`.
        """
        for task in tasks:
            task.event.release()
        await self._submit(OnboardingJob(tasks[0].event.tenant, tasks, policy, time.perf_counter()))

    async def replay(self, task: OnboardingTask, policy: RetryPolicy) -> EventError | None:
        """Queue the task of a dead letter; returns what its event is to be dead-lettered for."""
        outcome: asyncio.Future[EventError | None] = asyncio.get_running_loop().create_future()
        await self._submit(OnboardingJob(task.event.tenant, [task], policy, time.perf_counter(), outcome))
        return await outcome

    async def run(self, stream: AsyncIterable[OnboardingJob]) -> AsyncIterator[int]:
        """The agent's body. No exception of a job ends the loop."""
        try:
            async for job in stream:
                # They wait for a slot here, not in the channel, which is short: our own queue is the limit.
                worker = asyncio.create_task(self._process(job))
                self._running.add(worker)
                worker.add_done_callback(self._running.discard)
                yield len(job.tasks)
            await asyncio.gather(*self._running)
        finally:
            for worker in self._running:
                worker.cancel()

    async def _submit(self, job: OnboardingJob) -> None:
        self._meter.onboarding_submitted(job.tenant.company, len(job.tasks))
        await self._queue.enter(job.load)
        try:
            await self._send(job)
        except BaseException:
            self._queue.leave(job.load)
            raise

    async def _process(self, job: OnboardingJob) -> None:
        async with AsyncExitStack() as stack:
            try:
                # Jobs of one company would only wait for each other's locks, each with a connection in use.
                await stack.enter_async_context(self._company_locks[job.tenant])
                slot = await stack.enter_async_context(Slot(self._slots))
            finally:
                self._queue.leave(job.load)
            await self._onboard(job, slot)
            # With the slot: events whose dead letters have to wait hold the next jobs back.
            await self._finish(job)

    async def _onboard(self, job: OnboardingJob, slot: Slot) -> None:
        try:
            tasks = [task for task in job.tasks if _is_complete(task)]
            sink = OnboardingSink(
                job.tenant, self._known, self._tables(job.tenant), self._probe(job.tenant), job.replayed
            )
            # An outage of one company's tables must not keep the others from being onboarded.
            await self._writer.store(tasks, sink, while_waiting=slot.yielded)
        except Exception:
            logger.exception("unexpected exception while onboarding")
        seconds = time.perf_counter() - job.submitted
        for task in job.tasks:
            self._meter.onboarding_ended(job.tenant.company, task.status or "error_other", seconds)

    async def _finish(self, job: OnboardingJob) -> None:
        for task in job.tasks:
            task.event.error = task.error
        if job.outcome is not None:
            if not job.outcome.done():  # the replay may have been cancelled
                job.outcome.set_result(job.tasks[0].error)
            return
        await self._settlement.settle([task.event for task in job.tasks], job.policy)


@dataclass(frozen=True, slots=True)
class OnboardingSink:
    """A `Sink` for onboarding tasks; each gets its status.

    A replay was blamed before: it does not count for the circuit breaker.
    """

    tenant: Tenant
    known_pairs: KnownPairs
    tables: OnboardingTables
    tenant_probe: Probe
    replayed: bool = False

    @property
    def company(self) -> str:
        """Whose tasks they are."""
        return self.tenant.company

    async def write(self, items: Sequence[OnboardingTask]) -> bool:
        """Onboard the senders. Raises `StorageError`."""
        known = await self._known(items)
        new = [task for task in items if task not in known]
        outcomes = await self.tables.onboard(self.company, [task.message for task in new])
        for task in known:
            task.status = "success_exists"
        for task, outcome in zip(new, outcomes, strict=True):
            task.status = "success_created" if outcome.created else "success_exists"
            if outcome.complete:
                self.known_pairs.add(self.tenant, task.message.pair, outcome.since)
        return bool(new)

    async def _known(self, items: Sequence[OnboardingTask]) -> set[OnboardingTask]:
        """The tasks whose messages have nothing to add to what is stored."""
        likely = [
            task
            for task in items
            if task.message.campaign is None
            and self.known_pairs.has(self.tenant, task.message.pair, task.message.stamp.version)
        ]
        if not likely:
            return set()
        logged = await self.tables.known(self.company, {task.message.pair for task in likely})
        return {task for task in likely if nothing_new(task.message, logged)}

    async def probe(self, item: OnboardingTask) -> None:
        """Onboard a sender that cannot exist. Raises `StorageError`."""
        await self.tenant_probe.store(item.message, self.company)

    def kind(self, item: OnboardingTask) -> Hashable:
        """All tasks are of one kind."""
        return kind_of(item.message)

    def event(self, item: OnboardingTask) -> Hashable:
        """Stream and sequence of the message."""
        if self.replayed:
            return None
        metadata = json.loads(item.message.stamp.metadata)
        return metadata.get("stream"), metadata.get("stream_sequence")

    def blame(self, item: OnboardingTask, error: Exception) -> None:
        """End the task: its event is dead-lettered if the database refused it, and acknowledged if we failed."""
        if isinstance(error, StorageError):
            item.status = "error_db"
            item.error = event_error(error)
        else:
            item.status = "error_other"
            logger.error("unexpected exception while onboarding a message", exc_info=error)


def _is_complete(task: OnboardingTask) -> bool:
    if task.message.agent_id and task.message.phone:
        return True
    task.status = "error_other"
    logger.warning("message names no agent, or no phone that is left after cleaning")
    return False
