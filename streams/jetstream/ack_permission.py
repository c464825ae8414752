"""The permission to acknowledge: without it each event would be delivered again until it counts as poison."""

from __future__ import annotations

import logging
from typing import Final

from streams.jetstream.messaging import Messaging
from streams.jetstream.permissions import ACK_PREFIX, PUBLISH, Denial, ack_prefix

logger = logging.getLogger(__name__)

_IN_PROGRESS: Final = b"+WPI"
# The end of a reply subject: delivered once, sequences 0 (which no message has), no time, nothing pending.
_NO_EVENT: Final = "1.0.0.0.0"


class AckPermission:
    """Whether acks for one consumer are permitted; to be asked before each pull request.

    At the start, on a new connection and after a denial that is tried with an in-progress ack for no message.
    """

    # Acks of what was pulled before the first denial are lost, which costs a delivery each. With a `max_deliver` of 1
    # these messages are not delivered again, but reach `MaxDeliveriesListener` at the first pull request afterwards.

    def __init__(self, messaging: Messaging, stream: str, durable: str) -> None:
        self._messaging = messaging
        self._durable = durable
        self._prefix = f"{ACK_PREFIX}{stream}.{durable}"
        self._known = False
        self._doubts = 0
        self._denied = False

    def doubt(self) -> None:
        """Have it tried again before the next pull request."""
        self._known = False
        self._doubts += 1

    def concerns(self, denial: Denial) -> bool:
        """Whether the server refused an ack for this consumer."""
        return denial.kind == PUBLISH and ack_prefix(denial.subject) == self._prefix

    def note_delivery(self, reply: str) -> None:
        """Take over the form of ack subjects of this server, from the reply subject of a delivery."""
        if not reply.startswith(f"{self._prefix}."):
            self._prefix = ack_prefix(reply)

    async def granted(self, timeout: float) -> bool:
        """Whether acks are permitted. Raises `BrokerError` when the server does not answer in `timeout` seconds."""
        if self._known:
            return True
        doubts = self._doubts
        granted = await self._messaging.may_publish(f"{self._prefix}.{_NO_EVENT}", _IN_PROGRESS, timeout)
        # Another connection, made meanwhile, may have other permissions.
        self._known = granted and doubts == self._doubts
        if granted == self._denied:
            self._denied = not granted
            if self._denied:
                logger.warning("nothing is pulled from %s while its acks are denied", self._durable)
            else:
                logger.info("pulling from %s goes on: its acks are taken again", self._durable)
        return granted
