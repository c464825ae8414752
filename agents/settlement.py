"""The one place that settles deliveries: acknowledges, naks, dead-letters or parks them, and counts how they ended."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress

from agents import retry_policy
from agents.batch_writer import WhileWaiting
from agents.dead_letter import DeadLetter
from agents.dead_letter_publisher import DeadLetterPublisher, Destination, park
from agents.meter import Meter
from agents.received_event import ReceivedEvent
from agents.retry_policy import RetryPolicy
from events import envelope
from events.backoff import Backoff
from events.delivery import Delivery
from events.envelope import Envelope
from events.errors import BrokerError, EventError, UnknownSubject
from events.fields import INT32_MAX
from events.history import History
from events.subjects import Tenant
from tables.errors import StorageError
from tables.exhausted import ExhaustedRow
from tables.tenant import TenantTables

logger = logging.getLogger(__name__)


class Settlement:
    """Settles events by their outcome. A delivery whose settlement fails comes again, and is stored without effect."""

    def __init__(self, *, dead_letters: DeadLetterPublisher, subject: str, meter: Meter) -> None:
        """`subject` is the base subject of dead letters, to which a company is appended."""
        self._dead_letters = dead_letters
        self._subject = subject
        self._meter = meter
        self._unfinished: set[asyncio.Task[None]] = set()

    async def settle(self, events: Sequence[ReceivedEvent]) -> None:
        """Settle each event; returns when all are settled, or wait in the background for their dead letters.

        An event that cannot be settled is naked; no exception of one keeps the others from being settled.
        """
        for event in events:
            if event.error is None:
                await self._settle(event)
        if failed := [event for event in events if event.error is not None]:
            await asyncio.gather(*map(self._settle, failed))

    async def stop(self) -> None:
        """Leave what still waits to the source, which asks for it again."""
        await self._dead_letters.stop()
        await asyncio.gather(*self._unfinished, return_exceptions=True)

    async def _settle(self, event: ReceivedEvent) -> None:
        try:
            if event.error is not None:
                await self._settle_failed(event, event.error)
            elif await _sent(event, event.delivery.ack()):
                self._count(event, "ack_success", None)
        except BrokerError as error:
            logger.warning("event not settled, it comes again: %s", error, extra=event.log_fields)
        except Exception:
            await _nak_unexpected(event)

    async def _settle_failed(self, event: ReceivedEvent, error: EventError) -> None:
        delay = retry_policy.retry_delay(error, event.delivery.metadata.num_delivered, event.policy)
        if delay is None:
            await self._dead_letter(event, error)
        else:
            await event.delivery.nak(delay)
            self._count(event, "nack_retryable", error)

    async def _dead_letter(self, event: ReceivedEvent, error: EventError) -> None:
        parked = isinstance(error, UnknownSubject)  # no replay could handle it
        if not parked:
            logger.warning("event given up: %s", error, extra=event.log_fields)
        try:
            dead_letter = DeadLetter.of(event, error, self._subject)
        except Exception:
            logger.exception("unexpected exception with a dead letter; its event comes again")
            self._meter.stuck(event.tenant.company, event.event_type, "nak_dlq_marshal_fail")
            return await event.delivery.nak(event.policy.maximum)
        # The items of a history batch are released in time slices, by routing.
        if not isinstance(event.payload, History):
            event.release()
        submit = self._dead_letters.park if parked else self._dead_letters.publish
        safe = await submit(dead_letter)
        if safe.done():
            await self._finish(event, error, safe.result())
        else:
            task = asyncio.create_task(self._finish_when(event, error, safe))
            self._unfinished.add(task)
            task.add_done_callback(self._unfinished.discard)

    async def _finish_when(
        self, event: ReceivedEvent, error: EventError, safe: asyncio.Future[Destination]
    ) -> None:
        try:
            await self._finish(event, error, await safe)
        except Exception:
            await _nak_unexpected(event)

    async def _finish(self, event: ReceivedEvent, error: EventError, destination: Destination) -> None:
        if destination == "published":
            if await _sent(event, event.delivery.ack()):
                self._count(event, "dlq_published_ack_success", error)
        elif await _sent(event, event.delivery.term()):
            self._meter.dlq_dropped(event.tenant.company)
            self._count(event, "nack_fatal", error)

    def _count(self, event: ReceivedEvent, action: str, error: EventError | None) -> None:
        self._meter.settled(
            event.tenant.company,
            event.event_type,
            action,
            "none" if error is None else error.label,
            time.perf_counter() - event.delivery.received,
            event.routing_seconds,
        )


async def _nak_unexpected(event: ReceivedEvent) -> None:
    logger.exception("unexpected exception while settling an event; it comes again", extra=event.log_fields)
    # Left unsettled it would stay in flight for ever; if it is settled already, this has no effect.
    with suppress(Exception):
        await event.delivery.nak(event.policy.base)


async def _sent(event: ReceivedEvent, reply: Awaitable[None]) -> bool:
    """Whether the broker could be told; if not, the event comes again, and is stored again without effect."""
    try:
        await reply
    except BrokerError as error:
        logger.warning("event is safe, but its ack was not sent: %s", error, extra=event.log_fields)
        return False
    return True


class DeadLetterSettlement:
    """Settles dead letters by the outcome of their replay."""

    def __init__(
        self, *, tables: Callable[[Tenant], TenantTables], policy: RetryPolicy, meter: Meter
    ) -> None:
        self._tables = tables
        self._policy = policy
        self._meter = meter

    async def settle(
        self,
        tenant: Tenant,
        delivery: Delivery,
        dead_letter: Envelope,
        error: EventError | None,
        *,
        while_waiting: WhileWaiting = nullcontext,
    ) -> None:
        """Acknowledge a replay that worked, put off or park one that failed. Raises `BrokerError`."""
        attempt = delivery.metadata.num_delivered
        if error is None:
            await delivery.ack()
            self._meter.dlq_acked(tenant.company)
            return
        delay = retry_policy.replay_delay(dead_letter.retry_count or 0, attempt, self._policy)
        if delay is None:
            await self.park(tenant, delivery, dead_letter, error, while_waiting=while_waiting)
        else:
            await delivery.nak(delay)
            self._meter.dlq_retried(tenant.company)

    async def park(
        self,
        tenant: Tenant,
        delivery: Delivery,
        dead_letter: Envelope,
        error: EventError,
        *,
        while_waiting: WhileWaiting = nullcontext,
    ) -> None:
        """Store the row, then end the dead letter; if that fails it is put off, at the last delivery it is retried."""
        row = exhausted_row(tenant, delivery, dead_letter, error)
        attempt = delivery.metadata.num_delivered
        if not await self._parked(tenant, row, attempt, while_waiting):
            await delivery.nak(self._policy.delay(attempt))
            self._meter.dlq_ack_failed(tenant.company)
            return
        await delivery.term()
        self._meter.dlq_dropped(tenant.company)
        self._meter.dlq_ack_failed(tenant.company)
        logger.warning(
            "dead letter given up and stored in exhausted_events: %s",
            error,
            extra={"company_id": tenant.company, "subject": row.source_subject},
        )

    async def _parked(
        self, tenant: Tenant, row: ExhaustedRow, attempt: int, while_waiting: WhileWaiting
    ) -> bool:
        backoff = Backoff()
        while True:
            try:
                await park(self._tables(tenant), row)
                return True
            except StorageError as error:
                logger.warning("exhausted event not stored yet: %s", error)
            if attempt < self._policy.max_deliver:
                return False
            async with while_waiting():
                await backoff.wait()


def exhausted_row(
    tenant: Tenant, delivery: Delivery, dead_letter: Envelope, error: EventError
) -> ExhaustedRow:
    """The row of a dead letter whose attempts are used up."""
    body, _ = envelope.embed(delivery.data)
    payload = dead_letter.payload
    attempts = retry_policy.total_attempts(dead_letter.retry_count or 0, delivery.metadata.num_delivered)
    return ExhaustedRow(
        company_id=dead_letter.company or tenant.company,
        source_subject=dead_letter.source_subject or delivery.subject,
        last_error=str(error),
        retry_count=min(max(0, attempts), INT32_MAX),
        event_timestamp=_moment(dead_letter.ts),
        dlq_payload=body.decode(),
        original_payload=None if payload is None else payload.decode(),
    )


def _moment(text: str | None) -> datetime.datetime | None:
    with suppress(ValueError, OverflowError):
        moment = datetime.datetime.fromisoformat(text or "")
        return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)
    return None
