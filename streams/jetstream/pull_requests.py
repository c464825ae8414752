"""The pull requests for one consumer: what answers them, and the limits that the server sets."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from nats.aio.msg import Msg
from nats.js.api import Header

from events.errors import BrokerError
from streams.jetstream.ack_permission import AckPermission
from streams.jetstream.broker import Broker
from streams.jetstream.in_flight import InFlight, JetDelivery
from streams.jetstream.permissions import ACK_PREFIX, PUBLISH, SUBSCRIPTION, Denial
from streams.jetstream.specs import ConsumerSpec

logger = logging.getLogger(__name__)

# How long the server keeps a pull request of an idle source. Also bounds how long a stop waits for it.
EXPIRES: Final = 1.0
# Past its expiry a request that got no answer is lost: the server restarted, or the link is dead.
GRACE: Final = 1.0

_EMPTY: Final = frozenset(("404", "408"))
_LIMIT: Final = re.compile(r"Exceeded MaxRequest(Batch|Expires|MaxBytes) of (\S+)")
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|m|µs|us|ns|s)")
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}
_FIELDS: Final = {"Batch": "batch", "MaxBytes": "batch_bytes", "Expires": "expires"}
# Seconds between two requests to a consumer that lets none wait for long.
MIN_REQUEST_INTERVAL: Final = 0.1
MAX_WAITING_PAUSE: Final = 0.25


class Status(NamedTuple):
    """Code and text of a reply without a message."""

    code: str
    text: str

    @property
    def empty(self) -> bool:
        """Whether there is no message to deliver now."""
        return self.code in _EMPTY

    @property
    def too_large(self) -> bool:
        """Whether the next message has more bytes than the request allows."""
        return self.code == "409" and "Message Size Exceeds MaxBytes" in self.text

    @property
    def gone(self) -> bool:
        """Whether the consumer or the stream may be deleted."""
        return self.code == "503" or (self.code == "409" and "eleted" in self.text)

    @property
    def max_waiting(self) -> bool:
        """Whether as many requests of all replicas wait as the consumer allows."""
        return "MaxWaiting" in self.text or "Requests Pending" in self.text


class PullRequestLimits:
    """The largest request that the consumer accepts: ours, lowered for good by the limits in its replies.

    `batch` messages, `batch_bytes`, and `expires` seconds that a request waits. Each limit is logged once.
    """

    def __init__(self, consumer: str, *, batch: int, batch_bytes: int, expires: float) -> None:
        self.batch = batch
        self.batch_bytes = batch_bytes
        self.expires = expires
        self._consumer = consumer
        self._logged: set[str] = set()

    def request(self, batch: int) -> bytes:
        """The body of a request for so many messages; a single one may have any size."""
        limits = {"batch": batch, "no_wait": True, "expires": int(self.expires * 1e9)}
        if batch > 1:
            limits["max_bytes"] = self.batch_bytes
        return msgspec.json.encode(limits)

    def learn(self, status: Status | None) -> bool:
        """Take over the limit in a refusal; False if it has none, or none that is lower."""
        found = _LIMIT.search(status.text) if status is not None and status.code == "409" else None
        if found is None:
            return False
        which, text = found.groups()
        name, limit = _FIELDS[which], _seconds(text) if which == "Expires" else _number(text)
        if not 0 < limit < getattr(self, name):
            return False
        setattr(self, name, limit)
        self._warn(f"the server allows MaxRequest{which} of {text}")
        return True

    def warn_of_max_waiting(self, status: Status) -> None:
        """Log the limit of waiting requests, which the replicas share."""
        self._warn(f"as many requests wait there as it allows (max_waiting): {status.text}")

    @property
    def pause(self) -> float:
        """Seconds to wait between two requests of an idle consumer."""
        return max(MIN_REQUEST_INTERVAL - self.expires, 0.0)

    def _warn(self, text: str) -> None:
        if text not in self._logged:
            self._logged.add(text)
            logger.warning("pulling from %s: %s; requests keep to it from now on", self._consumer, text)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _seconds(text: str) -> float:
    return sum(float(amount) * _UNITS[unit] for amount, unit in _DURATION.findall(text))


class Answer(NamedTuple):
    """What a request brought. `usable`: there are deliveries, or the next request asks for less."""

    deliveries: Sequence[JetDelivery]
    status: Status | None  # None: no answer, or none was needed
    usable: bool


class PullRequests:
    """Sends the pull requests for one consumer, one at a time; what arrives goes to `in_flight`."""

    def __init__(self, spec: ConsumerSpec, broker: Broker, in_flight: InFlight) -> None:
        self.subject = broker.api_subject(f"CONSUMER.MSG.NEXT.{spec.stream}.{spec.durable}")
        self.limits = PullRequestLimits(
            spec.durable, batch=spec.batch_size, batch_bytes=spec.batch_bytes, expires=EXPIRES
        )
        self.arrived: list[JetDelivery] = []
        self.last_ended = time.monotonic()
        self.closed = False  # what arrives is given back
        self._permissions = broker.permissions
        self._messaging = broker.messaging
        self._acks = AckPermission(broker.messaging, spec.stream, spec.durable)
        self._in_flight = in_flight
        self._wanted = spec.batch_size
        self._inbox = broker.messaging.new_inbox()
        self._sent = 0
        self._reply = ""
        self._status: Status | None = None
        self._answered = asyncio.Event()

    async def subscribe(self) -> None:
        """Have messages sent to an inbox of our own. Raises `BrokerError`, also when that is denied."""
        await self._messaging.subscribe(f"{self._inbox}.*", self._on_message)

    async def subscribe_again(self) -> None:
        """Restore the subscription, which the server may have dropped."""
        await self._messaging.subscribe_again(f"{self._inbox}.*")

    async def permitted(self) -> bool:
        """Whether we may receive and acknowledge: a delivery counts, also one in vain. Raises `BrokerError`."""
        if self._permissions.denial(SUBSCRIPTION, f"{self._inbox}.*") is not None:
            return False
        return await self._acks.granted(EXPIRES + GRACE)

    async def send(self) -> None:
        """Send one, and wait until it is over: as soon as any messages are there, or after a while."""
        self._sent += 1
        # A reply subject for each request: a late status of an earlier one must not end this one.
        self._reply = f"{self._inbox}.{self._sent}"
        self._status = None
        self._answered.clear()
        # Without a status: no answer. `asyncio.timeout` costs several times as much, for each request.
        overdue = asyncio.get_running_loop().call_later(EXPIRES + GRACE, self._answered.set)
        try:
            await self._messaging.send(self.subject, self.limits.request(self._wanted), self._reply)
            await self._answered.wait()
        except BrokerError as error:
            self._status = Status("", str(error))
        finally:
            overdue.cancel()
        self.last_ended = time.monotonic()

    def take(self) -> Answer:
        """What has arrived; the next request keeps to what the answer says of limits."""
        deliveries, self.arrived = self.arrived, []
        status = self._status
        too_large = not deliveries and status is not None and status.too_large
        learned = self.limits.learn(status)
        self._wanted = 1 if too_large else self.limits.batch
        return Answer(deliveries, status, bool(deliveries or too_large or learned))

    def on_connection(self) -> None:
        """The connection was lost, or is back: the server has forgotten the request in both cases."""
        self._answered.set()
        self._acks.doubt()

    def on_denied(self, denial: Denial) -> None:
        """The server denies a right: end the request if it is the one to send it."""
        if denial.kind == PUBLISH and denial.subject == self.subject:
            self._status = Status("", str(denial))
            self._answered.set()
        elif self._acks.concerns(denial):
            self._acks.doubt()

    async def _on_message(self, message: Msg) -> None:
        if message.reply.startswith(ACK_PREFIX):
            delivery = self._in_flight.add(message.subject, message.data, message.headers, message.reply)
            if self.closed:
                await delivery.nak()
                return
            self._acks.note_delivery(message.reply)
            self.arrived.append(delivery)
            if len(self.arrived) >= self._wanted:
                self._answered.set()
        elif message.subject == self._reply and message.headers:
            text = str(message.headers.get(Header.DESCRIPTION, "")).strip()
            self._status = Status(message.headers.get("Status", ""), text)
            self._answered.set()
