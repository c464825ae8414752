"""Publishes events to JetStream with confirmations, and reads what the streams store of them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from events.subjects import HISTORICAL, REALTIME
from streams.jetstream.publishing import wire_size
from testkit.evidence import incarnation, stored_version
from testkit.oracle import Published, Version
from testkit.traffic import NUMBER_HEADER, Publication

# Events in flight at a time, and seconds until one without an answer has failed.
WINDOW: Final = 64
ANSWER: Final = 5.0
_WINDOW_BYTES: Final = 64 * 1024 * 1024
_SWEEP: Final = 0.1
# The window opens again a little below its limit, so that one wake-up lets several through.
_REOPEN: Final = 0.75


class PublishError(RuntimeError):
    """JetStream cannot be used or did not confirm an event; the message is one line."""


class Confirmed(NamedTuple):
    """A publication and the answer to it, after so many seconds. `repeat`: the stream knew its Nats-Msg-Id."""

    publication: Publication
    sequence: int
    repeat: bool
    seconds: float = 0.0


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = "refused"


class _Answer(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


# The request itself is wrong, and no retry mends it; except that an account that is full empties with each ack.
_BAD_REQUEST: Final = 400
_ACCOUNT_FULL: Final = 10002
_UNANSWERED: Final = _Answer(error=_Error(description="no stream takes it"))
_FOREIGN: Final = _Answer(
    error=_Error(_BAD_REQUEST, description="something other than JetStream answers on its subject")
)


class _InFlight(NamedTuple):
    publication: Publication
    sent: float
    attempt: int


class Publisher(AbstractAsyncContextManager["Publisher"]):
    """Keeps a window of events in flight; `published` counts the confirmed ones.

    One inbox takes all answers: nats-py's own asynchronous publish costs three times as much, and (in 2.16) no refusal
    arrives there. An event that is not confirmed within `patience` seconds is sent again, `tries` times in all (None:
    without end), unless no retry could mend it; then `on_failed` is called with the reason. Without `on_failed` the
    next call raises `PublishError`.
    """

    def __init__(
        self,
        client: Client,
        *,
        window: int = WINDOW,
        window_bytes: int = _WINDOW_BYTES,
        patience: float = ANSWER,
        tries: int | None = 1,
        on_confirmed: Callable[[Confirmed], None] | None = None,
        on_failed: Callable[[Publication, str], None] | None = None,
    ) -> None:
        self.published = 0
        self._client = client
        self._window = window
        self._window_bytes = window_bytes
        self._patience = patience
        self._tries = tries
        self._on_confirmed = on_confirmed
        self._on_failed = on_failed or self._remember
        self._inbox = client.new_inbox()
        self._numbers = itertools.count()
        # By the subject of the answer.
        self._in_flight: dict[str, _InFlight] = {}
        self._again: list[_InFlight] = []
        self._bytes = 0
        self._moved = asyncio.Event()
        self._decode = msgspec.json.Decoder(_Answer).decode
        self._failure: PublishError | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def wait_room(self) -> None:
        """Return when there is room in the window. Raises `PublishError` if an event has failed."""
        if self._unconfirmed >= self._window or self._bytes >= self._window_bytes:
            await self._wait_moved()
            while self._bytes >= self._window_bytes or self._unconfirmed > self._window * _REOPEN:
                await self._wait_moved()
        self._raise_failure()

    async def send(self, publication: Publication) -> float:
        """Send one event once there is room; returns when it left (Unix seconds). Raises `PublishError`."""
        await self.wait_room()
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())
            await self._client.subscribe(
                f"{self._inbox}.*", cb=self._answered, pending_msgs_limit=0, pending_bytes_limit=0
            )
        self._bytes += len(publication.body)
        left = time.time()
        await self._send(publication, 1)
        return left

    async def finish(self) -> None:
        """Wait until every event is confirmed or has failed. Raises `PublishError`."""
        while self._unconfirmed:
            await self._wait_moved()
        self._raise_failure()

    async def close(self) -> None:
        """Wait for no answer any more. What is in flight has failed."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        self._tries = 0
        for reply in tuple(self._in_flight):
            self._fail(reply, "stopped before it was confirmed")

    @property
    def _unconfirmed(self) -> int:
        return len(self._in_flight) + len(self._again)

    async def _wait_moved(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    async def _send(self, publication: Publication, attempt: int) -> None:
        reply = f"{self._inbox}.{next(self._numbers)}"
        self._in_flight[reply] = _InFlight(publication, time.perf_counter(), attempt)
        if wire_size(publication.body, publication.headers) > self._client.max_payload:
            self._fail(reply, "larger than the server takes", final=True)
            return
        try:
            await self._client.publish(publication.subject, publication.body, reply, publication.headers)
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError) as error:
            self._fail(reply, "the connection was closed")
            raise PublishError("the connection to NATS was closed for good") from error
        except (nats.errors.Error, OSError) as error:
            self._fail(reply, type(error).__name__)

    async def _answered(self, message: Msg) -> None:
        now = time.perf_counter()
        answer = self._read(message)
        if (error := answer.error) is not None:
            final = error.code == _BAD_REQUEST and error.err_code != _ACCOUNT_FULL
            self._fail(message.subject, error.description, final=final)
        elif event := self._in_flight.pop(message.subject, None):  # else its time was over
            self.published += 1
            self._end(event.publication)
            if self._on_confirmed is not None:
                self._on_confirmed(
                    Confirmed(event.publication, answer.seq, answer.duplicate, now - event.sent)
                )

    def _read(self, message: Msg) -> _Answer:
        if not message.data and message.headers:  # the server's own word: there is nobody who could answer
            return _UNANSWERED
        try:
            answer = self._decode(message.data)
        except ValueError:
            return _FOREIGN
        return answer if answer.error or (answer.stream and answer.seq) else _FOREIGN

    def _fail(self, reply: str, reason: str, *, final: bool = False) -> None:
        if (event := self._in_flight.pop(reply, None)) is None:
            return
        if not final and (self._tries is None or event.attempt < self._tries):
            self._again.append(event)
            return
        self._end(event.publication)
        self._on_failed(event.publication, reason)

    def _end(self, publication: Publication) -> None:
        self._bytes -= len(publication.body)
        self._moved.set()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _remember(self, publication: Publication, reason: str) -> None:
        self._failure = PublishError(f"JetStream does not confirm events: {publication.subject}: {reason}")

    async def _sweep(self) -> None:
        """Give up what has no answer in time, and send it again."""
        while True:
            await asyncio.sleep(_SWEEP)
            before = time.perf_counter() - self._patience
            for reply in [reply for reply, event in self._in_flight.items() if event.sent <= before]:
                self._fail(reply, f"no answer within {self._patience:g} s")
            again, self._again = self._again, []
            for event in again:
                with suppress(PublishError):
                    await self._send(event.publication, event.attempt + 1)


