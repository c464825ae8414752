"""Whether the server takes our acks: without them each event would come again until it counts as poison."""

from __future__ import annotations

import logging
from typing import Final

from streams.jetstream.broker import Broker
from streams.jetstream.permissions import ACK_PREFIX, PUBLISH, Denial, ack_prefix

logger = logging.getLogger(__name__)

_IN_PROGRESS: Final = b"+WPI"
# Delivered once, sequences 0 (which no event has), no time, nothing pending.
_NO_EVENT: Final = "1.0.0.0.0"


class AckPermission:
    """Asked before a consumer is pulled. In doubt (at the start, on a new connection, after a denial) it is tried
    with an in-progress ack for no event."""

    def __init__(self, broker: Broker, stream: str, durable: str) -> None:
        self._broker = broker
        self._durable = durable
        self._prefix = f"{ACK_PREFIX}{stream}.{durable}"
        self._known = False
        self._doubts = 0
        self._told = False

    def doubt(self) -> None:
        """Try it again before the next pull."""
        self._known = False
        self._doubts += 1

    def concerns(self, denial: Denial) -> bool:
        """Whether it is our acks that the server refused."""
        return denial.right == PUBLISH and ack_prefix(denial.subject) == self._prefix

    def num_delivered(self, reply: str) -> None:
        """Remember the form in which this server wants acks."""
        if not reply.startswith(f"{self._prefix}."):
            self._prefix = ack_prefix(reply)

    async def granted(self, timeout: float) -> bool:
        """Whether acks are taken. Raises `BrokerError` when the server does not answer in `timeout` seconds."""
        if self._known:
            return True
        doubts = self._doubts
        granted = await self._broker.may_publish(f"{self._prefix}.{_NO_EVENT}", _IN_PROGRESS, timeout)
        # Another connection, begun meanwhile, may have other rights.
        self._known = granted and doubts == self._doubts
        self._tell(granted)
        return granted

    def _tell(self, granted: bool) -> None:
        if self._told == granted:
            self._told = not granted
            if self._told:
                logger.warning("nothing is pulled from %s while its acks are denied", self._durable)
            else:
                logger.info("pulling from %s goes on: its acks are taken again", self._durable)
