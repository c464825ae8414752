"""Publishes to JetStream without waiting for each answer: flat out, or at a steady rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.bench.environment import BenchError
from tests.bench.events import Event

# On the way at a time: enough to keep the server busy, little enough for its memory. Batches are big.
_WINDOW: Final = 2000
_WINDOW_BYTES: Final = 8 * 1024 * 1024
_ANSWER: Final = 30.0


class Publisher:
    """Counts the answers of all events on one inbox. `prefix` leads to another system's stream."""

    def __init__(self, client: Client, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._inbox = client.new_inbox()
        self._open = 0
        self._bytes = 0
        self._sizes: list[int] = []
        self._answered = 0
        self._refused = ""
        self._moved = asyncio.Event()

    async def start(self) -> None:
        """Listen for answers."""
        await self._client.subscribe(self._inbox, cb=self._on_answer, pending_msgs_limit=0)

    async def send(self, event: Event) -> float:
        """Send one event once there is room; returns when it left (Unix seconds). Raises `BenchError`."""
        while self._open >= _WINDOW or self._bytes >= _WINDOW_BYTES:
            await self._wait()
        self._open += 1
        self._bytes += len(event.body)
        self._sizes.append(len(event.body))
        left = time.time()
        await self._client.publish(
            self._prefix + event.subject, event.body, reply=self._inbox, headers=event.headers
        )
        return left

    async def settle(self) -> None:
        """Return when JetStream has confirmed everything. Raises `BenchError`."""
        await self._client.flush()
        while self._open:
            await self._wait()

    async def _wait(self) -> None:
        self._moved.clear()
        try:
            async with asyncio.timeout(_ANSWER):
                await self._moved.wait()
        except TimeoutError:
            raise BenchError(f"JetStream has not confirmed {self._open} events in {_ANSWER:g} s") from None
        if self._refused:
            raise BenchError(f"JetStream refused an event: {self._refused}")

    async def _on_answer(self, answer: Msg) -> None:
        # Answers come in the order of the events.
        self._bytes -= self._sizes[self._answered]
        self._answered += 1
        self._open -= 1
        if b'"seq"' not in answer.data:
            self._refused = answer.data.decode() or str(answer.headers)
        self._moved.set()


@asynccontextmanager
async def publisher(url: str, prefix: str) -> AsyncIterator[Publisher]:
    """A publisher on a connection of its own."""
    client = await nats.connect(url)
    try:
        made = Publisher(client, prefix)
        await made.start()
        yield made
    finally:
        await client.close()


async def flood(to: Publisher, events: Iterable[Event]) -> None:
    """Publish as fast as JetStream confirms. Raises `BenchError`."""
    for event in events:
        await to.send(event)
    await to.settle()


async def steadily(
    to: Publisher, events: Iterable[Event], rate: float, going: Callable[[], bool] = lambda: True
) -> dict[tuple[str, str], float]:
    """Publish `rate` events a second while `going`; returns when each row's event left (Unix seconds).

    What is late is sent at once: the schedule is fixed from the start. Raises `BenchError`.
    """
    left: dict[tuple[str, str], float] = {}
    start = time.perf_counter()
    for number, event in enumerate(events):
        # At least one turn of the loop for each, so that a burst is not kept back in our own buffer.
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        if not going():
            break
        moment = await to.send(event)
        left.update(dict.fromkeys(event.rows, moment))
    await to.settle()
    return left