class Ledger:
    """Reads along what the streams store of some companies, by headers alone.

    Store times are in no publish answer; and on a stream with interest retention an event is gone once it is
    acknowledged, so it is read as it comes.
    """

    def __init__(self, js: JetStreamContext) -> None:
        self._js = js
        self._subscriptions: list[Subscription] = []
        # By subject and sequence the number in the traffic and the version; by subject and number the first version.
        self._stored: dict[tuple[str, int], tuple[int, Version]] = {}
        self._first: dict[tuple[str, int], Version] = {}
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
            self._stored[message.subject, version.sequence] = (int(number), version)
            self._first.setdefault((message.subject, int(number)), version)

    def version(self, publication: Publication) -> Version | None:
        """The version of a publication; None as long as it is not stored."""
        return self._first.get((publication.subject, publication.number))

    def published(self, confirmed: list[Confirmed]) -> Iterator[Published]:
        """The events as they were stored; a repeat that the server dropped is not one."""
        by_number = {(one.publication.subject, one.publication.number): one.publication for one in confirmed}
        for (subject, _), (number, version) in self._stored.items():
            if publication := by_number.get((subject, number)):
                yield Published(publication, version)

    def unseen(self, confirmed: list[Confirmed]) -> list[Confirmed]:
        """Confirmed events that were not found in the stream so far."""
        return [
            one
            for one in confirmed
            if not one.repeat and (one.publication.subject, one.sequence) not in self._stored
        ]

    async def close(self) -> None:
        """Stop reading."""
        for subscription in self._subscriptions:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()
