"""Messages that the server itself gave up, at a durable to which an operator set a limit (design 4, C14, OC13).

The server only tells their sequences, and only to those who listen at that moment.
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

from events.delivery import Delivery, MessageMetadata
from events.errors import BrokerError
from streams.jetstream.broker import Broker
from streams.jetstream.incarnation import known
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
    """A message that will not be delivered any more; implements `events.delivery.Delivery`.

    Nobody is told how it was settled, but after a nak it is handed over once more.
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
        self._settled: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()

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
        """Wait for the outcome: None when done with, else the seconds after which it is wanted again."""
        return await self._settled

    def _settle(self, again_after: float | None) -> None:
        if not self._settled.done():
            self._settled.set_result(again_after)


class MaxDeliveriesListener(mode.Service):
    """Hands each message that reached the durable's limit to `given_up`, until one is settled by ack or term.

    Replicas share the advisories: each goes to one of them.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        stream: str,
        durable: str,
        given_up: Callable[[Delivery], Awaitable[None]],
    ) -> None:
        super().__init__()
        self._broker = broker
        self._stream = stream
        self._durable = durable
        self._given_up = given_up

    async def on_start(self) -> None:
        """Begin to listen. Raises `streams.jetstream.broker.Unusable` and `BrokerError`."""
        await self._broker.wait_connected()
        subject = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{self._stream}.{self._durable}"
        await self._broker.subscribe(subject, self._on_advisory, queue=self._durable)

    async def _on_advisory(self, message: Msg) -> None:
        advisory = msgspec.json.decode(message.data, type=_Advisory)
        self.add_future(self._hand_over(advisory))

    async def _hand_over(self, advisory: _Advisory) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                message = await get_message(self._broker, advisory.stream, advisory.stream_seq)
                incarnation = await known(self._broker, advisory.stream)
            except (ApiError, BrokerError) as error:
                logger.warning("message %d reached its limit: %s", advisory.stream_seq, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            if message is None:
                logger.warning("message %d reached its limit, and is gone", advisory.stream_seq)
                return
            delivery = MaxDeliveriesMessage(message, advisory, incarnation)
            await self._given_up(delivery)
            again_after = await delivery.settled()
            if again_after is None:
                return
            await asyncio.sleep(max(again_after, FIRST_PAUSE))
