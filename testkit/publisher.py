"""Publishes traffic with confirmations, and keeps what JetStream made of it: sequence and store time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import nats
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from events.subjects import HISTORICAL, REALTIME
from testkit.oracle import Published, Version
from testkit.traffic import NUMBER_HEADER, Publication

# Publishes on the way at a time.
WINDOW: Final = 64
_TRIES: Final = 5
_ANSWER: Final = 5.0
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


class PublishError(RuntimeError):
    """JetStream did not confirm an event; the message is one line."""


class Confirmed(NamedTuple):
    """A publication and the answer to it. `repeat`: the server knew its Nats-Msg-Id and dropped it."""

    publication: Publication
    sequence: int
    repeat: bool


class Publisher:
    """Keeps a window of publishes on the way; `published` counts the confirmed ones."""

    def __init__(self, js: JetStreamContext) -> None:
        self._js = js
        self._window = asyncio.Semaphore(WINDOW)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: PublishError | None = None
        self.published = 0
        self.confirmed: list[Confirmed] = []
        self.keep = True

    async def publish(self, publication: Publication) -> None:
        """Send one event once there is room in the window. Raises `PublishError` if an earlier one failed."""
        await self._window.acquire()
        if self._failure:
            raise self._failure
        task = asyncio.create_task(self._confirm(publication))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def finish(self) -> None:
        """Wait for the answers. Raises `PublishError`."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._failure:
            raise self._failure

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._window.release()
        if not task.cancelled() and isinstance(error := task.exception(), PublishError):
            self._failure = error

    async def _confirm(self, publication: Publication) -> None:
        for last in (*(False,) * (_TRIES - 1), True):
            try:
                answer = await self._js.publish(
                    publication.subject, publication.body, timeout=_ANSWER, headers=publication.headers
                )
            except (nats.errors.Error, OSError) as error:
                if last:
                    reason = f"{publication.subject}: {type(error).__name__}"
                    raise PublishError(f"JetStream does not confirm events: {reason}") from error
                await asyncio.sleep(0.2)
            else:
                break
        self.published += 1
        if self.keep:
            self.confirmed.append(Confirmed(publication, answer.seq, bool(answer.duplicate)))


class Ledger:
    """Reads along what the streams store of some companies, by headers alone.

    Store times are in no publish answer; and on a stream with interest retention an event is gone once it is
    acknowledged, so it is read as it comes.
    """

    def __init__(self, js: JetStreamContext) -> None:
        self._js = js
        self._subscriptions: list[Subscription] = []
        self._stored: dict[str, dict[int, tuple[int, Version]]] = {}
        self._versions: dict[tuple[str, int], asyncio.Future[Version]] = {}
        self._incarnations: dict[str, int] = {}

    async def follow(self, company: str) -> None:
        """Begin to read; to be called before anything of the company is published."""
        for base in (*REALTIME, *HISTORICAL):
            subject = f"{base}.{company}"
            stream = await self._js.find_stream_name_by_subject(subject)
            self._incarnations[stream] = await incarnation(self._js, stream)
            self._subscriptions.append(
                await self._js.subscribe(
                    subject,
                    stream=stream,
                    ordered_consumer=True,
                    config=ConsumerConfig(headers_only=True),
                    cb=self._note,
                )
            )

    async def _note(self, message: Msg) -> None:
        number = (message.headers or {}).get(NUMBER_HEADER)
        if number is not None:
            version = replace(
                stored_version(message.reply), incarnation=self._incarnations[message.metadata.stream]
            )
            self._stored.setdefault(message.subject, {})[version.sequence] = (int(number), version)
            first = self._version(message.subject, int(number))
            if not first.done():
                first.set_result(version)

    async def version(self, publication: Publication) -> Version:
        """The version of a publication, once it is stored."""
        return await self._version(publication.subject, publication.number)

    def _version(self, subject: str, number: int) -> asyncio.Future[Version]:
        return self._versions.setdefault((subject, number), asyncio.get_running_loop().create_future())

    def published(self, confirmed: list[Confirmed]) -> Iterator[Published]:
        """The events as they were stored; a repeat that the server dropped is not one."""
        by_number = {(one.publication.subject, one.publication.number): one.publication for one in confirmed}
        for subject, stored in self._stored.items():
            for number, version in stored.values():
                publication = by_number.get((subject, number))
                if publication is not None:
                    yield Published(publication, version)

    def unseen(self, confirmed: list[Confirmed]) -> list[Confirmed]:
        """Confirmed events that were not found in the stream so far."""
        return [
            one
            for one in confirmed
            if not one.repeat and one.sequence not in self._stored.get(one.publication.subject, {})
        ]

    async def close(self) -> None:
        """Stop reading."""
        for subscription in self._subscriptions:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()


async def incarnation(js: JetStreamContext, stream: str) -> int:
    """When a stream was made, in microseconds since 1970."""
    made = (await js.stream_info(stream)).created
    return 0 if made is None else (made - _EPOCH) // timedelta(microseconds=1)


def stored_version(reply: str) -> Version:
    """Store time and sequence out of an ack subject; nats-py's own reading drops the nanoseconds."""
    tokens = reply.split(".")
    sequence, ns = (tokens[5], tokens[7]) if len(tokens) == 9 else (tokens[7], tokens[9])
    return Version(int(ns), int(sequence))
