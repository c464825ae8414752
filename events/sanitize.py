"""Make text storable: PostgreSQL takes neither NUL nor lone surrogates (PAY-9)."""

from __future__ import annotations

import re

# A surrogate pair, a lone surrogate or NUL, or any other escape: matching every escape keeps `\\\\u0000` (a
# backslash, then text) apart from the escape `\\u0000`.
_ESCAPE = re.compile(
    rb"\\(?:u(?P<pair>[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|u(?P<lone>[dD][89a-fA-F][0-9a-fA-F]{2})|u(?P<nul>0000)"
    # A broken escape keeps the NULs behind it: without them it could grow together with what follows.
    rb"|u[0-9a-fA-F]{0,3}(?![0-9a-fA-F])(?:\\u0000)*|.)",
    re.DOTALL,
)


def _replacement(match: re.Match[bytes]) -> bytes:
    if match["nul"]:
        return b""
    if match["lone"]:
        return b"\\ufffd"
    return match[0]


def sanitize(body: bytes) -> bytes:
    """`body` as valid UTF-8; where it is JSON without escaped NUL, lone surrogates replaced by U+FFFD.

    Whether it is JSON at all is for the decoder to say; text without these oddities comes back unchanged.
    """
    if not body.isascii():
        body = body.decode(errors="replace").encode()
    # Nearly no body has any escape of this kind: one look is enough for those.
    if b"\\u" in body and (b"\\u0000" in body or b"\\ud" in body or b"\\uD" in body):
        return _ESCAPE.sub(_replacement, body)
    return body


def valid_text(text: str) -> str:
    """`text` as it can be encoded in UTF-8: lone surrogates replaced by `?`."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def storable_text(text: str) -> str:
    """`text` as PostgreSQL takes it: valid, and without NUL."""
    return valid_text(text.replace("\0", ""))
