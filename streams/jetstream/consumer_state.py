"""What the server says of our consumers: how far they are, and what is left to deliver."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from streams.jetstream.changes import NO_STREAM, look_up, refused
from streams.jetstream.specs import NANOSECONDS, ConsumerSpec
from streams.jetstream.stream_reader import Api, ApiError, get_message, nanoseconds


class ConsumerState(NamedTuple):
    """A consumer as the server described it.

    All messages up to stream sequence `ack_floor` are settled, `num_pending` are not delivered yet, `num_ack_pending`
    are delivered and not settled. `closed`: none is delivered now, because the consumer is paused or has
    `max_ack_pending` unsettled messages. `server_ns`: when that was, by the server's clock, Unix time; `noted`: by
    ours, `time.monotonic()`.
    """

    ack_floor: int
    num_pending: int
    num_ack_pending: int
    closed: bool
    server_ns: int
    noted: float


class ConsumerStates:
    """The last state of each consumer, in memory.

    A consumer that an operator deletes is created again at its position instead of at the start of its stream, and the
    watchdog notices a source that gets nothing although there are messages.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[tuple[str, str], ConsumerState] = {}

    async def read(self, api: Api, stream: str, durable: str) -> ConsumerState:
        """Ask for the state, and keep it. Raises `ApiError` and `BrokerError`."""
        return self.note(stream, durable, await api.api(f"CONSUMER.INFO.{stream}.{durable}"))

    def note(self, stream: str, durable: str, info: Mapping[str, Any]) -> ConsumerState:
        """Keep an answer to CONSUMER.INFO."""
        limit = info["config"].get("max_ack_pending", -1)
        state = self._known[stream, durable] = ConsumerState(
            ack_floor=info["ack_floor"]["stream_seq"],
            num_pending=info["num_pending"],
            num_ack_pending=info["num_ack_pending"],
            closed=bool(info.get("paused")) or 0 < limit <= info["num_ack_pending"],
            server_ns=nanoseconds(info["ts"]) if "ts" in info else 0,
            noted=self._clock(),
        )
        return state

    def of(self, stream: str, durable: str) -> ConsumerState | None:
        """The last state, however old; None if there was none yet."""
        return self._known.get((stream, durable))

    async def start_sequence(self, api: Api, stream: str, durable: str) -> int | None:
        """The sequence after the ack floor of a deleted consumer; None to begin at the start of the stream.

        None as well if the stream may have been deleted and created again, or restored from a backup: then the message
        at the floor is missing, or was stored after the state was read.

        Raises `TopologyError` and `BrokerError` when the server does not say. Then the consumer must not be created:
        from the start it would deliver the whole stream once more.
        """
        known = self._known.get((stream, durable))
        if known is None or not known.ack_floor:
            return None
        try:
            last = await get_message(api, stream, known.ack_floor)
        except ApiError as error:
            if error.code == NO_STREAM:
                return None
            raise refused("stream", stream, stream, error) from error
        return known.ack_floor + 1 if last is not None and last.stored_ns <= known.server_ns else None


async def has_delivery_limit(api: Api, spec: ConsumerSpec) -> bool:
    """Whether an operator gave this consumer a limit of deliveries. Raises `TopologyError` and `BrokerError`."""
    found = await look_up(api, "consumer", spec.stream, spec.durable)
    return found is not None and found["config"].get("max_deliver", -1) > 0


async def oldest_age(api: Api, stream: str, durable: str, subject: str) -> float:
    """Seconds since the oldest unsettled message of a consumer of one subject was stored; 0 without one.

    Raises `ApiError` and `BrokerError`.
    """
    info = await api.api(f"CONSUMER.INFO.{stream}.{durable}")
    if not info["num_pending"] + info["num_ack_pending"]:
        return 0.0
    oldest = await get_message(api, stream, info["ack_floor"]["stream_seq"] + 1, subject)
    return 0.0 if oldest is None else max(time.time() - oldest.stored_ns / NANOSECONDS, 0.0)
