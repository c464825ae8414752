"""Bodies as a hostile or broken sender might publish them: valid ones of each type, taken apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, Final

from hypothesis import strategies as st

from tests import builders

Path = list[Any]


class Body(bytes):
    """What is published; of a long one a failure shows both ends."""

    def __repr__(self) -> str:
        whole = bytes(self)
        return repr(whole if len(whole) < 900 else whole[:600] + b" ... " + whole[-200:])


_VALUES: Final[tuple[Any, ...]] = (
    None,
    "",
    0,
    -1,
    True,
    [],
    {},
    2**31,
    2**63,
    10**400,
    -(2**63) - 1,
    0.5,
    1e300,
    float("inf"),
    "1795500123",
    "not a number",
    {"low": 1, "high": 0, "unsigned": True},
    {"low": "1"},
    [1, [2, [3]]],
    {"a": {"b": [None, {"c": "\u0000"}]}},
    "\u0000",
    "a\u0000b",
    "\ud800",
    "\udc00\ud800",
    "\U0001f600",
    "x" * 3000,
    "é" * 3000,
    "a b' \"; DROP TABLE messages; --",
    "{schema}",
    "%s $1 \\",
    "Other",
    "IN",
    "OUT",
    "status@broadcast",
    "120363@g.us",
    "+62 (812) 3",
    "+ ()",
)
_FRAGMENTS: Final = (
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\xc3", b"\xf4\x90\x80\x80", b"\\u0000", b"\\ud83d", b"\\ud83d\\u0041",
    b"\\u00", b"\\x", b"{", b"}", b"[", b"]", b'"', b",", b":", b"1e999999", b"1" * 500, b"-", b"nul", b"NaN",
    b"\xef\xbb\xbf", b"\n", b"/* */", b"[" * 2000, b'{"a":' * 2000, b'"' + b"y" * 9000 + b'"', b"{}", b"null",
    b'{"message_id":"m"}', b'"company_id":"Other",', b'"agent_id":"",', b'"flow":"IN","flow":"OUT",',
    b'"message_obj":' + b'{"a":' * 1500 + b"1" + b"}" * 1500, b'"last_message":{"n":1e400000}',
    b'"message_obj":{"n":1e400000}', b'"edited_message_obj":{"n":[1e-20000,"\\u0000"]}',
)  # fmt: skip
_WHOLE: Final = (b"", b" ", b"null", b"[]", b"1", b'"text"', b"{}", b"\xff\xfe", b"{" * 5000, b"[" * 50000)


def _corpus() -> dict[str, list[Any]]:
    """Some valid payloads of each type: full, bare, and with the parts that gateways leave out."""
    absent = builders.ABSENT
    changes: dict[str, list[dict[str, Any]]] = {
        "v1.messages.upsert": [
            {},
            {"campaign": {"is_campaign": True, "tags": "a,b", "assigned_to": "u", "origin": "ads"}},
            {"message_obj": absent, "key": absent, "message_timestamp": absent, "from_phone": absent},
        ],
        "v1.messages.update": [
            {},
            {"edited_message_obj": {"a": [1]}, "is_deleted": False, "message_url": "u"},
        ],
        "v1.chats.upsert": [{}, {"unread_count": absent, "last_message": absent, "is_group": True}],
        "v1.chats.update": [{}, {"unread_count": absent}, {"last_message": absent, "unread_count": 7}],
        "v1.history.messages": [{}, {"is_last_batch": True, "agent_id": builders.AGENT}],
    }
    return {
        kind: [build(**change) for change in changes.get(kind, [{}])]
        for kind, build in builders.BUILDERS.items()
    }


CORPUS: Final = _corpus()


def bodies(kind: str) -> st.SearchStrategy[bytes]:
    """Mutated bodies of one event type: up to three changes of the payload, then up to two of its bytes."""
    place = st.integers(0, 2**16)
    field = st.tuples(st.sampled_from(sorted(_FIELD_CHANGES)), place, st.sampled_from(_VALUES))
    piece = st.tuples(st.sampled_from(sorted(_BYTE_CHANGES)), place, st.sampled_from(_FRAGMENTS))
    mutated = st.tuples(
        st.sampled_from(CORPUS[kind]),
        st.lists(field, max_size=3),
        st.one_of(st.just([]), st.just([]), st.lists(piece, max_size=2)),
    ).map(lambda drawn: Body(_mutated(*drawn)))
    whole = st.sampled_from(_WHOLE).map(Body)
    return st.integers(0, 40).flatmap(lambda way: mutated if way else whole)


def _mutated(payload: Any, fields: list[tuple[str, int, Any]], pieces: list[tuple[str, int, bytes]]) -> bytes:
    payload = json.loads(json.dumps(payload))
    for change, place, value in fields:
        paths = list(_paths(payload))
        if paths:
            _FIELD_CHANGES[change](payload, paths[place % len(paths)], deepcopy(value))
    # Escapes keep lone surrogates and NUL; every other body has them as they are.
    body = json.dumps(payload).encode()
    if len(fields) % 2:
        body = json.dumps(payload, ensure_ascii=False).encode(errors="surrogatepass")
    for name, place, fragment in pieces:
        body = _BYTE_CHANGES[name](body, place % (len(body) + 1), fragment)
    return body


def _paths(value: Any, path: Path | None = None) -> Iterator[Path]:
    """The place of every member, nested ones too, but not of what was nested here."""
    here = path or []
    if len(here) > 5:
        return
    members = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, member in members:
        yield [*here, name]
        yield from _paths(member, [*here, name])


def _parent(payload: Any, path: Path) -> Any:
    for name in path[:-1]:
        payload = payload[name]
    return payload


def _set(payload: Any, path: Path, value: Any) -> None:
    _parent(payload, path)[path[-1]] = value


def _drop(payload: Any, path: Path, _: Any) -> None:
    del _parent(payload, path)[path[-1]]


def _rename(payload: Any, path: Path, value: Any) -> None:
    parent = _parent(payload, path)
    if isinstance(parent, dict):
        parent[str(value)[:50]] = parent.pop(path[-1])


def _nest(payload: Any, path: Path, _: Any) -> None:
    value = _parent(payload, path)[path[-1]]
    for _ in range(40):
        value = {"deep": [value]}
    _set(payload, path, value)


def _grow(payload: Any, path: Path, value: Any) -> None:
    _set(payload, path, [deepcopy(value) for _ in range(200)] if len(path) % 2 else str(value)[:99] * 200)


_FIELD_CHANGES: Final[dict[str, Callable[[Any, Path, Any], None]]] = {
    "set": _set,
    "set again": _set,
    "drop": _drop,
    "rename": _rename,
    "nest": _nest,
    "grow": _grow,
}
_BYTE_CHANGES: Final[dict[str, Callable[[bytes, int, bytes], bytes]]] = {
    "insert": lambda body, at, fragment: body[:at] + fragment + body[at:],
    "overwrite": lambda body, at, fragment: body[:at] + fragment + body[at + len(fragment) :],
    "cut": lambda body, at, fragment: body[:at],
    "append": lambda body, at, fragment: body + fragment,
    "twice": lambda body, at, fragment: body + body,
    "member": lambda body, at, fragment: b"{" + fragment.rstrip(b",") + b"," + body[1:],
}
