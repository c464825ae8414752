"""The dead-letter envelope (DLQ-1): written for every event that fails for good, read back for its replay."""

from __future__ import annotations

import base64
import datetime
from dataclasses import dataclass
from typing import Final

import msgspec

from events.errors import Malformed
from events.sanitize import sanitize

NULL: Final = b"null"


@dataclass(frozen=True, slots=True)
class Envelope:
    """One envelope. `original_payload` is JSON text, or None when the envelope had none."""

    source_subject: str
    company: str
    original_payload: bytes | None
    error: str
    error_type: str
    retry_count: int
    max_retry: int
    ts: str | None
    event_version: str | None
    original_payload_encoding: str | None = None


class WireEnvelope(msgspec.Struct, omit_defaults=True):
    """The envelope of `v1.dlq`, as it is published and read."""

    source_subject: str | None = None
    company: str | None = None
    original_payload: msgspec.Raw = msgspec.Raw(b"")
    original_payload_encoding: str | None = None
    error: str | None = None
    error_type: str | None = None
    retry_count: int | None = None
    max_retry: int | None = None
    event_version: str | None = None
    ts: str | None = None


_decode = msgspec.json.Decoder(WireEnvelope).decode
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


def encode(letter: Envelope) -> bytes:
    """The envelope as it is published; `original_payload` must be JSON text (see `embed`)."""
    return _encoder.encode(
        WireEnvelope(
            source_subject=letter.source_subject,
            company=letter.company,
            original_payload=msgspec.Raw(letter.original_payload or NULL),
            original_payload_encoding=letter.original_payload_encoding,
            error=letter.error,
            error_type=letter.error_type,
            retry_count=letter.retry_count,
            max_retry=letter.max_retry,
            event_version=letter.event_version,
            ts=letter.ts or now(),
        )
    )


def decode(body: bytes) -> Envelope:
    """Read an envelope, also one of the former service (no version) or with fields missing.

    Raises `Malformed` when it is not JSON or a field has the wrong type.
    """
    try:
        raw = _decode(sanitize(body))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"dead letter is not an envelope: {error}") from error
    payload = bytes(raw.original_payload)
    return Envelope(
        source_subject=raw.source_subject or "",
        company=raw.company or "",
        original_payload=payload if payload and payload != NULL else None,
        original_payload_encoding=raw.original_payload_encoding,
        error=raw.error or "",
        error_type=raw.error_type or "",
        retry_count=raw.retry_count or 0,
        max_retry=raw.max_retry or 0,
        event_version=raw.event_version,
        ts=raw.ts,
    )


def original(letter: Envelope) -> bytes:
    """The event's body as it was first published, as far as the envelope can tell.

    Raises `Malformed` when the payload is not in the encoding that the envelope names.
    """
    if letter.original_payload is None:
        return b""
    if letter.original_payload_encoding == "base64":
        try:
            return base64.b64decode(msgspec.json.decode(letter.original_payload, type=str), validate=True)
        except (msgspec.DecodeError, ValueError) as error:
            raise Malformed("original_payload is not base64 text") from error
    if letter.original_payload[:1] == b'"':
        return msgspec.json.decode(letter.original_payload, type=str).encode()
    return letter.original_payload


def now() -> str:
    """The present, ISO-8601 UTC with `Z`."""
    return written(datetime.datetime.now(datetime.UTC))


def written(moment: datetime.datetime) -> str:
    """A moment as the envelope writes it: ISO-8601 UTC with `Z`."""
    return moment.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
