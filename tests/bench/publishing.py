"""Publishes to JetStream without waiting for each answer: as fast as confirmed, or at a steady rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

import nats
from nats.aio.client import Client

from testkit.publisher import Confirmed, Publisher, PublishError
from tests.bench.environment import BenchError
from tests.bench.events import Event

# In flight at a time: enough to keep the server busy, little enough for its memory. Batches are big.
_WINDOW: Final = 2000
_WINDOW_BYTES: Final = 8 * 1024 * 1024
_ANSWER: Final = 30.0

OnConfirmed = Callable[[Confirmed], None] | None


class EventPublisher(Publisher):
    """Publishes events of loads, on subjects behind `prefix`."""

    def __init__(self, client: Client, prefix: str, on_confirmed: OnConfirmed) -> None:
        super().__init__(
            client,
            window=_WINDOW,
            window_bytes=_WINDOW_BYTES,
            patience=_ANSWER,
            on_confirmed=on_confirmed,
        )
        self._prefix = prefix

    async def send_event(self, event: Event) -> float:
        """See `send`."""
        publication = event.publication
        return await self.send(publication._replace(subject=self._prefix + publication.subject))


@asynccontextmanager
async def publisher(
    url: str, prefix: str = "", on_confirmed: OnConfirmed = None
) -> AsyncIterator[EventPublisher]:
    """A publisher on a connection of its own. An event that is not confirmed raises `BenchError`."""
    client = await nats.connect(url)
    try:
        to = EventPublisher(client, prefix, on_confirmed)
        async with to:
            yield to
    except PublishError as error:
        raise BenchError(str(error)) from error
    finally:
        await client.close()


async def flood(to: EventPublisher, events: Iterable[Event]) -> None:
    """Publish as fast as JetStream confirms. Raises `PublishError`."""
    for event in events:
        await to.send_event(event)
    await to.finish()


async def steadily(
    to: EventPublisher, events: Iterable[Event], rate: float, going: Callable[[], bool] = lambda: True
) -> dict[tuple[str, str], float]:
    """Publish `rate` events a second while `going`; returns when each row's event left (Unix seconds).

    What is late is sent at once: the schedule is fixed from the start. Raises `PublishError`.
    """
    left: dict[tuple[str, str], float] = {}
    start = time.perf_counter()
    for number, event in enumerate(events):
        # At least one turn of the loop for each, so that a burst is not kept back in our own buffer.
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        if not going():
            break
        moment = await to.send_event(event)
        left.update(dict.fromkeys(event.rows, moment))
    await to.finish()
    return left
