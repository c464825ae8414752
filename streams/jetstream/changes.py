"""Changes to streams and consumers, and errors of the server with advice for the operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from streams.jetstream.stream_reader import Api, ApiError

Action = Literal["create", "add_subjects", "update", "take_over", "delete", "warning"]
Kind = Literal["stream", "consumer"]
Request = tuple[str, Mapping[str, object] | None]

# Error numbers of the server.
NO_STREAM: Final = 10059
_NO_CONSUMER: Final = 10014
_STREAM_EXISTS: Final = 10058
_CONSUMER_EXISTS: Final = (10148, 10105, 10013)
EXISTS: Final = frozenset((_STREAM_EXISTS, *_CONSUMER_EXISTS))

_NODES: Final = "start the NATS nodes that are missing, or set NATS_STREAM_REPLICAS to what there is"
_ROOM: Final = "free or raise the storage of the account or of the server"
_WORKQUEUE: Final = (
    "of a stream with workqueue retention each message belongs to one consumer: delete the other consumer, or "
    "change the retention to limits"
)
# By error number of the server.
_ADVICE: Final[Mapping[int, str]] = {
    10002: _ROOM,
    10005: _NODES,
    10008: "it passes when a majority of the NATS nodes is up",
    10023: _ROOM,
    10026: "raise max_consumers of the stream (nats stream edit {stream} --max-consumers N) or of the account, or "
    "delete consumers that nobody needs",
    10027: "raise max_streams of the account, or delete a stream that nobody needs",
    10028: _ROOM,
    10034: "a mirror takes no subjects: add them to the stream it mirrors",
    10047: _ROOM,
    10065: "another stream has these subjects: take them from it, or name it in NATS_REALTIME_STREAM, "
    "NATS_HISTORICAL_STREAM or NATS_DLQSTREAM",
    10074: _NODES,
    10099: _WORKQUEUE,
    10100: _WORKQUEUE,
    10101: _WORKQUEUE,
    10109: "a sealed stream cannot be changed",
    10113: "the account wants a max_bytes for each stream: make this one by hand, or lift the rule",
    10122: "the account's largest max_bytes is below what is asked for: make this stream by hand, or lift the limit",
}


class TopologyError(Exception):
    """A stream or consumer cannot be used or created; the text says what to do.

    An operator may change that: callers that can wait try again.
    """


@dataclass(frozen=True, slots=True)
class TopologyChange:
    """A change, or a warning if it has no `request` to the JetStream API."""

    kind: Kind
    name: str
    action: Action
    text: str
    request: Request | None = field(default=None, repr=False)


def refused(kind: Kind, name: str, stream: str, error: ApiError, change: str = "") -> TopologyError:
    """The error for a request that the server refused; `change` is what was requested."""
    where = f"{kind} {name}" if kind == "stream" else f"{kind} {name} on stream {stream}"
    advice = _ADVICE.get(error.code, "").format(stream=stream)
    what = f"{where}: {change}" if change else where
    return TopologyError(f"{what}: {error}" + (f"; {advice}" if advice else ""))


async def look_up(api: Api, kind: Kind, stream: str, name: str = "") -> dict[str, Any] | None:
    """The information about a stream, or about its consumer `name`; None if it does not exist.

    Raises `TopologyError` and `BrokerError`.
    """
    subject = f"STREAM.INFO.{stream}" if kind == "stream" else f"CONSUMER.INFO.{stream}.{name}"
    try:
        return await api.api(subject)
    except ApiError as error:
        if error.code in (NO_STREAM, _NO_CONSUMER):
            return None
        raise refused(kind, name or stream, stream, error) from error
