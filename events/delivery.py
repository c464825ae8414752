"""What an agent sees of a broker: deliveries in batches. JetStream is one implementation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from events.sanitize import storable_text
from events.subjects import ConsumerType, Tenant


class MessageMetadata(NamedTuple):
    """Where a delivery comes from: the facts behind `last_metadata`."""

    stream: str
    consumer: str
    domain: str
    stream_sequence: int
    consumer_sequence: int
    num_delivered: int  # 1 for the first delivery
    stored_ns: int  # JetStream's store time, nanoseconds since 1970
    num_pending: int
    incarnation: int = 0  # when the stream was made, nanoseconds since 1970; 0: not known


class Delivery(Protocol):
    """One message in flight. It is settled exactly once: by ack, nak or term."""

    subject: str  # the full subject it was published to
    data: bytes  # the body as it came
    headers: Mapping[str, str] | None
    metadata: MessageMetadata
    received: float  # when it reached this process, in seconds of `time.perf_counter()`

    def ack(self) -> Awaitable[None]:
        """Settle it as done. Raises `BrokerError` if the broker cannot be told."""
        ...

    def nak(self, delay: float = 0.0) -> Awaitable[None]:
        """Ask for it again after `delay` seconds. Raises `BrokerError`."""
        ...

    def term(self) -> Awaitable[None]:
        """Settle it as given up. Raises `BrokerError`."""
        ...


def message_id(delivery: Delivery) -> str:
    """The publisher's `Nats-Msg-Id`, else `msg-<stream sequence>`; always storable text."""
    name = (delivery.headers or {}).get("Nats-Msg-Id") or f"msg-{delivery.metadata.stream_sequence}"
    return storable_text(name)


class Publisher(Protocol):
    """Where dead letters go."""

    def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> Awaitable[object]:
        """Store `body` durably; a confirmation `duplicate` counts as stored.

        Raises `TooLarge` when body and headers exceed the broker's limit (nothing was sent),
        `BrokerError` when the broker does not confirm.
        """
        ...


class SourceStatus(Protocol):
    """What readiness, watchdog and status page read of a source. Times are `time.monotonic()` seconds."""

    @property
    def name(self) -> str:
        """Consumer type and company, as `/ready` names the source."""
        ...

    @property
    def company(self) -> str:
        """Whose events it pulls; `*` for all companies."""
        ...

    @property
    def consumer_type(self) -> ConsumerType:
        """The type of its consumer."""
        ...

    @property
    def stream(self) -> str:
        """The stream it pulls from."""
        ...

    @property
    def durable(self) -> str:
        """The name of its consumer."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it is pulling."""
        ...

    @property
    def in_flight(self) -> int:
        """Deliveries in flight: received and not settled yet."""
        ...

    @property
    def progress_count(self) -> int:
        """Deliveries that were received or settled since the start."""
        ...

    @property
    def last_fetch(self) -> float:
        """When a pull request was last answered."""
        ...

    @property
    def last_progress(self) -> float:
        """When a delivery was last settled, or nothing was in flight."""
        ...


class TooLarge(Exception):
    """The message is bigger than the broker takes."""


@dataclass(slots=True, eq=False)
class Batch:
    """Deliveries of one tenant from one source, in stream order: one item of a channel.

    The agent calls `release` when it takes the next batch, and `finish` when it is done with this one; the deliveries
    themselves are settled one by one, before or after that.
    """

    tenant: Tenant
    consumer_type: ConsumerType
    deliveries: Sequence[Delivery]
    on_finished: Callable[[], None] | None = None
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """Let the source send its next batch."""
        self.released.set()

    def finish(self) -> None:
        """The agent does no more for this batch: everything is written, and settled or handed on."""
        self.released.set()
        if self.on_finished is not None:
            self.on_finished()
