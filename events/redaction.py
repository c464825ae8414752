"""Blot out what looks like a credential in texts that leave the process: log lines and reasons of dead letters.

Our own texts name fields and never values; this is the second line, for texts of libraries and of gateways.
Payloads are kept whole: a dead letter's `original_payload` is there to be replayed.
"""

from __future__ import annotations

import re
from typing import Any, Final

MASK: Final = "***"
_NAMES: Final = (
    r"api[-_ ]?key|token|authori[sz]ation|passw(?:or)?d|passphrase|secret|credential|cookie|private[-_ ]?key"
    r"|access[-_ ]?key|bearer|jwt|nkey"
)
_NAME: Final = re.compile(_NAMES, re.IGNORECASE)
_IN_URL: Final = re.compile(r"(?<=://)[^/\s]*@")
# A name that holds one of the words, `:` or `=`, and its value: quoted (perhaps inside quoted JSON), a list or
# object, or up to the next separator. `Bearer` and the like before a value are not the value.
_FIELD: Final = re.compile(
    rf"(?P<name>(?:{_NAMES})[\w.-]{{0,40}}\\{{0,9}}[\"']?\s{{0,9}}[:=]\s{{0,9}})"
    r"(?:\\+\"[^\"]*\"?|\"(?:\\.|[^\"\\])*\"?|'(?:\\.|[^'\\])*'?|[\[{][^\]}]*[\]}]?"
    r"|(?:(?:bearer|basic|digest|token)\s+)?[^\s,;&}\])\"']+)",
    re.IGNORECASE,
)
# A credential without a name.
_BEARER: Final = re.compile(r"\b(?P<name>bearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE)


def redacted(text: str) -> str:
    """`text` with the values of fields that look like credentials, and passwords in URLs, replaced by `***`."""
    if "@" in text:
        text = _IN_URL.sub(f"{MASK}@", text)
    if _NAME.search(text):
        text = _FIELD.sub(rf"\g<name>{MASK}", text)
        text = _BEARER.sub(rf"\g<name>{MASK}", text)
    return text


def redacted_value(name: str, value: Any) -> Any:
    """`value` of a field `name`, safe to be logged: all of it, or what is in it, blotted out."""
    if value is not None and _NAME.search(name):
        return MASK
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_value(str(key), member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_value("", member) for member in value]
    return value
