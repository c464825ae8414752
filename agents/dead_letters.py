"""Giving an event up safely: into the dead-letter stream, or into `exhausted_events` if it does not fit there."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final, Protocol

from agents.policy import Limits, envelope_retry_count
from agents.storing import Pauses
from agents.work import Work, remainder
from streams import envelope
from streams.delivery import Publisher, TooLarge
from streams.errors import BrokerFailed, EventError
from streams.subjects import Tenant
from tables.errors import BadData, StorageError
from tables.exhausted import ExhaustedRow
from tables.tenant import TenantTables

logger = logging.getLogger(__name__)

# How many events may wait for a dead-letter stream that does not answer before routing waits as well.
PATIENT: Final = 1000

Ended = Callable[[Work, str, EventError], None]
Step = Callable[[Work, EventError, Limits], Awaitable[None]]


class DeadLetterMeter(Protocol):
    """What is counted here."""

    def stuck(self, company: str, event_type: str, action: str) -> None:
        """A dead letter could not be published, and is tried again."""
        ...

    def dlq_dropped(self, company: str) -> None:
        """An event went straight into `exhausted_events`."""
        ...


class DeadLetters:
    """Publishes envelopes until they are confirmed, then settles the event (contract 3.9, C12, C27)."""

    def __init__(
        self,
        *,
        publisher: Publisher,
        subject: str,
        tables: Callable[[Tenant], TenantTables],
        meter: DeadLetterMeter,
        ended: Ended,
    ) -> None:
        self._publisher = publisher
        self._subject = subject
        self._tables = tables
        self._meter = meter
        self._ended = ended
        self._waiting: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """How many events are given up, but cannot be put where they are safe."""
        return len(self._waiting)

    async def give_up(self, work: Work, error: EventError, limits: Limits) -> None:
        """Put the event where it is safe (confirmed by JetStream, or committed) and settle it.

        If that does not work now, the event is kept and tried again in the background, and routing goes on.
        """
        await self._patiently(self._publish, work, error, limits)

    async def exhaust(self, work: Work, error: EventError, limits: Limits) -> None:
        """Store the event in `exhausted_events` and end it, as patiently: for what no dead letter can carry
        (design 7)."""
        await self._patiently(self._keep, work, error, limits)

    async def _patiently(self, step: Step, work: Work, error: EventError, limits: Limits) -> None:
        try:
            await step(work, error, limits)
        except Exception as trouble:
            expected = isinstance(trouble, BrokerFailed | StorageError)
            logger.warning(
                "event given up, but not safe yet, trying again: %r",
                trouble,
                extra=context(work),
                exc_info=None if expected else trouble,
            )
            action = "nak_dlq_publish_fail" if expected else "nak_dlq_marshal_fail"
            self._meter.stuck(work.tenant.company, work.source.event_type, action)
            while len(self._waiting) >= PATIENT:
                await asyncio.wait(self._waiting, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(self._until_safe(step, work, error, limits))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    @staticmethod
    async def _until_safe(step: Step, work: Work, error: EventError, limits: Limits) -> None:
        pauses = Pauses()
        while True:
            await pauses.wait()
            with suppress(Exception):  # told in the log the first time
                return await step(work, error, limits)

    async def _publish(self, work: Work, error: EventError, limits: Limits) -> None:
        letter = self._letter(work, error, limits)
        try:
            await self._publisher.publish(
                work.tenant.subject(self._subject), envelope.encode(letter), _headers(work)
            )
        except TooLarge:
            return await self._keep(work, error, limits)
        if await _told(work, work.delivery.ack()):
            self._ended(work, "dlq_published_ack_success", error)

    async def _keep(self, work: Work, error: EventError, limits: Limits) -> None:
        stored_at = datetime.datetime.fromtimestamp(work.source.stored_ns / 1e9, datetime.UTC)
        # The event's own time, not the present: a repeat after a crash must make the same row.
        letter = replace(self._letter(work, error, limits), ts=envelope.written(stored_at))
        row = ExhaustedRow(
            company_id=work.tenant.company,
            source_subject=letter.source_subject,
            last_error=str(error),
            retry_count=letter.retry_count,
            event_timestamp=stored_at,
            dlq_payload=envelope.encode(letter).decode(),
            original_payload=(letter.original_payload or envelope.NULL).decode(),
        )
        await store_exhausted(self._tables(work.tenant), row)
        if await _told(work, work.delivery.term()):
            self._meter.dlq_dropped(work.tenant.company)
            self._ended(work, "nack_fatal", error)

    @staticmethod
    def _letter(work: Work, error: EventError, limits: Limits) -> envelope.Letter:
        payload, encoding = envelope.embed(remainder(work))
        return envelope.Letter(
            source_subject=work.delivery.subject,
            company=work.tenant.company,
            original_payload=payload,
            original_payload_encoding=encoding,
            error=str(error),
            error_type=error.error_type,
            retry_count=envelope_retry_count(error, work.delivery.provenance.delivered),
            max_retry=limits.max_deliver,
            ts=None,
            event_version=None if work.source.version is None else str(work.source.version),
        )

    async def stop(self) -> None:
        """Leave what still waits to the source, which asks for it again."""
        for task in self._waiting:
            task.cancel()
        await asyncio.gather(*self._waiting, return_exceptions=True)


async def store_exhausted(tables: TenantTables, row: ExhaustedRow) -> None:
    """Save `row`; raises `StorageError`.

    Payloads that jsonb does not take (a number out of its range, nesting too deep) are kept as JSON strings.
    """
    try:
        await _save(tables, row)
    except BadData:
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


async def _told(work: Work, settling: Awaitable[None]) -> bool:
    """Whether the broker knows; if not, the event comes again, and is stored again without effect."""
    try:
        await settling
    except BrokerFailed as error:
        logger.warning("event is safe, but the broker was not told: %s", error, extra=context(work))
        return False
    return True


def message_id(headers: Mapping[str, str] | None, sequence: int) -> str:
    """The publisher's `Nats-Msg-Id`, else `msg-<stream sequence>` (contract 1.5); always storable text."""
    name = (headers or {}).get("Nats-Msg-Id") or f"msg-{sequence}"
    return str(name).replace("\0", "").encode(errors="replace").decode()


def _headers(work: Work) -> dict[str, str]:
    origin = work.delivery.provenance
    return {
        # Store time as well: a stream that is made anew starts again at sequence 1.
        "Nats-Msg-Id": f"{origin.stream}-{origin.stream_sequence}-{origin.stored_ns}",
        "Original-Nats-Msg-Id": message_id(work.delivery.headers, origin.stream_sequence),
    }


def context(work: Work) -> dict[str, object]:
    """The log fields that say which event it is (contract 8.5); never its payload."""
    origin = work.delivery.provenance
    return {
        "company_id": work.tenant.company,
        "subject": work.delivery.subject,
        "stream": origin.stream,
        "consumer": origin.consumer,
        "stream_sequence": origin.stream_sequence,
        "consumer_sequence": origin.consumer_sequence,
        "nats_message_id": message_id(work.delivery.headers, origin.stream_sequence),
    }
