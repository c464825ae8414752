"""Where our consumers stood when the server last told: how far they had come, and what they had before them.

Kept in memory, for two uses: a consumer that an operator deletes is made again where it stood and not at the
start of its stream, and the watchdog notices a source that gets nothing although something is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from streams.jetstream.changes import NO_STREAM, refused
from streams.jetstream.stream_reader import Api, ApiError, get_message, nanoseconds


class ConsumerState(NamedTuple):
    """What the server said of a consumer.

    All up to stream sequence `floor` is settled, by whichever replica. `pending` are not delivered yet;
    `closed`: the server delivers none of them now, because the consumer is paused or at its limit of
    unsettled ones. `told_ns`: the server's clock, Unix time; `noted`: ours, `time.monotonic()`.
    """

    ack_floor: int
    pending: int
    closed: bool
    told_ns: int
    noted: float


class ConsumerStates:
    """The last consumer_state of each consumer, by stream and durable."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[tuple[str, str], ConsumerState] = {}

    def note(self, stream: str, durable: str, info: Mapping[str, Any]) -> None:
        """Keep what `CONSUMER.INFO` answered."""
        limit = info["config"].get("max_ack_pending", -1)
        self._known[stream, durable] = ConsumerState(
            ack_floor=info["ack_floor"]["stream_seq"],
            pending=info["num_pending"],
            closed=bool(info.get("paused")) or 0 < limit <= info["num_ack_pending"],
            told_ns=nanoseconds(info["ts"]) if "ts" in info else 0,
            noted=self._clock(),
        )

    def of(self, stream: str, durable: str) -> ConsumerState | None:
        """The last one, however old; None if there was none yet."""
        return self._known.get((stream, durable))

    async def beginning(self, api: Api, stream: str, durable: str) -> int | None:
        """The sequence at which a deleted consumer may begin again; None: only at the start of the stream.

        None as well unless the stream certainly is the one in which the consumer stood: one that was made
        anew, or came back from a backup, gives the same sequences to other events. Then the event at the
        floor is missing, or was stored after the server spoke of it.

        Raises `TopologyError` and `BrokerError` when the server does not say: the consumer has to wait, for a start
        from the beginning would deliver the whole stream once more.
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
        return known.ack_floor + 1 if last is not None and last.stored_ns <= known.told_ns else None
