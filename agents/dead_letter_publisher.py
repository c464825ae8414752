"""Giving an event up safely: into the dead-letter stream, or into `exhausted_events` if it does not fit there."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from agents.backoff import Backoff
from agents.batch_writer import Health
from agents.dead_letter import DeadLetter, message_id
from agents.received_event import ReceivedEvent
from agents.retry_policy import RetryPolicy
from events.delivery import Publisher, TooLarge
from events.errors import BrokerError, EventError
from events.models import History
from events.subjects import Tenant
from tables.errors import DataError, StorageError
from tables.exhausted import ExhaustedRow
from tables.tenant import TenantTables

logger = logging.getLogger(__name__)

# How many events, and bytes of their payloads, may wait for a dead-letter stream that takes nothing before routing
# waits as well.
PATIENT: Final = 1000
PATIENT_BYTES: Final = 64 * 1024 * 1024

Ended = Callable[[ReceivedEvent, str, EventError], None]


@dataclass(frozen=True, slots=True, eq=False)
class _GivenUp:
    """A delivery that ends once its letter is safe. Nothing is asked of its event any more."""

    work: ReceivedEvent
    error: EventError
    letter: DeadLetter


Step = Callable[[_GivenUp], Awaitable[None]]


class DeadLetterMeter(Protocol):
    """What is counted here."""

    def stuck(self, company: str, event_type: str, action: str) -> None:
        """A dead letter could not be published, and is tried again."""
        ...

    def dlq_dropped(self, company: str) -> None:
        """An event went straight into `exhausted_events`."""
        ...


class DeadLetterPublisher:
    """Publishes dead letters until they are confirmed, then settles their events.

    A letter is fixed when it is given up: the event may be released as soon as `give_up` or `exhaust` returns.
    While letters of a company wait, `health` is told why.
    """

    def __init__(
        self,
        *,
        publisher: Publisher,
        stream: str,
        subject: str,
        tables: Callable[[Tenant], TenantTables],
        meter: DeadLetterMeter,
        health: Health,
        ended: Ended,
    ) -> None:
        """`stream` is only named; `subject` is the base subject, to which a company is appended."""
        self._publisher = publisher
        self._stream = stream
        self._subject = subject
        self._tables = tables
        self._meter = meter
        self._health = health
        self._ended = ended
        self._waiting: dict[asyncio.Task[None], int] = {}
        self._bytes = 0
        self._held: Counter[str] = Counter()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._left = asyncio.Event()
        self._unsafe: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """How many events are given up, but cannot be put where they are safe."""
        return len(self._waiting)

    async def dead_letter(self, work: ReceivedEvent, error: EventError, limits: RetryPolicy) -> None:
        """Put the event where it is safe (confirmed by JetStream, or committed) and settle it.

        If that does not work now, the letter is kept and tried again in the background, and routing goes on.
        """
        await self._patiently(self._publish, work, error, limits)

    async def park(self, work: ReceivedEvent, error: EventError, limits: RetryPolicy) -> None:
        """Store the event in `exhausted_events` and end it, as patiently: for what no dead letter can carry."""
        await self._patiently(self._keep, work, error, limits)

    async def _patiently(
        self, step: Step, work: ReceivedEvent, error: EventError, limits: RetryPolicy
    ) -> None:
        try:
            letter = DeadLetter.of(work, error, self._subject, limits)
        except Exception:
            logger.exception("unexpected exception with a dead letter; its event comes again")
            self._meter.stuck(work.tenant.company, work.source.event_type, "nak_dlq_marshal_fail")
            return await work.delivery.nak(limits.maximum)
        # The items of a history batch are released in turns, by routing.
        if not isinstance(work.event, History):
            work.release()
        given_up = _GivenUp(work, error, letter)
        try:
            await step(given_up)
        except Exception as trouble:
            await self._keep_trying(step, given_up, trouble)

    async def _keep_trying(self, step: Step, given_up: _GivenUp, trouble: Exception) -> None:
        work, size = given_up.work, given_up.letter.size
        expected = isinstance(trouble, BrokerError | StorageError)
        if not expected:
            logger.warning("unexpected exception with a dead letter", extra=context(work), exc_info=trouble)
        action = "nak_dlq_publish_fail" if expected else "nak_dlq_marshal_fail"
        self._meter.stuck(work.tenant.company, work.source.event_type, action)
        self._unsafe[work.tenant.company] += 1
        self._tell(given_up, trouble)
        # One at a time of a company: hundreds that each look at all that wait keep the event loop busy for a minute.
        async with self._turns[work.tenant.company]:
            while self._is_full(work.tenant.company, size):
                self._left.clear()
                await self._left.wait()
            self._wait_in_background(step, given_up, size)

    def _is_full(self, company: str, size: int) -> bool:
        # The first letter of a company is always let in: the stream may refuse those of another company only.
        full = len(self._waiting) >= PATIENT or self._bytes + size > PATIENT_BYTES
        return full and self._held[company] > 0

    def _wait_in_background(self, step: Step, given_up: _GivenUp, size: int) -> None:
        task = asyncio.create_task(self._until_safe(step, given_up))
        company = given_up.letter.company
        self._waiting[task] = size
        self._bytes += size
        self._held[company] += 1
        task.add_done_callback(partial(self._no_longer_waiting, company))

    def _no_longer_waiting(self, company: str, task: asyncio.Task[None]) -> None:
        self._held[company] -= 1
        self._bytes -= self._waiting.pop(task)
        self._left.set()

    async def _until_safe(self, step: Step, given_up: _GivenUp) -> None:
        backoff = Backoff()
        while True:
            await backoff.wait()
            try:
                await step(given_up)
                break
            except Exception as trouble:
                self._tell(given_up, trouble)
        company = given_up.letter.company
        self._unsafe[company] -= 1
        if not self._unsafe[company]:
            self._health.resumed(_waiter(company))

    def _tell(self, given_up: _GivenUp, trouble: Exception) -> None:
        company = given_up.letter.company
        if isinstance(trouble, BrokerError):
            said = f"{self._stream} takes nothing on {given_up.letter.subject}: {trouble.args[0]}"
        elif isinstance(trouble, StorageError):
            said = f"exhausted_events takes no row: {trouble}"
        else:
            said = f"unexpected {type(trouble).__name__}"
        self._health.paused(_waiter(company), said)

    async def _publish(self, given_up: _GivenUp) -> None:
        letter = given_up.letter
        try:
            await self._publisher.publish(letter.subject, letter.body, letter.headers)
        except TooLarge:
            return await self._keep(given_up)
        if await _told(given_up.work, given_up.work.delivery.ack()):
            self._ended(given_up.work, "dlq_published_ack_success", given_up.error)

    async def _keep(self, given_up: _GivenUp) -> None:
        work = given_up.work
        await store_exhausted(self._tables(work.tenant), given_up.letter.row)
        if await _told(work, work.delivery.term()):
            self._meter.dlq_dropped(work.tenant.company)
            self._ended(work, "nack_fatal", given_up.error)

    async def stop(self) -> None:
        """Leave what still waits to the source, which asks for it again."""
        tasks = list(self._waiting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _waiter(company: str) -> str:
    return f"dead letters {company}"


async def store_exhausted(tables: TenantTables, row: ExhaustedRow) -> None:
    """Save `row`; raises `StorageError`.

    Payloads that jsonb does not take (a number out of its range, nesting too deep) are kept as JSON strings.
    """
    try:
        await _save(tables, row)
    except DataError:
        await _save(
            tables,
            row._replace(
                dlq_payload=json.dumps(row.dlq_payload, ensure_ascii=False),
                original_payload=row.original_payload
                and json.dumps(row.original_payload, ensure_ascii=False),
            ),
        )


async def _save(tables: TenantTables, row: ExhaustedRow) -> None:
    async with tables.transaction() as connection:
        await tables.exhausted.save(connection, row)


async def _told(work: ReceivedEvent, settling: Awaitable[None]) -> bool:
    """Whether the broker knows; if not, the event comes again, and is stored again without effect."""
    try:
        await settling
    except BrokerError as error:
        logger.warning("event is safe, but the broker was not told: %s", error, extra=context(work))
        return False
    return True


def context(work: ReceivedEvent) -> dict[str, object]:
    """The log fields that say which event it is (contract 8.5); never its payload."""
    origin = work.delivery.metadata
    return {
        "company_id": work.tenant.company,
        "subject": work.delivery.subject,
        "stream": origin.stream,
        "consumer": origin.consumer,
        "stream_sequence": origin.stream_sequence,
        "consumer_sequence": origin.consumer_sequence,
        "nats_message_id": message_id(work.delivery.headers, origin.stream_sequence),
    }
