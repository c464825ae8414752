"""Puts dead letters where they are safe: the dead-letter stream, or `exhausted_events` for those it cannot carry."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Literal

from agents.batch_writer import Health
from agents.dead_letter import DeadLetter
from agents.meter import Meter
from events.backoff import Backoff
from events.delivery import Publisher, TooLarge
from events.errors import BrokerError
from events.subjects import Tenant
from tables.errors import StorageError
from tables.exhausted import ExhaustedRow
from tables.tenant import TenantTables

logger = logging.getLogger(__name__)

# How many dead letters, and bytes of their payloads, may wait for a stream that takes nothing before routing waits too.
MAX_WAITING: Final = 1000
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024

Destination = Literal["published", "parked"]
Attempt = Callable[[DeadLetter], Awaitable[Destination]]


class DeadLetterPublisher:
    """Publishes dead letters until they are confirmed.

    The first attempt is made at once. A dead letter that fails is tried again in the background, with growing pauses;
    while those of a company wait, `health` has the reason.
    """

    def __init__(
        self,
        *,
        publisher: Publisher,
        stream: str,
        tables: Callable[[Tenant], TenantTables],
        meter: Meter,
        health: Health,
    ) -> None:
        """`stream` is only named in reasons."""
        self._publisher = publisher
        self._stream = stream
        self._tables = tables
        self._meter = meter
        self._health = health
        self._waiting: dict[asyncio.Task[Destination], int] = {}
        self._waiting_bytes = 0
        self._waiting_of: Counter[str] = Counter()
        self._admission: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._one_done = asyncio.Event()
        self._unsafe: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """How many dead letters are neither published nor parked."""
        return len(self._waiting)

    async def publish(self, dead_letter: DeadLetter) -> asyncio.Future[Destination]:
        """Publish a dead letter, or park it if it is too large.

        The future is done when the dead letter is safe: confirmed by JetStream, or committed. This returns after the
        first attempt; if that failed, as soon as the dead letter may wait in the background.
        """
        return await self._submit(self._publish, dead_letter)

    async def park(self, dead_letter: DeadLetter) -> asyncio.Future[Destination]:
        """Store in `exhausted_events`, like `publish`: for an event that cannot be replayed."""
        return await self._submit(self._park, dead_letter)

    async def stop(self) -> None:
        """Cancel what still waits; the source asks for its events again."""
        tasks = list(self._waiting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _submit(self, attempt: Attempt, dead_letter: DeadLetter) -> asyncio.Future[Destination]:
        try:
            destination = await attempt(dead_letter)
        except Exception as error:
            return await self._retry_in_background(attempt, dead_letter, error)
        done: asyncio.Future[Destination] = asyncio.get_running_loop().create_future()
        done.set_result(destination)
        return done

    async def _retry_in_background(
        self, attempt: Attempt, dead_letter: DeadLetter, error: Exception
    ) -> asyncio.Future[Destination]:
        expected = isinstance(error, BrokerError | StorageError)
        if not expected:
            logger.warning(
                "unexpected exception with a dead letter", extra=dead_letter.log_fields, exc_info=error
            )
        action = "nak_dlq_publish_fail" if expected else "nak_dlq_marshal_fail"
        self._meter.stuck(dead_letter.company, dead_letter.event_type, action)
        self._unsafe[dead_letter.company] += 1
        self._report(dead_letter, error)
        # One at a time of a company: hundreds that each look at all that wait keep the event loop busy for a minute.
        async with self._admission[dead_letter.company]:
            while self._is_full(dead_letter):
                self._one_done.clear()
                await self._one_done.wait()
            return self._start_retries(attempt, dead_letter)

    def _is_full(self, dead_letter: DeadLetter) -> bool:
        # The first one of a company is always let in: the stream may refuse those of another company only.
        full = len(self._waiting) >= MAX_WAITING or self._waiting_bytes + dead_letter.size > MAX_WAITING_BYTES
        return full and self._waiting_of[dead_letter.company] > 0

    def _start_retries(self, attempt: Attempt, dead_letter: DeadLetter) -> asyncio.Task[Destination]:
        task = asyncio.create_task(self._until_safe(attempt, dead_letter))
        self._waiting[task] = dead_letter.size
        self._waiting_bytes += dead_letter.size
        self._waiting_of[dead_letter.company] += 1
        task.add_done_callback(partial(self._no_longer_waiting, dead_letter.company))
        return task

    def _no_longer_waiting(self, company: str, task: asyncio.Task[Destination]) -> None:
        self._waiting_of[company] -= 1
        self._waiting_bytes -= self._waiting.pop(task)
        self._one_done.set()

    async def _until_safe(self, attempt: Attempt, dead_letter: DeadLetter) -> Destination:
        backoff = Backoff()
        while True:
            await backoff.wait()
            try:
                destination = await attempt(dead_letter)
                break
            except Exception as error:
                self._report(dead_letter, error)
        self._unsafe[dead_letter.company] -= 1
        if not self._unsafe[dead_letter.company]:
            self._health.resumed(_waiter(dead_letter.company))
        return destination

    def _report(self, dead_letter: DeadLetter, error: Exception) -> None:
        if isinstance(error, BrokerError):
            reason = f"{self._stream} takes nothing on {dead_letter.subject}: {error.args[0]}"
        elif isinstance(error, StorageError):
            reason = f"exhausted_events takes no row: {error}"
        else:
            reason = f"unexpected {type(error).__name__}"
        self._health.paused(_waiter(dead_letter.company), reason)

    async def _publish(self, dead_letter: DeadLetter) -> Destination:
        try:
            await self._publisher.publish(dead_letter.subject, dead_letter.body, dead_letter.headers)
        except TooLarge:
            return await self._park(dead_letter)
        return "published"

    async def _park(self, dead_letter: DeadLetter) -> Destination:
        await park(self._tables(Tenant(dead_letter.company)), dead_letter.row)
        return "parked"


def _waiter(company: str) -> str:
    return f"dead letters {company}"


async def park(tables: TenantTables, row: ExhaustedRow) -> None:
    """Store a row in `exhausted_events`. Raises `StorageError`."""
    async with tables.transaction() as connection:
        await tables.exhausted.save(connection, row)
