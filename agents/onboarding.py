"""The onboarding agent: the first contact of a phone number, in batches beside the routing (contract 5).

A job's tasks are stored in one transaction, by the `BatchWriter` that the routing uses too: an outage is waited for, a
refused batch is bisected until the task to blame is alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from agents.backoff import Backoff
from agents.batch_writer import BatchWriter, Health
from agents.onboarding_queue import KnownPairs, Load, TaskQueue
from agents.onboarding_sink import OnboardingSink, Probe, Tables, TaskOutcomes
from agents.slots import Slot
from events.errors import EventError
from events.fields import Campaign
from events.senders import is_to_many
from events.subjects import Tenant
from tables.attribution import CampaignAttribution, Incoming
from tables.contact_index import clean_phone
from tables.last_writer_wins import EventStamp

logger = logging.getLogger(__name__)

POOL_SIZE: Final = 10
QUEUE_SIZE: Final = 10_000
MAX_BLOCK: Final = 1.0


class OnboardingTask(NamedTuple):
    """One incoming message; `message_timestamp` in Unix seconds."""

    agent_id: str
    from_phone: str
    message_id: str
    message_timestamp: int
    chat_id: str
    jid: str
    campaign: Campaign | None
    stamp: EventStamp


Results = Sequence[EventError | None]


@dataclass(slots=True, eq=False)
class OnboardingJob:
    """One channel item: the incoming messages of one routing batch, or of one replayed envelope.

    `done` is called once, with an entry for each task: None when its outcome is settled (also when it is
    `error_other`), else the error its message is to be given up for. `submitted` is a time of
    `time.perf_counter()`, `bodies` the bytes of the messages that `done` needs. `replayed`: of a dead letter.
    """

    tenant: Tenant
    tasks: list[OnboardingTask]
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


def wants_onboarding(flow: str, from_phone: str, jid: str) -> bool:
    """Whether a stored message is a task: incoming, with a phone, from a person or group (contract 5.1, design 6)."""
    return flow == "IN" and from_phone != "" and not is_to_many(jid)


class Onboarding:
    """Takes jobs from the routing, runs some at a time, and tells each job how its tasks ended."""

    def __init__(
        self,
        *,
        tables: Callable[[Tenant], Tables],
        probe: Callable[[Tenant], Probe],
        meter: OnboardingMeter,
        send: Callable[[OnboardingJob], Awaitable[None]],
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

    async def submit(self, job: OnboardingJob) -> None:
        """Offer a job; returns once it is queued. A full queue is waited for, with a warning after `max_block`."""
        self._meter.onboarding_submitted(job.tenant.company, len(job.tasks))
        await self._queue.enter(job.load)
        try:
            await self._send(job)
        except BaseException:
            self._queue.leave(job.load)
            raise

    async def run(self, stream: AsyncIterable[OnboardingJob]) -> AsyncIterator[int]:
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

    async def _take_turn(self, job: OnboardingJob) -> None:
        async with AsyncExitStack() as turn:
            try:
                # Jobs of one company would only wait for each other's locks, each with a connection in hand.
                await turn.enter_async_context(self._turns[job.tenant])
                place = await turn.enter_async_context(Slot(self._slots))
            finally:
                self._queue.leave(job.load)
            await self._work(job, place)

    async def _work(self, job: OnboardingJob, place: Slot) -> None:
        ledger = TaskOutcomes([None] * len(job.tasks))
        try:
            await self._handle(job, ledger, place)
        except Exception:
            logger.exception("unexpected exception while onboarding")
        seconds = time.perf_counter() - job.submitted
        for status in ledger.statuses:
            self._meter.onboarding_ended(job.tenant.company, status or "error_other", seconds)
        try:
            await job.done(ledger.errors)
        except Exception:
            logger.exception("unexpected exception while settling onboarded messages; they come again")

    async def _handle(self, job: OnboardingJob, ledger: TaskOutcomes, taken: Slot) -> None:
        messages = [_incoming(task) for task in job.tasks]
        places = []
        for place, message in enumerate(messages):
            if message.agent_id and message.phone:
                places.append(place)
            else:
                ledger.statuses[place] = "error_other"
                logger.warning("message names no agent, or no phone that is left after cleaning")
        writes = OnboardingSink(
            tenant=job.tenant,
            messages=messages,
            ledger=ledger,
            known=self._known,
            tables=self._tables(job.tenant),
            tenant_probe=self._probe(job.tenant),
            replayed=job.replayed,
        )
        # An outage of one company's tables must not keep the others from being onboarded.
        await self._writer.store(places, writes, aside=taken.left)


def _incoming(task: OnboardingTask) -> Incoming:
    campaign = task.campaign
    touch = None
    if campaign is not None and campaign.is_campaign:
        touch = CampaignAttribution(campaign.tags or "", campaign.assigned_to or "", campaign.origin or "")
    return Incoming(
        task.agent_id,
        clean_phone(task.from_phone),
        task.message_id,
        task.message_timestamp,
        task.chat_id,
        task.jid,
        touch,
        task.stamp,
    )
