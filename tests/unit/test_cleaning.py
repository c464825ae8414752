"""Cleaning of JSON text before anything else reads it (PAY-1, PAY-9)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events.sanitize import sanitize

# Fragments from which broken and whole escapes come together.
NULS = ["\\", "\\\\", "\\u", "u", "0", "00", "0000", "\\u0000", "u0000"]
SURROGATES = ["\\ud83d", "\\ude00", "\\uD800", "\\udfff", "\\ud8", "d8", "d800"]
OTHERS = ["\\n", "\\u00e9", '\\"', '"', "{", "}", ":", " ", "e", "\u00e9", "\u2713"]
ESCAPES = st.lists(st.sampled_from([*NULS, *SURROGATES, *OTHERS])).map("".join)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | PLAIN,
    lambda inner: st.lists(inner) | st.dictionaries(PLAIN, inner),
    max_leaves=20,
)
DIRTY = st.recursive(
    st.text(st.characters(exclude_categories=[]) | st.sampled_from("\0\ud800\udfff\\u")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.binary() | ESCAPES.map(str.encode))
def test_the_outcome_is_always_valid_utf_8(body: bytes) -> None:
    sanitize(body).decode()


@given(st.binary() | ESCAPES.map(str.encode) | ESCAPES.map(lambda text: f'"{text}"'.encode()))
@example(b'"\\u00\\u000000"')
def test_cleaning_twice_is_cleaning_once(body: bytes) -> None:
    once = sanitize(body)
    assert sanitize(once) == once


@given(ESCAPES.map(lambda text: f'"{text}"'.encode()))
@example(b'"\\u00\\u000000"')
@example(b'"\\ud8\\u000000"')
def test_whatever_can_be_decoded_afterwards_holds_neither_nul_nor_surrogates(body: bytes) -> None:
    try:
        text = msgspec.json.decode(sanitize(body), type=str)
    except msgspec.DecodeError:
        return
    assert "\0" not in text
    text.encode()


@given(VALUES, st.booleans())
def test_valid_json_without_such_oddities_is_never_changed(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert sanitize(body) == body


@given(DIRTY)
def test_a_value_with_oddities_keeps_everything_else(value: Any) -> None:
    """NUL vanishes, half a surrogate pair becomes U+FFFD, in keys too."""
    mended = json.loads(sanitize(json.dumps(value).encode()))
    assert mended == json.loads(json.dumps(_sanitized(value)))


def _sanitized(value: Any) -> Any:
    if isinstance(value, str):
        # What json reads back joins halves that stand side by side.
        whole = json.loads(json.dumps(value))
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in whole if char != "\0")
    if isinstance(value, dict):
        return {_sanitized(key): _sanitized(item) for key, item in value.items()}
    return [_sanitized(item) for item in value]


@pytest.mark.rule("PAY-9")
@pytest.mark.parametrize(
    ("body", "mended"),
    [
        (rb'"a\u0000b"', rb'"ab"'),
        (rb'{"\u0000k":{"x":["\u0000"]}}', rb'{"k":{"x":[""]}}'),
        (rb'"\\u0000"', rb'"\\u0000"'),
        (rb'"\\\u0000"', rb'"\\"'),
        (rb'"\ud83d\ude00"', rb'"\ud83d\ude00"'),
        (rb'"\uD83D\uDE00"', rb'"\uD83D\uDE00"'),
        (rb'"\ud83d"', rb'"\ufffd"'),
        (rb'"\ude00\ud83d"', rb'"\ufffd\ufffd"'),
        (rb'"\ud83d\u0000\ude00"', rb'"\ufffd\ufffd"'),
        (rb'"\\ud800"', rb'"\\ud800"'),
        (b'"\xff"', b'"\xef\xbf\xbd"'),
        (b'"\xed\xa0\x80"', b'"' + b"\xef\xbf\xbd" * 3 + b'"'),
        (b"", b""),
    ],
)
def test_each_oddity_has_one_remedy(body: bytes, mended: bytes) -> None:
    assert sanitize(body) == mended
