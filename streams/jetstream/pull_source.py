"""Events out of JetStream: one pull consumer becomes batches on a channel."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import mode

from events.errors import BrokerError
from streams.jetstream.broker import Broker
from streams.jetstream.in_flight import InFlight, JetDelivery
from streams.jetstream.incarnation import Incarnation
from streams.jetstream.lanes import Lanes
from streams.jetstream.permissions import PUBLISH
from streams.jetstream.pull_requests import MAX_WAITING_PAUSE, PullRequests, Status
from streams.jetstream.specs import ConsumerSpec
from streams.jetstream.store_clock import StoreClock
from streams.monitoring.metrics import Metrics

logger = logging.getLogger(__name__)

# So long, in seconds, a stream may be without a pull request of ours before we ask whether it was made anew meanwhile:
# only a request that waits is told of the deletion.
UNWATCHED: Final = 1.0
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
# With the drain's 25 s it stays below the 30 s after which a worker is killed.
FLUSH_SECONDS: Final = 2.0

# How soon a right that was denied is tried again.
DENIED_PAUSE: Final = 2.0


class PullSource(mode.Service):
    """Pulls one consumer and sends batches to an agent, one at a time.

    * A pull has at most `batch_size` messages and `batch_bytes`; a message with more bytes is one by itself.
    * `lanes` pass them on to the agent in batches; the next pull begins when they have room.
    * `restore` makes stream and consumer again when they are gone; `unanswered` is called with the reason if it fails,
      `answered` when pulling works again, whoever made them.
    * `on_stop` drains: it waits until everything handed over is settled, at most `drain_budget` seconds, so
      it has to run while the agents live. What is left is naked, and redelivered at once.
    """

    def __init__(
        self,
        spec: ConsumerSpec,
        *,
        broker: Broker,
        lanes: Lanes,
        restore: Callable[[], Awaitable[None]],
        unanswered: Callable[[str], None],
        answered: Callable[[], None],
        metrics: Metrics,
        drain_budget: float,
    ) -> None:
        super().__init__()
        self.name = spec.name
        self.company = spec.company
        self.consumer_type = spec.consumer_type
        self.stream = spec.stream
        self.durable = spec.durable
        self.last_fetch = time.monotonic()  # when a pull request was last answered
        self._broker = broker
        self._lanes = lanes
        self._restore = restore
        self._unanswered = unanswered
        self._answered = answered
        self._metrics = metrics
        self._labels = (spec.company, spec.consumer_type)
        self._drain_budget = drain_budget
        self.incarnation = Incarnation(broker, spec.stream)
        self._in_flight = InFlight(
            publish=broker.messaging.send,
            ack_wait=spec.ack_wait,
            incarnation=self.incarnation,
            store_clock=StoreClock(spec.stream, partial(metrics.store_time_stepped_back, *self._labels)),
        )
        self._requests = PullRequests(spec, broker, self._in_flight)
        self._woken = asyncio.Event()
        self._pause = FIRST_PAUSE
        self._failing = False
        self._draining = False
        self._loop_task: asyncio.Future[Any] | None = None

    @property
    def in_flight(self) -> int:
        """How many messages are in flight."""
        return len(self._in_flight)

    def in_flight_by_company(self) -> Counter[str]:
        """How many messages of each company are in flight."""
        return self._in_flight.by_company()

    @property
    def progress_count(self) -> int:
        """How many messages arrived and were settled, since its start."""
        return self._in_flight.progress_count

    @property
    def last_progress(self) -> float:
        """When one was last settled or nothing was in flight, in `time.monotonic()` seconds."""
        return self._in_flight.last_progress

    @property
    def alive(self) -> bool:
        """Whether it is pulling."""
        return self._loop_task is not None and not self._loop_task.done()

    async def on_start(self) -> None:
        """Begin to pull once the broker is connected. Raises `streams.jetstream.broker.Unusable`."""
        await self._broker.wait_connected()
        self._broker.watch(self._on_connection)
        self._broker.permissions.listen(self._requests.on_denied)
        self._note_answer()
        self._loop_task = self.add_future(self._run())
        self.add_future(self._keep_alive())

    async def on_stop(self) -> None:
        """Drain: last pull, last batch, then all that is in flight; give the rest back and flush."""
        if self._loop_task is None:
            return
        deadline = time.monotonic() + self._drain_budget
        self._draining = True
        self._woken.set()
        if self._failing:
            self._loop_task.cancel()
        await asyncio.wait({self._loop_task}, timeout=self._drain_budget)
        self._loop_task.cancel()
        self._requests.closed = True
        await self._in_flight.wait_empty(max(deadline - time.monotonic(), 0.0))
        self._lanes.close()
        unsettled = await self._in_flight.nak_all()
        if unsettled:
            logger.warning("%s gave %d messages back", self.durable, unsettled)
        # The subscription stays until the connection closes: a late message can still be given back.
        await self._broker.flush(FLUSH_SECONDS)

    async def _subscribe(self) -> None:
        """Subscribe; waits for the right to it."""
        told = ""
        while not self._draining:
            try:
                return await self._requests.subscribe()
            except BrokerError as error:
                if str(error) != told:
                    told = str(error)
                    logger.warning("%s cannot receive: %s", self.durable, error)
                await self._sleep(DENIED_PAUSE)

    async def _run(self) -> None:
        await self._subscribe()
        while not self._draining:
            deliveries = await self._pull()
            if not deliveries:
                continue
            await self._in_flight.set_incarnations()
            self._metrics.batch_received(*self._labels, len(deliveries))
            await self._lanes.hand_over(deliveries)

    async def _pull(self) -> Sequence[JetDelivery]:
        """One request: up to a batch of messages, as soon as any are there; nothing after a while."""
        if not self._requests.arrived:
            if not self._broker.connected:
                await self._sleep(LONGEST_PAUSE)
                return ()
            try:
                if not await self._requests.permitted():
                    await self._sleep(DENIED_PAUSE)
                    return ()
            except BrokerError as error:
                await self._failed(Status("", str(error)))
                return ()
            await self._request()
        deliveries, status, usable = self._requests.take()
        if usable:
            self._succeeded()
        elif status is not None and (status.empty or status.max_waiting):
            await self._nothing_there(status)
        elif self._broker.connected:
            if status is None:
                await self._requests.subscribe_again()
            await self._failed(status or Status("", "no answer"))
        return deliveries

    async def _request(self) -> None:
        if time.monotonic() - self._requests.last_ended > UNWATCHED:
            self.incarnation.doubt()
        self._metrics.pull_requested(*self._labels)
        await self._requests.send()

    async def _nothing_there(self, status: Status) -> None:
        self._succeeded()
        if status.max_waiting:
            self._requests.limits.warn_of_max_waiting(status)
            await self._sleep(MAX_WAITING_PAUSE)
        elif pause := self._requests.limits.pause:
            await self._sleep(pause)

    def _on_connection(self, up: bool) -> None:
        self.incarnation.doubt()
        self._requests.on_connection()
        if up:
            self._pause = FIRST_PAUSE
            self._woken.set()

    def _succeeded(self) -> None:
        self._note_answer()
        self._pause = FIRST_PAUSE
        self._broker.permissions.granted(PUBLISH, self._requests.subject)
        if self._failing:
            self._failing = False
            self._answered()
            logger.info("pulling from %s works again", self.durable)

    def _note_answer(self) -> None:
        self.last_fetch = time.monotonic()
        self._broker.jetstream.note_pull(self._requests.subject)

    async def _failed(self, status: Status) -> None:
        self._metrics.pull_failed(*self._labels)
        self.incarnation.doubt()
        first, self._failing = not self._failing, True
        if first:
            logger.warning("pulling from %s failed: %s %s", self.durable, status.code, status.text)
        if status.gone and not self._draining:
            await self._try_restore()
        await self._sleep(self._pause)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    async def _try_restore(self) -> None:
        try:
            await self._restore()
        except Exception as error:
            self._unanswered(str(error) or type(error).__name__)
        else:
            self._answered()

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but wake up when the connection is back and when the source stops."""
        self._woken.clear()
        if not self._draining:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._in_flight.ack_wait / 8)
            if self._broker.connected:
                try:
                    await self._in_flight.keep_alive()
                except BrokerError as error:
                    logger.debug("in-progress acks of %s failed: %s", self.durable, error)
