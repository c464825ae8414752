"""The deliveries of a JetStream consumer that are not settled yet."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

from events.delivery import MessageMetadata
from events.errors import BrokerError
from streams.jetstream.incarnation import Incarnation
from streams.jetstream.permissions import ACK_PREFIX
from streams.jetstream.store_clock import StoreClock

Publish = Callable[[str, bytes], Awaitable[None]]

_ACK: Final = b"+ACK"
_NAK: Final = b"-NAK"
_TERM: Final = b"+TERM"
_IN_PROGRESS: Final = b"+WPI"
_SHORT_TOKENS: Final = 9


def parse_reply(reply: str, incarnation: int = 0) -> MessageMetadata:
    """The metadata of a delivery, from its reply subject. Raises `ValueError` if that is of another form.

    `$JS.ACK.<stream>.<consumer>.<num delivered>.<stream seq>.<consumer seq>.<time>.<num pending>`;
    newer servers put `<domain>.<account hash>` before the stream and may add a last token.
    """
    tokens = reply.split(".")
    if not reply.startswith(ACK_PREFIX) or len(tokens) < _SHORT_TOKENS:
        raise ValueError("not the reply subject of a JetStream delivery")
    domain, start = "", 2
    if len(tokens) > _SHORT_TOKENS:
        domain, start = ("" if tokens[2] == "_" else tokens[2]), 4
    stream, consumer, *numbers = tokens[start : start + 7]
    num_delivered, sequence, consumer_sequence, stored_ns, num_pending = map(int, numbers)
    return MessageMetadata(
        stream,
        consumer,
        domain,
        sequence,
        consumer_sequence,
        num_delivered,
        stored_ns,
        num_pending,
        incarnation,
    )


class JetDelivery:
    """One message of a JetStream consumer; implements `events.delivery.Delivery`."""

    __slots__ = (
        "_in_flight",
        "_reply",
        "_settled",
        "ack_wait_began",
        "data",
        "headers",
        "metadata",
        "received",
        "stale",
        "subject",
    )

    def __init__(
        self,
        in_flight: InFlight,
        subject: str,
        data: bytes,
        headers: Mapping[str, str] | None,
        reply: str,
        incarnation: int,
    ) -> None:
        self.subject = subject
        self.data = data
        self.headers = headers
        self.received = self.ack_wait_began = time.perf_counter()
        self.metadata = parse_reply(reply, incarnation)
        self.stale = False  # its stream is gone: its ack would settle another message
        self._in_flight = in_flight
        self._reply = reply
        self._settled = False

    async def ack(self) -> None:
        """See `Delivery.ack`."""
        await self._settle(_ACK)

    async def nak(self, delay: float = 0.0) -> None:
        """See `Delivery.nak`."""
        nanoseconds = int(delay * 1e9)
        await self._settle(b'%b {"delay": %d}' % (_NAK, nanoseconds) if nanoseconds > 0 else _NAK)

    async def term(self) -> None:
        """See `Delivery.term`."""
        await self._settle(_TERM)

    async def _settle(self, payload: bytes) -> None:
        if not self._settled:
            self._settled = True
            await self._in_flight.settle(self, self._reply, payload)

    async def in_progress(self) -> None:
        """Have its ack wait begin again. Raises `BrokerError`."""
        self.ack_wait_began = time.perf_counter()
        if not self.stale:
            await self._in_flight.publish(self._reply, _IN_PROGRESS)


class InFlight:
    """The unsettled deliveries of one source.

    `keep_alive` has to run several times an ack wait, or they are delivered again.
    """

    def __init__(
        self, *, publish: Publish, ack_wait: float, incarnation: Incarnation, store_clock: StoreClock
    ) -> None:
        self.publish = publish
        self._incarnation = incarnation
        self._store_clock = store_clock
        self.ack_wait = ack_wait
        self._open: dict[JetDelivery, None] = {}
        self._without_incarnation: list[JetDelivery] = []
        self._newest: MessageMetadata | None = None
        self._progress = time.monotonic()
        self.progress_count = 0  # deliveries plus settlements
        self._emptied = asyncio.Event()
        self._emptied.set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def last_progress(self) -> float:
        """When one was last settled or none was in flight, in `time.monotonic()` seconds."""
        return self._progress if self._open else time.monotonic()

    def add(self, subject: str, data: bytes, headers: Mapping[str, str] | None, reply: str) -> JetDelivery:
        """Add a message that has just arrived."""
        delivery = JetDelivery(self, subject, data, headers, reply, self._incarnation.value)
        self._mark_stale(delivery.metadata)
        self._incarnation.note_delivery(delivery.metadata.consumer_sequence)
        if self._incarnation.in_doubt:
            self._without_incarnation.append(delivery)
        self._store_clock.note(delivery.metadata)
        if not self._open:
            self._emptied.clear()
            self._progress = time.monotonic()
        self._open[delivery] = None
        self.progress_count += 1
        return delivery

    def by_company(self) -> Counter[str]:
        """How many there are of each company, by the last token of their subjects."""
        return Counter(delivery.subject.rpartition(".")[2] for delivery in self._open)

    async def settle(self, delivery: JetDelivery, reply: str, payload: bytes) -> None:
        """Send the ack, nak or term. Raises `BrokerError`: then it is delivered again after its ack wait."""
        del self._open[delivery]
        self._progress = time.monotonic()
        self.progress_count += 1
        if not self._open:
            self._emptied.set()
        if not delivery.stale:
            await self.publish(reply, payload)

    async def set_incarnations(self) -> None:
        """Complete the metadata of deliveries that arrived while the incarnation was in doubt; may ask the server."""
        if self._without_incarnation:
            deliveries, self._without_incarnation = self._without_incarnation, []
            incarnation = await self._incarnation.resolve()
            for delivery in deliveries:
                delivery.metadata = delivery.metadata._replace(incarnation=incarnation)

    def _mark_stale(self, arrived: MessageMetadata) -> None:
        """Mark what is in flight as stale if `arrived` shows that the stream was created again.

        That shows in a younger message with a sequence that was given out before.
        """
        # The server settles by sequence alone: an old ack would settle a new message. A redelivery after a step of the
        # store times can look the same; then the messages in flight are not acked, and are delivered once more.
        newest = self._newest
        if newest is None or arrived.stored_ns > newest.stored_ns:
            self._newest = arrived
            if newest is not None and arrived.stream_sequence <= newest.stream_sequence:
                self._incarnation.doubt()
                for delivery in self._open:
                    delivery.stale = True

    async def keep_alive(self) -> None:
        """Renew the ack wait of those for which half of it is over. Raises `BrokerError`."""
        oldest = time.perf_counter() - self.ack_wait / 2
        for delivery in [one for one in self._open if one.ack_wait_began < oldest]:
            if delivery in self._open:
                await delivery.in_progress()

    async def wait_empty(self, timeout: float) -> None:
        """Wait until all are settled, at most `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._emptied.wait()

    async def nak_all(self) -> int:
        """Nak all that are left; how many those were."""
        left = list(self._open)
        for delivery in left:
            try:
                await delivery.nak()
            except BrokerError:
                continue  # not connected: it is delivered again after its ack wait
        return len(left)
