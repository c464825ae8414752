"""The dead-letter agent: replays envelopes, and stores what stays broken (contract 4, design 7)."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from agents import policy
from agents.backoff import Backoff
from agents.dead_letter import message_id
from agents.dead_letters import store_exhausted
from agents.policy import Limits
from agents.routing import Routing, UnknownSubject
from agents.work import Source, Work, metadata, plan
from streams import envelope
from streams.delivery import Batch, Delivery
from streams.envelope import Letter
from streams.errors import BrokerFailed, Crashed, EventError, Invalid, Malformed, Undelivered
from streams.fields import INT32_MAX
from streams.subjects import Tenant, event_type
from tables.errors import StorageError
from tables.exhausted import ExhaustedRow
from tables.tenant import TenantTables
from tables.versions import parse

logger = logging.getLogger(__name__)

BUFFER: Final = 100


class DlqMeter(Protocol):
    """What is counted here (contract 9, rows 12-17)."""

    def dlq_submitted(self, company: str) -> None:
        """An envelope was handed to the workers."""
        ...

    def dlq_finished(self, company: str, seconds: float) -> None:
        """An envelope was handled, whatever came of it."""
        ...

    def dlq_retried(self, company: str) -> None:
        """A replay was put off."""
        ...

    def dlq_acked(self, company: str) -> None:
        """A replay worked and was acknowledged."""
        ...

    def dlq_ack_failed(self, company: str) -> None:
        """An envelope was ended without success, or the broker could not be told."""
        ...

    def dlq_dropped(self, company: str) -> None:
        """An envelope was stored in `exhausted_events`."""
        ...


class _Given(NamedTuple):
    tenant: Tenant
    delivery: Delivery


class DeadLetterRetry:
    """Replays through the routing code, a few at a time; a delayed one waits in JetStream, not here."""

    def __init__(
        self,
        *,
        routing: Routing,
        tables: Callable[[Tenant], TenantTables],
        limits: Limits,
        workers: int,
        meter: DlqMeter,
    ) -> None:
        self._routing = routing
        self._tables = tables
        self._limits = limits
        self._workers = workers
        self._meter = meter
        self._queue: asyncio.Queue[_Given] = asyncio.Queue(BUFFER)
        self._active = 0

    @property
    def queue_length(self) -> int:
        """Envelopes waiting for a worker."""
        return self._queue.qsize()

    @property
    def active(self) -> int:
        """Replays in progress."""
        return self._active

    async def run(self, stream: AsyncIterable[Batch]) -> AsyncIterator[int]:
        """The agent's body: hand the envelopes of each batch to the workers."""
        workers = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        try:
            async for batch in stream:
                for delivery in batch.deliveries:
                    self._meter.dlq_submitted(batch.tenant.company)
                    await self._queue.put(_Given(batch.tenant, delivery))
                batch.release()
                yield len(batch.deliveries)
        finally:
            for worker in workers:
                worker.cancel()

    async def _work(self) -> None:
        while True:
            given = await self._queue.get()
            self._active += 1
            started = time.perf_counter()
            try:
                await self.handle(given.tenant, given.delivery)
            except BrokerFailed as error:
                logger.warning("dead letter not settled, it comes again: %s", error)
                self._meter.dlq_ack_failed(given.tenant.company)
            except Exception:
                logger.exception("unexpected exception with a dead letter; it comes again")
                await self._hand_back(given)
            finally:
                self._active -= 1
                self._meter.dlq_finished(given.tenant.company, time.perf_counter() - started)

    async def _hand_back(self, given: _Given) -> None:
        # Left unsettled it would stay in our hands for ever.
        self._meter.dlq_ack_failed(given.tenant.company)
        with suppress(Exception):
            await given.delivery.nak(self._limits.maximum)

    async def handle(self, tenant: Tenant, delivery: Delivery) -> None:
        """Replay one envelope and settle it (contract 4.3). Raises `BrokerFailed`."""
        try:
            letter = envelope.decode(delivery.data)
        except Malformed as error:
            return await self._exhaust(tenant, delivery, unreadable(delivery), error)
        if (refused := stranger(tenant, letter)) is not None:
            return await self._exhaust(tenant, delivery, letter, refused)
        attempt = delivery.provenance.delivered
        if policy.lost(attempt, self._limits):
            return await self._exhaust(tenant, delivery, letter, Undelivered())
        outcome = await self._replay(tenant, delivery, letter)
        decision = policy.decide_replay(outcome, letter.retry_count, attempt, self._limits)
        if outcome is None:
            await delivery.ack()
            self._meter.dlq_acked(tenant.company)
        elif decision.outcome == "nak":
            await delivery.nak(decision.delay)
            self._meter.dlq_retried(tenant.company)
        else:
            await self._exhaust(tenant, delivery, letter, outcome)

    async def abandon(self, tenant: Tenant, delivery: Delivery) -> None:
        """Store an envelope that the server will not deliver again (contract C14, OC13). Raises `BrokerFailed`."""
        error = Undelivered("the consumer's own limit of deliveries (max_deliver) was reached")
        try:
            letter = envelope.decode(delivery.data)
        except Malformed:
            letter = unreadable(delivery)
        await self._exhaust(tenant, delivery, letter, error)

    async def _replay(self, tenant: Tenant, delivery: Delivery, letter: Letter) -> EventError | None:
        try:
            work = Work(tenant, delivery, replayed(delivery, letter))
            plan(work, envelope.original(letter), itertools.count())
            return await self._routing.replay(work)
        except EventError as error:
            return error.kept()
        except Exception as error:
            logger.exception("unexpected exception while replaying a dead letter")
            return Crashed(f"unexpected {type(error).__name__} while replaying")

    async def _exhaust(self, tenant: Tenant, delivery: Delivery, letter: Letter, error: EventError) -> None:
        """Store the row, then end the envelope; while that fails it is put off, at the last delivery it is kept."""
        row = exhausted_row(tenant, delivery, letter, error)
        if not await self._stored(tenant, row, delivery.provenance.delivered):
            await delivery.nak(self._limits.delay(delivery.provenance.delivered))
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

    async def _stored(self, tenant: Tenant, row: ExhaustedRow, attempt: int) -> bool:
        pauses = Backoff()
        while True:
            try:
                await store_exhausted(self._tables(tenant), row)
                return True
            except StorageError as trouble:
                logger.warning("exhausted event not stored yet: %s", trouble)
            if attempt < self._limits.max_deliver:
                return False
            await pauses.wait()


