"""Messages that reached the delivery limit of a durable to which an operator gave one.

The server publishes only their sequences, and only to subscribers at that moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import mode
import msgspec
from nats.aio.msg import Msg

from events.backoff import Backoff
from events.delivery import Delivery, MessageMetadata
from events.errors import BrokerError
from streams.jetstream.broker import Broker
from streams.jetstream.incarnation import created_or_zero
from streams.jetstream.stream_reader import ApiError, RawStreamMessage, get_message

logger = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0


class _Advisory(msgspec.Struct):
    stream: str
    consumer: str
    stream_seq: int
    deliveries: int = 0


class MaxDeliveriesMessage:
    """A message that the server does not deliver any more; implements `events.delivery.Delivery`.

    The server hears nothing of its ack or nak; after a nak the listener passes it on once more.
    """

    def __init__(self, message: RawStreamMessage, advisory: _Advisory, incarnation: int = 0) -> None:
        self.subject: str = message.subject
        self.data: bytes = message.data
        self.headers: Mapping[str, str] | None = message.headers
        self.received: float = time.perf_counter()
        self.metadata = MessageMetadata(
            stream=advisory.stream,
            consumer=advisory.consumer,
            domain="",
            stream_sequence=message.sequence,
            consumer_sequence=0,
            num_delivered=advisory.deliveries,
            stored_ns=message.stored_ns,
            num_pending=0,
            incarnation=incarnation,
        )
        self._nak_delay: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()

    async def ack(self) -> None:
        """See `Delivery.ack`."""
        self._settle(None)

    async def nak(self, delay: float = 0.0) -> None:
        """See `Delivery.nak`."""
        self._settle(delay)

    async def term(self) -> None:
        """See `Delivery.term`."""
        self._settle(None)

    async def settled(self) -> float | None:
        """Wait for ack, term or nak: None, or the delay of the nak in seconds."""
        return await self._nak_delay

    def _settle(self, delay: float | None) -> None:
        if not self._nak_delay.done():
            self._nak_delay.set_result(delay)


class MaxDeliveriesListener(mode.Service):
    """Passes each message that reached the durable's limit to `on_max_deliveries`, until its ack or term.

    Replicas share the advisories: each goes to one of them.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        stream: str,
        durable: str,
        on_max_deliveries: Callable[[Delivery], Awaitable[None]],
    ) -> None:
        super().__init__()
        self._broker = broker
        self._stream = stream
        self._durable = durable
        self._on_max_deliveries = on_max_deliveries

    async def on_start(self) -> None:
        """Subscribe. Raises `streams.jetstream.broker.Unusable` and `BrokerError`."""
        await self._broker.wait_connected()
        subject = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{self._stream}.{self._durable}"
        await self._broker.messaging.subscribe(subject, self._on_advisory, queue=self._durable)

    async def _on_advisory(self, message: Msg) -> None:
        advisory = msgspec.json.decode(message.data, type=_Advisory)
        self.add_future(self._pass_on(advisory))

    async def _pass_on(self, advisory: _Advisory) -> None:
        backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            try:
                message = await get_message(self._broker, advisory.stream, advisory.stream_seq)
                incarnation = await created_or_zero(self._broker, advisory.stream)
            except (ApiError, BrokerError) as error:
                logger.warning("message %d reached its limit: %s", advisory.stream_seq, error)
                await backoff.wait()
                continue
            if message is None:
                logger.warning("message %d reached its limit, and is gone", advisory.stream_seq)
                return
            delivery = MaxDeliveriesMessage(message, advisory, incarnation)
            await self._on_max_deliveries(delivery)
            delay = await delivery.settled()
            if delay is None:
                return
            await asyncio.sleep(max(delay, FIRST_PAUSE))
