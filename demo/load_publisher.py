"""Publishes in a pipeline: a window of events on the way, each confirmed by JetStream or counted as an error.

One inbox takes all answers and tells them apart by a number, because a task for each event costs more than the
event itself.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from contextlib import suppress
from typing import Final

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from demo.load_metrics import Counts, LoadError, Tally
from demo.load_report import Latencies
from testkit.traffic import Publication

# Seconds until an event without an answer is an error.
ANSWER: Final = 5.0
_SWEEP: Final = 0.2
# The window opens again a little below its limit, so that one wake-up lets several through.
_REOPEN: Final = 0.75
_HEADER_FRAME: Final = len(b"NATS/1.0\r\n\r\n")
_HEADER_LINE: Final = len(b": \r\n")


class _Error(msgspec.Struct):
    description: str = ""


class _Answer(msgspec.Struct):
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


class Publisher:
    """Sends events over `client`, and counts in `tally` what becomes of them.

    `reasons` are the errors by their reason; `duplicates` the events whose id the stream had already.
    """

    def __init__(self, client: Client, tally: Tally, *, window: int, patience: float = ANSWER) -> None:
        self._client = client
        self._counts = tally.counts
        self._window = window
        self._patience = patience
        self._inbox = client.new_inbox()
        self._numbers = itertools.count()
        # In the order of sending, so the oldest is the first.
        self._outstanding: dict[int, tuple[Counts, float]] = {}
        self._room = asyncio.Event()
        self._answers = msgspec.json.Decoder(_Answer)
        self._sweeper: asyncio.Task[None] | None = None
        self.latencies = Latencies()
        self.reasons: Counter[str] = Counter()
        self.duplicates = 0
        self.last_answer = 0.0

    async def start(self) -> None:
        """Begin to listen for answers."""
        await self._client.subscribe(
            f"{self._inbox}.*", cb=self._answered, pending_msgs_limit=0, pending_bytes_limit=0
        )
        self._sweeper = asyncio.create_task(self._sweep())

    async def send(self, publication: Publication) -> None:
        """Send one event once there is room in the window. Raises `LoadError` when the connection is gone."""
        if len(self._outstanding) >= self._window:
            await self._wait_room()
        counts = self._counts[publication.subject]
        counts.attempted += 1
        number = next(self._numbers)
        self._outstanding[number] = (counts, time.perf_counter())
        if _size(publication) > self._client.max_payload:
            self._fail(number, "larger than the server takes")
            return
        reply = f"{self._inbox}.{number}"
        try:
            await self._client.publish(publication.subject, publication.body, reply, publication.headers)
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError) as error:
            self._fail(number, "the connection was closed")
            raise LoadError("the connection to NATS was closed for good") from error
        except (nats.errors.Error, OSError) as error:
            self._fail(number, type(error).__name__)

    async def finish(self) -> None:
        """Wait for the answers that are missing; each is an error once its time is over."""
        while self._outstanding:
            await self._wait_room()

    async def close(self) -> None:
        """Stop to listen. What is on the way has failed."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        for number in tuple(self._outstanding):
            self._fail(number, "stopped before it was confirmed")

    async def _wait_room(self) -> None:
        self._room.clear()
        await self._room.wait()

    async def _answered(self, message: Msg) -> None:
        now = time.perf_counter()
        number = int(message.subject[len(self._inbox) + 1 :])
        if number not in self._outstanding:  # its time was over
            return
        if problem := self._problem(message):
            self._fail(number, problem)
            return
        counts, sent = self._outstanding.pop(number)
        counts.confirmed += 1
        self.latencies.add(now - sent)
        self.last_answer = time.monotonic()
        self._let_in()

    def _problem(self, message: Msg) -> str | None:
        if not message.data:
            status = (message.headers or {}).get("Status")
            return "no stream takes it" if status == "503" else "an empty answer"
        try:
            answer = self._answers.decode(message.data)
        except msgspec.DecodeError:
            return "an answer that is not JetStream's"
        if answer.error is not None:
            return answer.error.description or "refused"
        self.duplicates += answer.duplicate
        return None

    def _fail(self, number: int, reason: str) -> None:
        if (waiting := self._outstanding.pop(number, None)) is None:
            return
        waiting[0].errors += 1
        self.reasons[reason] += 1
        self._let_in()

    def _let_in(self) -> None:
        left = len(self._outstanding)
        if not left or left <= self._window * _REOPEN:
            self._room.set()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            self._expire(time.perf_counter() - self._patience)

    def _expire(self, before: float) -> None:
        while self._outstanding:
            number, (_, sent) = next(iter(self._outstanding.items()))
            if sent > before:
                return
            self._fail(number, f"no answer within {self._patience:g} s")


def _size(publication: Publication) -> int:
    """What the server counts against its limit: body and headers (all of them ASCII but the company)."""
    lines = sum(len(key) + len(value.encode()) + _HEADER_LINE for key, value in publication.headers.items())
    return len(publication.body) + _HEADER_FRAME + lines
