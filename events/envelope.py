"""The dead-letter envelope (DLQ-1): written for every event that fails for good, read back for its replay."""

from __future__ import annotations

import base64
import datetime
from typing import Final

import msgspec

from events.errors import Malformed
from events.fields import NOTHING
from events.sanitize import sanitize

NULL: Final = b"null"


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """The envelope of `v1.dlq`, as it is published and read.

    Every field may be missing or null; one of the existing service has no version.
    """

    source_subject: str | None = None
    company: str | None = None
    original_payload: msgspec.Raw = NOTHING
    original_payload_encoding: str | None = None
    error: str | None = None
    error_type: str | None = None
    retry_count: int | None = None
    max_retry: int | None = None
    event_version: str | None = None
    ts: str | None = None

    @property
    def payload(self) -> bytes | None:
        """`original_payload` as JSON text; None when there is none."""
        payload = bytes(self.original_payload)
        return None if payload in (b"", NULL) else payload


_decode = msgspec.json.Decoder(Envelope).decode
_encoder = msgspec.json.Encoder()


def embed(payload: bytes) -> tuple[bytes, str | None]:
    """`payload` as JSON text to embed, and its encoding if it had to be changed (DLQ-1).

    Valid JSON stays as it is; other text becomes a JSON string; what is no text, or has NUL, base64.
    """
    cleaned = sanitize(payload)
    try:
        msgspec.json.decode(cleaned, type=msgspec.Raw)
        return cleaned, None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return _encoder.encode(base64.b64encode(payload).decode()), "base64"
    return _encoder.encode(text), None


def encode(dead_letter: Envelope) -> bytes:
    """The envelope as it is published; `original_payload` must be JSON text (see `embed`)."""
    return _encoder.encode(dead_letter)


def decode(body: bytes) -> Envelope:
    """Read an envelope. Raises `Malformed` when it is not JSON or a field has the wrong type."""
    try:
        return _decode(sanitize(body))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"dead letter is not an envelope: {error}") from error


def original(dead_letter: Envelope) -> bytes:
    """The event's body as it was first published, as far as the envelope can tell.

    Raises `Malformed` when the payload is not in the encoding that the envelope names.
    """
    payload = dead_letter.payload
    if payload is None:
        return b""
    if dead_letter.original_payload_encoding == "base64":
        try:
            return base64.b64decode(msgspec.json.decode(payload, type=str), validate=True)
        except (msgspec.DecodeError, ValueError) as error:
            raise Malformed("original_payload is not base64 text") from error
    if payload[:1] == b'"':
        return msgspec.json.decode(payload, type=str).encode()
    return payload


def now() -> str:
    """The present, ISO-8601 UTC with `Z`."""
    return written(datetime.datetime.now(datetime.UTC))


def written(moment: datetime.datetime) -> str:
    """A moment as the envelope writes it: ISO-8601 UTC with `Z`."""
    return moment.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
