"""Which of several streams of one name a delivery comes from.

A stream that is deleted and created again gives out the same sequences again. Its creation time, in ns since 1970,
tells the two apart: the incarnation.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from events.backoff import Backoff
from events.errors import BrokerError
from streams.jetstream.stream_reader import Api, ApiError, nanoseconds

logger = logging.getLogger(__name__)

# How long a batch waits for its incarnation, and one request for its answer, in seconds. Without an answer versions
# compare by store time; that must not happen just because the stream has a new leader, whose clock may be slow.
MAX_WAIT: Final = 5.0
TRY_SECONDS: Final = 1.0
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 60.0


async def created(api: Api, stream: str) -> int:
    """When the stream was created, in ns since 1970. Raises `ApiError` and `BrokerError`."""
    return nanoseconds((await api.api(f"STREAM.INFO.{stream}"))["created"])


async def created_or_zero(api: Api, stream: str) -> int:
    """As `created`, but 0 if the server does not say."""
    try:
        return await created(api, stream)
    except (ApiError, BrokerError):
        return 0


class Incarnation:
    """The incarnation of one source's stream; 0 if it is not known.

    It is in doubt after whatever may hide that the stream was created again: a start, a lost connection, a failed pull,
    a time without a waiting pull request (a waiting one gets an answer at the deletion), a sequence that restarted.
    Then `resolve` asks the server.
    """

    def __init__(
        self,
        api: Api,
        stream: str,
        clock: Callable[[], float] = time.monotonic,
        max_wait: float = MAX_WAIT,
    ) -> None:
        self.stream = stream
        self.value = 0
        self.in_doubt = True
        self._api = api
        self._clock = clock
        self._max_wait = max_wait
        self._doubts = 0
        self._consumer_sequence = 0
        self._backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        self._not_before = 0.0
        self._warned = False

    def doubt(self) -> None:
        """Have the server asked before the next batch."""
        self._doubts += 1
        self.in_doubt = True

    def compare(self, created_ns: int) -> None:
        """Doubt it unless the stream was created at `created_ns`; 0: there is no such stream."""
        if created_ns != self.value:
            self._not_before = 0.0
            self.doubt()

    def note_delivery(self, consumer_sequence: int) -> None:
        """Note a delivery that has just arrived; a consumer that was created again counts from 1."""
        if consumer_sequence <= self._consumer_sequence:
            self.doubt()
        self._consumer_sequence = consumer_sequence

    async def resolve(self) -> int:
        """Ask the server; 0 without an answer, after which it is not asked for a while."""
        if self._clock() < self._not_before:
            return self.value
        deadline, pauses = self._clock() + self._max_wait, Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            doubts = self._doubts
            try:
                async with asyncio.timeout(TRY_SECONDS):
                    self.value = await created(self._api, self.stream)
                break
            except (ApiError, BrokerError, TimeoutError) as error:
                pause = pauses.next()
                if self._clock() + pause > deadline:
                    self._failed(error)
                    return self.value
            await asyncio.sleep(pause)
        self.in_doubt = self._doubts != doubts
        self._backoff.reset()
        self._warned = False
        return self.value

    def _failed(self, error: Exception) -> None:
        self.value = 0
        self._not_before = self._clock() + self._backoff.next()
        if not self._warned:
            self._warned = True
            logger.warning(
                "when %s was made is not known, so its events are ordered by store time alone; "
                "STREAM.INFO.%s of the JetStream API: %s",
                self.stream,
                self.stream,
                str(error) or type(error).__name__,
            )


async def compare_streams(api: Api, incarnations: Sequence[Incarnation]) -> None:
    """Compare each stream with what its sources know. Raises `BrokerError`."""
    for stream in dict.fromkeys(each.stream for each in incarnations):
        try:
            created_ns = await created(api, stream)
        except ApiError:
            created_ns = 0
        for each in incarnations:
            if each.stream == stream:
                each.compare(created_ns)
