"""The onboarding agent: the first contact of a phone number, in batches beside the routing (contract 5).

A job's tasks are stored in one transaction. What goes wrong is told apart as in `agents.storing`: an outage is
waited for, a refused batch is split until the guilty task is alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

from agents.onboarding_queue import KnownPairs, Load, TaskQueue, nothing_new
from agents.storing import Health, Pauses
from streams.errors import EventError, Rejected, Unstored
from streams.fields import Campaign
from streams.payloads import is_to_many
from streams.subjects import Tenant
from tables.contact_book import clean_phone
from tables.errors import BadData, Contended, Expired, StorageError, Unavailable
from tables.first_contact import Incoming, Touch
from tables.onboarding import Outcome, Pair
from tables.versions import Origin, Version

logger = logging.getLogger(__name__)

Status = Literal["success_created", "success_exists", "error_db", "error_other"]

POOL_SIZE: Final = 10
QUEUE_SIZE: Final = 10_000
MAX_BLOCK: Final = 1.0
# Attempts of a batch that runs out of time before it is halved.
_TIMEOUTS: Final = 3


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
    `time.perf_counter()`, `bodies` the bytes of the messages that `done` needs.
    """

    tenant: Tenant
    tasks: list[Task]
    done: Callable[[Results], Awaitable[None]]
    submitted: float
    bodies: int = 0

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


def wants_onboarding(flow: str, from_phone: str, jid: str) -> bool:
    """Whether a stored message is a task: incoming, with a phone, from a person or group (contract 5.1, design 6)."""
    return flow == "IN" and from_phone != "" and not is_to_many(jid)


@dataclass(slots=True)
class _Part:
    """Tasks that are stored in one transaction, by their place in the job."""

    places: list[int]
    timeouts: int = 0

    def halves(self) -> list[_Part]:
        middle = len(self.places) // 2
        return [_Part(self.places[middle:]), _Part(self.places[:middle])]


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
        meter: OnboardingMeter,
        send: Callable[[Job], Awaitable[None]],
        pool_size: int = POOL_SIZE,
        queue_size: int = QUEUE_SIZE,
        max_block: float = MAX_BLOCK,
        health: Health,
        pauses: Callable[[], Pauses] = Pauses,
    ) -> None:
        """`send` puts a job on the agent's channel; `queue_size` counts tasks, `max_block` is in seconds."""
        self._tables = tables
        self._meter = meter
        self._send = send
        self._health = health
        self._pauses = pauses
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
        parts = [_Part(places)] if places else []
        pauses = self._pauses()
        while parts:
            part = parts.pop()
            try:
                await self._store(job.tenant, part, messages, ledger)
                self._health.resumed("postgres")
                pauses = self._pauses()
            except (Contended, Unavailable, Expired) as error:
                parts.extend(_again(part, error))
                self._health.paused("postgres", f"onboarding: {error}")
                await pauses.wait()
            except Exception as error:
                parts.extend(_divide(part, error, ledger))

    async def _store(
        self, tenant: Tenant, part: _Part, messages: Sequence[Incoming], ledger: _Ledger
    ) -> None:
        tables = self._tables(tenant)
        seen = [
            place
            for place in part.places
            if (message := messages[place]).campaign is None
            and self._known.has(tenant, message.pair, message.origin.version)
        ]
        logged: dict[Pair, Version | None] = {}
        if seen:
            logged = await tables.known(tenant.company, {messages[place].pair for place in seen})
        skipped = {place for place in seen if nothing_new(messages[place], logged)}
        chosen = [place for place in part.places if place not in skipped]
        outcomes = await tables.onboard(tenant.company, [messages[place] for place in chosen])
        for place in skipped:
            ledger.statuses[place] = "success_exists"
        for place, outcome in zip(chosen, outcomes, strict=True):
            ledger.statuses[place] = "success_created" if outcome.created else "success_exists"
            if outcome.settled:
                self._known.add(tenant, messages[place].pair, outcome.since)


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


def _again(part: _Part, error: StorageError) -> list[_Part]:
    """The same again after a pause; what runs out of time again and again is tried in smaller parts."""
    if isinstance(error, Expired):
        part.timeouts += 1
        if part.timeouts >= _TIMEOUTS and len(part.places) > 1:
            return part.halves()
    return [part]


def _divide(part: _Part, error: Exception, ledger: _Ledger) -> list[_Part]:
    """Both halves; a task alone is to blame and gets its outcome (contract 5.7)."""
    if len(part.places) > 1:
        return part.halves()
    [place] = part.places
    if isinstance(error, StorageError):
        kind = Rejected if isinstance(error, BadData) else Unstored
        ledger.statuses[place] = "error_db"
        ledger.errors[place] = kind(f"database: {error}")
    else:
        ledger.statuses[place] = "error_other"
        logger.error("unexpected exception while onboarding a message", exc_info=error)
    return []
