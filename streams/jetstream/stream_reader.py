"""Direct reads from a stream, without a consumer."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

_NO_SUCH_MESSAGE: Final = 10037
_HEADER_START: Final = b"NATS/1.0\r\n"


class ApiError(Exception):
    """JetStream refused a request; `code` is the server's own error number."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code


class Api(Protocol):
    """The JetStream API, as `streams.jetstream.broker.Broker` offers it."""

    async def api(self, subject: str, body: object = None) -> dict[str, Any]:
        """The answer to a request. Raises `ApiError` and `BrokerError`."""
        ...


class RawStreamMessage(NamedTuple):
    """A message as it is stored in its stream."""

    subject: str
    sequence: int
    stored_ns: int
    headers: Mapping[str, str] | None
    data: bytes


async def get_message(
    api: Api, stream: str, sequence: int, subject: str | None = None
) -> RawStreamMessage | None:
    """The message of this sequence, or the first at or after it on `subject`; None if there is none.

    Raises `ApiError` and `BrokerError`.
    """
    query: dict[str, object] = {"seq": sequence}
    if subject is not None:
        query["next_by_subj"] = subject
    try:
        message = (await api.api(f"STREAM.MSG.GET.{stream}", query))["message"]
    except ApiError as error:
        if error.code == _NO_SUCH_MESSAGE:
            return None
        raise
    return RawStreamMessage(
        message["subject"],
        message["seq"],
        nanoseconds(message["time"]),
        _headers(base64.b64decode(message.get("hdrs", ""))),
        base64.b64decode(message.get("data", "")),
    )


def nanoseconds(text: str) -> int:
    """The nanoseconds since 1970 of a time as the server writes it, such as `2026-11-24T07:15:30.123456789Z`."""
    whole, _, rest = text.partition(".")
    digits = rest[: next((at for at, char in enumerate(rest) if not char.isdigit()), len(rest))]
    zone = rest[len(digits) :]
    seconds = datetime.fromisoformat(whole + zone).timestamp()
    return int(seconds) * 1_000_000_000 + int(digits.ljust(9, "0")[:9] or 0)


def _headers(raw: bytes) -> Mapping[str, str] | None:
    lines = raw.removeprefix(_HEADER_START).split(b"\r\n")
    pairs = (line.partition(b":") for line in lines if b":" in line)
    return {
        name.strip().decode(): value.strip().decode("utf-8", "replace") for name, _, value in pairs
    } or None
