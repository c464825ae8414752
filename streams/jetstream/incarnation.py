"""Which stream a delivery comes from, of all that had the stream's name, and whether its store times go back.

A stream that is deleted and made anew gives out the same sequences again. What tells the two apart is the time at
which each was made: its incarnation, in ns since 1970.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from events.delivery import MessageMetadata
from events.errors import BrokerError
from streams.jetstream.stream_reader import Api, ApiError, nanoseconds

logger = logging.getLogger(__name__)

# How long a batch waits to learn its incarnation, in seconds, and how long one request may take. Without an answer its
# versions compare by time; that must not happen just because the stream has a new leader, whose clock may be behind.
PATIENCE: Final = 5.0
TRY_SECONDS: Final = 1.0
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 60.0
# A step of the store times that is worth a line in the log, seconds. All are counted.
LOUD_STEP: Final = 1.0


class Stamped(Protocol):
    """A delivery that can be told its incarnation."""

    @property
    def metadata(self) -> MessageMetadata:
        """Stream, sequences and times."""
        ...

    def stamp(self, incarnation: int) -> None:
        """Set the incarnation of its stream."""
        ...


async def created(api: Api, stream: str) -> int:
    """When the stream was made, in ns since 1970. Raises `ApiError` and `BrokerError`."""
    return nanoseconds((await api.api(f"STREAM.INFO.{stream}"))["created"])


async def known(api: Api, stream: str) -> int:
    """As `created`, but 0 where that cannot be told."""
    try:
        return await created(api, stream)
    except (ApiError, BrokerError):
        return 0


class Incarnation:
    """The incarnation of one source's stream, as far as the source can be sure of it.

    Whatever may hide that the stream was made anew raises a doubt: a start, a lost connection, a failed pull, a time
    in which no pull request waited (a waiting one is told of the deletion), a restarted sequence. Deliveries that
    arrive in doubt get their incarnation from the server before their batch is handed on (`settle`). If that cannot be
    told they have 0, and their versions compare by time.
    """

    def __init__(
        self,
        api: Api,
        stream: str,
        clock: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE,
    ) -> None:
        self.stream = stream
        self.value = 0
        self._api = api
        self._clock = clock
        self._patience = patience
        self._in_doubt = True
        self._doubts = 0
        self._waiting: list[Stamped] = []
        self._consumer_sequence = 0
        self._pause = FIRST_PAUSE
        self._not_before = 0.0
        self._warned = False

    def doubt(self) -> None:
        """From now on nothing counts as known, until the server is asked again."""
        self._doubts += 1
        self._in_doubt = True

    def compare(self, told: int) -> None:
        """The server says that the stream was made at `told`; 0: that there is no such stream."""
        if told != self.value:
            self._not_before = 0.0
            self.doubt()

    def arrived(self, delivery: Stamped) -> None:
        """Note a delivery, which has `value` as its incarnation."""
        sequence = delivery.metadata.consumer_sequence
        if sequence <= self._consumer_sequence:  # a consumer made anew counts from 1
            self.doubt()
        self._consumer_sequence = sequence
        if self._in_doubt:
            self._waiting.append(delivery)

    async def settle(self) -> None:
        """Give the deliveries that came in doubt their incarnation; asks the server if there are any."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        await self._read()
        for delivery in waiting:
            delivery.stamp(self.value)

    async def _read(self) -> None:
        if self._clock() < self._not_before:
            return
        deadline, pause = self._clock() + self._patience, FIRST_PAUSE
        while True:
            doubts = self._doubts
            try:
                async with asyncio.timeout(TRY_SECONDS):
                    self.value = await created(self._api, self.stream)
                break
            except (ApiError, BrokerError, TimeoutError) as error:
                if self._clock() + pause > deadline:
                    self._failed(error)
                    return
            await asyncio.sleep(pause)
            pause *= 2
        self._in_doubt = self._doubts != doubts
        self._pause, self._warned = FIRST_PAUSE, False

    def _failed(self, error: Exception) -> None:
        self.value = 0
        self._not_before = self._clock() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        if not self._warned:
            self._warned = True
            logger.warning(
                "when %s was made is not known, so its events are ordered by store time alone; "
                "STREAM.INFO.%s of the JetStream API: %s",
                self.stream,
                self.stream,
                str(error) or type(error).__name__,
            )


class StoreClock:
    """Notices store times that step back: they come from the clock of the stream's leader, and leaders change."""

    def __init__(self, stream: str, report: Callable[[float], None]) -> None:
        self._stream = stream
        self._report = report
        self._latest: MessageMetadata | None = None

    def note(self, arrived: MessageMetadata) -> None:
        """Look at a delivery. First deliveries of one consumer come in the order of their sequences."""
        if arrived.num_delivered != 1:
            return
        latest = self._latest
        if latest is None or arrived.stream_sequence > latest.stream_sequence:
            self._latest = arrived
            if latest is not None and arrived.stored_ns < latest.stored_ns:
                self._stepped_back(latest, arrived)
        elif arrived.stored_ns > latest.stored_ns:  # sequences are given out again
            self._latest = arrived

    def _stepped_back(self, before: MessageMetadata, after: MessageMetadata) -> None:
        seconds = (before.stored_ns - after.stored_ns) / 1e9
        self._report(seconds)
        if seconds > LOUD_STEP:
            logger.warning(
                "store times of %s step back by %.3f s from sequence %d to %d: "
                "the clocks of the NATS nodes have to be synchronised",
                self._stream,
                seconds,
                before.stream_sequence,
                after.stream_sequence,
            )


class IncarnationWatch:
    """Looks regularly whether streams are still those that the sources know."""

    def __init__(self, api: Api, sources: Sequence[Incarnation]) -> None:
        self._api = api
        self._sources = sources

    async def look(self) -> bool:
        """Ask once for each stream. Raises `BrokerError`."""
        for stream in dict.fromkeys(one.stream for one in self._sources):
            try:
                told = await created(self._api, stream)
            except ApiError:
                told = 0
            for one in self._sources:
                if one.stream == stream:
                    one.compare(told)
        return False
