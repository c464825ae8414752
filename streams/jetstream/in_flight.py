"""What we hold of a JetStream consumer: deliveries that are not settled yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from events.delivery import MessageMetadata
from events.errors import BrokerError
from streams.jetstream.incarnation import Incarnation, StoreClock
from streams.jetstream.permissions import ACK_PREFIX

Settle = Callable[[str, bytes], Awaitable[None]]

_ACK: Final = b"+ACK"
_NAK: Final = b"-NAK"
_TERM: Final = b"+TERM"
_IN_PROGRESS: Final = b"+WPI"
_SHORT_TOKENS: Final = 9


def parse_reply(reply: str, incarnation: int = 0) -> MessageMetadata:
    """The facts in a delivery's reply subject, and the stream's incarnation. Raises `ValueError` if it is none.

    `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`; newer servers put
    `<domain>.<account hash>` before the stream and may add a last token.
    """
    tokens = reply.split(".")
    if not reply.startswith(ACK_PREFIX) or len(tokens) < _SHORT_TOKENS:
        raise ValueError("not the reply subject of a JetStream delivery")
    domain, start = "", 2
    if len(tokens) > _SHORT_TOKENS:
        domain, start = ("" if tokens[2] == "_" else tokens[2]), 4
    stream, consumer, delivered, sequence, own_sequence, stored, pending = tokens[start : start + 7]
    return MessageMetadata(
        stream,
        consumer,
        domain,
        int(sequence),
        int(own_sequence),
        int(delivered),
        int(stored),
        int(pending),
        incarnation,
    )


class JetDelivery:
    """One JetStream message in our hands; implements `events.delivery.Delivery`."""

    __slots__ = (
        "_held",
        "_provenance",
        "_reply",
        "_settled",
        "data",
        "headers",
        "received",
        "stale",
        "subject",
        "touched",
    )

    def __init__(
        self,
        held: InFlight,
        subject: str,
        data: bytes,
        headers: Mapping[str, str] | None,
        reply: str,
        incarnation: int,
    ) -> None:
        self.subject = subject
        self.data = data
        self.headers = headers
        self.received = self.touched = time.perf_counter()
        self.stale = False  # its stream is gone, and nothing can be said of it any more
        self._held = held
        self._reply = reply
        self._settled = False
        self._provenance = parse_reply(reply, incarnation)

    @property
    def metadata(self) -> MessageMetadata:
        """Stream, consumer, sequences and times."""
        return self._provenance

    def stamp(self, incarnation: int) -> None:
        """Set the incarnation of its stream, which was in doubt when it arrived."""
        self._provenance = self._provenance._replace(incarnation=incarnation)

    async def ack(self) -> None:
        """See `Delivery.ack`."""
        if not self._settled:
            self._settled = True
            await self._held.settle(self, self._reply, _ACK)

    async def nak(self, delay: float = 0.0) -> None:
        """See `Delivery.nak`."""
        if not self._settled:
            self._settled = True
            nanoseconds = int(delay * 1e9)
            payload = b'%b {"delay": %d}' % (_NAK, nanoseconds) if nanoseconds > 0 else _NAK
            await self._held.settle(self, self._reply, payload)

    async def term(self) -> None:
        """See `Delivery.term`."""
        if not self._settled:
            self._settled = True
            await self._held.settle(self, self._reply, _TERM)

    async def in_progress(self) -> None:
        """Start its ack wait anew. Raises `BrokerError`."""
        self.touched = time.perf_counter()
        if not self.stale:
            await self._held.publish(self._reply, _IN_PROGRESS)


class InFlight:
    """The unsettled deliveries of one source.

    What is not told to the broker in time comes again: `keep_alive` has to run several times an ack wait.
    """

    def __init__(
        self, *, publish: Settle, ack_wait: float, incarnation: Incarnation, store_clock: StoreClock
    ) -> None:
        self.publish = publish
        self._incarnation = incarnation
        self._store_clock = store_clock
        self._ack_wait = ack_wait
        self._open: dict[JetDelivery, None] = {}
        self._newest: MessageMetadata | None = None
        self._progress = time.monotonic()
        self.progress_count = 0  # how many came and were settled
        self._emptied = asyncio.Event()
        self._emptied.set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def last_progress(self) -> float:
        """When one was last settled or nothing was held, in `time.monotonic()` seconds."""
        return self._progress if self._open else time.monotonic()

    def add(self, subject: str, data: bytes, headers: Mapping[str, str] | None, reply: str) -> JetDelivery:
        """Take charge of a message that has just arrived."""
        delivery = JetDelivery(self, subject, data, headers, reply, self._incarnation.value)
        self._disown_the_past(delivery)
        self._incarnation.arrived(delivery)
        self._store_clock.note(delivery.metadata)
        if not self._open:
            self._emptied.clear()
            self._progress = time.monotonic()
        self._open[delivery] = None
        self.progress_count += 1
        return delivery

    async def settle(self, delivery: JetDelivery, reply: str, payload: bytes) -> None:
        """Tell the broker the outcome. Raises `BrokerError`: then it comes again after its ack wait."""
        del self._open[delivery]
        self._progress = time.monotonic()
        self.progress_count += 1
        if not self._open:
            self._emptied.set()
        if not delivery.stale:
            await self.publish(reply, payload)

    def _disown_the_past(self, arrived: JetDelivery) -> None:
        """See to it that no event is settled by the ack of another one.

        A stream that was deleted and made anew counts from 1 again, and the server goes by the sequence alone.
        It shows in a younger event with a sequence that was already given out.
        """
        newest, self._newest = self._newest, arrived.metadata
        if newest is None or arrived.metadata.stored_ns <= newest.stored_ns:
            self._newest = newest or arrived.metadata
        elif arrived.metadata.stream_sequence <= newest.stream_sequence:
            self._incarnation.doubt()
            for delivery in self._open:
                delivery.stale = True

    async def keep_alive(self) -> None:
        """Renew the ack wait of all that used up half of it. Raises `BrokerError`."""
        oldest = time.perf_counter() - self._ack_wait / 2
        for delivery in [held for held in self._open if held.touched < oldest]:
            if delivery in self._open:
                await delivery.in_progress()

    async def wait_empty(self, timeout: float) -> bool:
        """Wait until all is settled, at most `timeout` seconds; False if something is left."""
        try:
            async with asyncio.timeout(timeout):
                await self._emptied.wait()
        except TimeoutError:
            return False
        return True

    async def nak_all(self) -> int:
        """Ask for all that is left to be delivered again at once; how many those were."""
        left = list(self._open)
        for delivery in left:
            try:
                await delivery.nak()
            except BrokerError:
                continue  # not connected: the server gives it out again after its ack wait
        return len(left)