def replayed(delivery: Delivery, letter: Letter) -> Source:
    """The source of a replayed event: its own version and subject, the dead letter's stream (contract B9)."""
    origin = delivery.provenance
    version = parse(letter.event_version)
    original_id = (delivery.headers or {}).get("Original-Nats-Msg-Id")
    name = original_id or message_id(delivery.headers, origin.stream_sequence)
    return Source(
        event_type=event_type(letter.source_subject) or "",
        metadata=metadata(origin, name, letter.source_subject, envelope.now()),
        stored_ns=version.ns if version else origin.stored_ns,
        sequence=version.sequence if version else origin.stream_sequence,
        version=version,
    )


def stranger(tenant: Tenant, letter: Letter) -> EventError | None:
    """Why a dead letter is never replayed: it is another company's, or of no known event type (contract 4.3).

    The existing service wrote full subjects; a bare base subject names no company, and counts as ours.
    """
    if letter.company not in ("", tenant.company):
        return Invalid("validation failed: company is not the company of the dead-letter subject")
    kind = event_type(letter.source_subject)
    if kind is None:
        return UnknownSubject("source_subject is unknown")
    if letter.source_subject not in (kind, tenant.subject(kind)):
        return Invalid("validation failed: source_subject is not of the company of the dead-letter subject")
    return None


def unreadable(delivery: Delivery) -> Letter:
    """What can be said of a dead letter that is no envelope (contract 4.4)."""
    return Letter(
        source_subject=delivery.subject,
        company="",
        original_payload=None,
        error="",
        error_type="",
        retry_count=0,
        max_retry=0,
        ts=None,
        event_version=None,
    )


def exhausted_row(tenant: Tenant, delivery: Delivery, letter: Letter, error: EventError) -> ExhaustedRow:
    """The row of contract 4.4."""
    payload, _ = envelope.embed(delivery.data)
    return ExhaustedRow(
        company_id=letter.company or tenant.company,
        source_subject=letter.source_subject or delivery.subject,
        last_error=str(error),
        retry_count=min(max(0, policy.tries(letter.retry_count, delivery.provenance.delivered)), INT32_MAX),
        event_timestamp=_moment(letter.ts),
        dlq_payload=payload.decode(),
        original_payload=None if letter.original_payload is None else letter.original_payload.decode(),
    )


def _moment(text: str | None) -> datetime.datetime | None:
    with suppress(ValueError, OverflowError):
        moment = datetime.datetime.fromisoformat(text or "")
        return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)
    return None
