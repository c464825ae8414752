"""Which event's value a column keeps: the newest, whatever the order in which events come (design 5).

A row's `last_metadata.version` is the version of the newest event on it; `last_metadata.versions` names the
version of each column that differs from it (`""`: written by something that had no version). An empty column
has no version: any event may fill it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

# The members of `last_metadata` that are not the event's own.
_OURS: Final = ("version", "versions", "adopted")


class Version(NamedTuple):
    """When an event was stored by JetStream (for a history item: its own time), ties by sequence."""

    ns: int
    sequence: int

    def __str__(self) -> str:
        """As it is written into metadata and envelopes."""
        return f"{self.ns}-{self.sequence}"


def parse(text: str | None) -> Version | None:
    """The version in `text`; None for what is absent, empty or no version."""
    ns, dash, sequence = (text or "").partition("-")
    if not (dash and ns.isascii() and sequence.isascii() and ns.isdigit() and sequence.isdigit()):
        return None
    return Version(int(ns), int(sequence))


class Origin(NamedTuple):
    """The event behind a write. `metadata` is the JSON object of contract 3.1, as text, without versions."""

    version: Version | None
    metadata: str
    history: bool = False

    def beats(self, stored: Version | None) -> bool:
        """Whether a value of this event replaces one of version `stored`.

        A value without version is older than any real-time event, and newer than any history item. The same
        version again is a repeat, and applies.
        """
        if stored is None:
            return not self.history
        return self.version is not None and self.version >= stored


def newer(first: Origin, second: Origin) -> Origin:
    """The origin with the higher version; of two equal ones the second."""
    if first.version is None:
        return second
    return second if second.beats(first.version) else first


@dataclass(slots=True)
class Draft:
    """What the events of one batch want of one row, in the order in which they came."""

    newest: Origin
    events: list[tuple[Origin, Mapping[str, Any]]] = field(default_factory=list)

    def add(self, origin: Origin, values: Mapping[str, Any]) -> None:
        """Fold in an event that feeds `values` (only columns it really feeds: no empty ones)."""
        self.newest = newer(self.newest, origin)
        self.events.append((origin, values))


class Settled(NamedTuple):
    """What to write: the columns that change, and the row's new `last_metadata` as JSON text.

    `held` is the version of each column that is not empty afterwards.
    """

    values: dict[str, Any]
    metadata: str
    held: Mapping[str, Version | None] = {}


def stamped(
    metadata: str,
    version: Version | None,
    versions: Mapping[str, Version | None] | None = None,
    adopted: Mapping[str, Any] | None = None,
) -> str:
    """`metadata` with the row's version, the versions of the columns that differ from it, and what is to be
    remembered of the time before versions."""
    parts = []
    if version is not None:
        parts.append(f'"version":"{version}"')
    if versions:
        marks = ",".join(f'"{column}":"{held or ""}"' for column, held in sorted(versions.items()))
        parts.append(f'"versions":{{{marks}}}')
    if adopted:
        parts.append(f'"adopted":{_json(adopted)}')
    if not parts:
        return metadata
    return f"{metadata[:-1]}{'' if metadata == '{}' else ','}{','.join(parts)}}}"


def remembered(text: str | None) -> dict[str, Any] | None:
    """A row's `last_metadata` as an object; None where it has none, or JSON of another kind."""
    if not text:
        return None
    try:
        # A sixth of the time of `json`, and each row that is there already costs one.
        known = msgspec.json.decode(text)
    except msgspec.DecodeError:
        known = json.loads(text)  # numbers of hundreds of digits, which `jsonb` takes
    return known if isinstance(known, dict) else None


def watermark(stored: Mapping[str, Any] | None) -> tuple[str, int] | None:
    """The last event that a writer without versions left on the row: its stream and sequence.

    It outlives `last_metadata` itself, because contract C5 has to know it whichever event comes first.
    """
    known = stored or {}
    source = known.get("adopted") or ({} if known.get("version") else known)
    stream, sequence = source.get("stream"), source.get("stream_sequence")
    return (stream, sequence) if stream and isinstance(sequence, int) else None


def settle(
    draft: Draft,
    stored: Mapping[str, Any] | None,
    filled: Collection[str],
    explicit: Collection[str] = (),
) -> Settled:
    """Decide between `draft` and the stored row.

    `stored` is the row's `last_metadata` (None for a new row), `filled` the versioned columns that are not
    empty; columns in `explicit` always get an entry, because their empty value cannot be told from a fed one.
    """
    known: Mapping[str, Any] = stored or {}
    row = parse(known.get("version"))
    marks: Mapping[str, str] = known.get("versions") or {}
    held = {column: parse(marks[column]) if column in marks else row for column in {*filled, *marks}}
    unversioned = {column for column, mark in held.items() if mark is None}
    unversioned.update((known.get("adopted") or {}).get("columns", ()))
    values = _fold(draft, held, unversioned)
    if row is None or draft.newest.beats(row):
        version, metadata = draft.newest.version, draft.newest.metadata
    else:
        version, metadata = row, _json({name: known[name] for name in known if name not in _OURS})
    differing = {column: mark for column, mark in held.items() if mark != version or column in explicit}
    return Settled(values, stamped(metadata, version, differing, _adopted(stored, held, unversioned)), held)


def _fold(draft: Draft, held: dict[str, Version | None], unversioned: set[str]) -> dict[str, Any]:
    """Apply the events one by one, as if each came alone; returns the values that change.

    A column that once had a value without version is closed to history for good: were it open after the next
    real-time value, a history item that came before that one would be lost, and the same item after it not.
    """
    values: dict[str, Any] = {}
    for origin, fed in draft.events:
        for column, value in fed.items():
            if column in held and (
                not origin.beats(held[column]) or (origin.history and column in unversioned)
            ):
                continue
            values[column] = value
            held[column] = origin.version
            if origin.version is None:
                unversioned.add(column)
    return values


def _adopted(
    stored: Mapping[str, Any] | None, held: Mapping[str, Version | None], unversioned: Collection[str]
) -> dict[str, Any]:
    """What later events must know of the row's time without versions, and can no longer see."""
    adopted: dict[str, Any] = {}
    columns = sorted(column for column in unversioned if held.get(column) is not None)
    if columns:
        adopted["columns"] = columns
    last = watermark(stored)
    if last is not None:
        adopted["stream"], adopted["stream_sequence"] = last
    return adopted


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
