"""Size limits and confirmations of messages that are published to a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from events.delivery import TooLarge
from events.errors import BrokerError

_MESSAGE_TOO_LARGE: Final = 10054
_HEADER_FRAME: Final = len(b"NATS/1.0\r\n\r\n")
_HEADER_LINE: Final = len(b": \r\n")


def wire_size(body: bytes, headers: Mapping[str, str]) -> int:
    """Bytes that the server counts against its payload limit: body and encoded headers."""
    if not headers:
        return len(body)
    lines = sum(len(key.encode()) + len(value.encode()) + _HEADER_LINE for key, value in headers.items())
    return len(body) + _HEADER_FRAME + lines


def is_new(confirmation: bytes) -> bool:
    """Whether the stream stored the message now; False for a duplicate. Raises `TooLarge` and `BrokerError`."""
    decoded = msgspec.json.decode(confirmation)
    if (error := decoded.get("error")) is None:
        return not decoded.get("duplicate", False)
    if error.get("err_code") == _MESSAGE_TOO_LARGE:
        raise TooLarge("the stream takes no message of this size")
    raise BrokerError(f"NATS did not store it: {error.get('description')} ({error.get('err_code')})")
