"""Last writer wins by version: which event's value a column keeps, whatever their order (VER-1 to VER-10).

A row's `last_metadata.version` is the version of the newest event on it; `last_metadata.versions` holds the
version of each column that differs from it (`""`: written by something that had no version). An empty column
has no version: any event may fill it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import Any, Final, NamedTuple

import msgspec

# The members of `last_metadata` that are not the event's own.
_OURS: Final = ("version", "versions", "adopted")
# Store times come from the clock of the stream's leader. So far apart, in ns, two events of one incarnation are
# ordered by sequence: the clocks of the nodes may differ by as much.
CLOCK_STEP_NS: Final = 10_000_000_000
_LONGEST: Final = len("-".join(["9" * 19] * 3))
_INT64_MAX: Final = 2**63 - 1


class Version(msgspec.Struct, frozen=True, gc=False):
    """An event's place among all: its store time in ns (of a history item: its own time), sequence and incarnation.

    The incarnation is the time in ns at which the stream was made; 0 if it is not known, and for history items. There
    is no `<` and no `>`: `supersedes` is no total order, so versions cannot be sorted.
    """

    ns: int
    sequence: int
    incarnation: int = 0

    def __str__(self) -> str:
        """As it is written into metadata and envelopes."""
        if self.incarnation:
            return f"{self.ns}-{self.sequence}-{self.incarnation}"
        return f"{self.ns}-{self.sequence}"

    @property
    def event(self) -> tuple[int, int]:
        """The same for each spelling of an event's version, with its incarnation or without."""
        return self.ns, self.sequence

    def supersedes(self, other: Version) -> bool:
        """Whether it is newer than `other`.

        Of one incarnation and at most `CLOCK_STEP_NS` apart, the higher sequence is newer; otherwise the later time,
        then the higher sequence. Of any two versions that differ in time or sequence exactly one supersedes the other.
        """
        if (
            self.incarnation
            and self.incarnation == other.incarnation
            and self.sequence != other.sequence
            and -CLOCK_STEP_NS <= self.ns - other.ns <= CLOCK_STEP_NS
        ):
            return self.sequence > other.sequence
        return self.ns > other.ns or (self.ns == other.ns and self.sequence > other.sequence)

    def lacks(self, other: Version | None) -> bool:
        """Whether `other` is the same event, and knows the incarnation that is not known here."""
        return (
            not self.incarnation and other is not None and other.incarnation > 0 and other.event == self.event
        )


def parse(text: str | None) -> Version | None:
    """The version in `text`, with an incarnation or without; None for what is absent, empty or no version."""
    # Once for each row that is there already: a regular expression takes three times as long.
    if not text or len(text) > _LONGEST or not text.isascii() or not text.replace("-", "", 2).isdigit():
        return None
    try:
        version = Version(*map(int, text.split("-")))
    except (ValueError, TypeError):  # a part is empty, or there is only one
        return None
    fits = version.ns <= _INT64_MAX and version.sequence <= _INT64_MAX and version.incarnation <= _INT64_MAX
    return version if fits else None


class EventStamp(NamedTuple):
    """The event behind a write. `metadata` is the event's part of `last_metadata`, as JSON text without versions."""

    version: Version | None
    metadata: str
    history: bool = False

    def supersedes(self, stored: Version | None) -> bool:
        """Whether a value of this event replaces one of version `stored`.

        A value without version is older than any real-time event, and newer than any history item. The same
        version again is a repeat, and applies.
        """
        if stored is None:
            return not self.history
        return self.version is not None and not stored.supersedes(self.version)


def newer(first: EventStamp, second: EventStamp) -> EventStamp:
    """The stamp with the newer version; of two equal ones the second, unless only the first knows the incarnation."""
    if first.version is None:
        return second
    if second.version is not None and second.version.lacks(first.version):
        return first
    return second if second.supersedes(first.version) else first


# The events of one batch for one row, in the order in which they came, each with its values: columns that it feeds.
StampedValues = Sequence[tuple[EventStamp, Mapping[str, Any]]]


class MergeResult(NamedTuple):
    """What to write: the columns that change, and the row's new `last_metadata` as JSON text.

    `column_versions` has the version of each column that is not empty afterwards.
    """

    values: dict[str, Any]
    metadata: str
    column_versions: Mapping[str, Version | None] = {}


def encode_metadata(
    metadata: str,
    version: Version | None,
    versions: Mapping[str, Version | None] | None = None,
    adopted: Mapping[str, Any] | None = None,
) -> str:
    """`metadata` with the row's version, the versions of the columns that differ from it, and `_adopted`."""
    parts = []
    text = "" if version is None else str(version)
    if text:
        parts.append(f'"version":"{text}"')
    if versions:
        columns = ",".join(
            f'"{column}":"{text if each is version else each or ""}"'
            for column, each in sorted(versions.items())
        )
        parts.append(f'"versions":{{{columns}}}')
    if adopted:
        parts.append(f'"adopted":{_json(adopted)}')
    if not parts:
        return metadata
    return f"{metadata[:-1]}{'' if metadata == '{}' else ','}{','.join(parts)}}}"


def decode_metadata(text: str | None) -> dict[str, Any] | None:
    """A row's `last_metadata` as an object; None where it has none, or JSON of another kind."""
    if not text:
        return None
    try:
        # A sixth of the time of `json`, and each row that is there already costs one.
        metadata = msgspec.json.decode(text)
    except msgspec.DecodeError:
        metadata = json.loads(text)  # numbers of hundreds of digits, which `jsonb` takes
    return metadata if isinstance(metadata, dict) else None


def watermark(stored: Mapping[str, Any] | None) -> tuple[str, int] | None:
    """The stream and sequence of the last event that a writer without versions left on the row.

    Kept in `adopted` once `last_metadata` is another event's: steps up to it are counted, whichever event comes first.
    """
    metadata = stored or {}
    last = metadata.get("adopted") or ({} if metadata.get("version") else metadata)
    stream, sequence = last.get("stream"), last.get("stream_sequence")
    return (stream, sequence) if stream and isinstance(sequence, int) else None


def merge(
    events: StampedValues,
    stored: Mapping[str, Any] | None,
    filled: Collection[str],
    explicit: Collection[str] = (),
) -> MergeResult:
    """Merge `events`, of which there is one at least, into the stored row.

    `stored` is the row's `last_metadata` (None for a new row), `filled` the versioned columns that are not
    empty; columns in `explicit` always get an entry, because their empty value cannot be told from a fed one.
    """
    row: Mapping[str, Any] = stored or {}
    row_version = parse(row.get("version"))
    written: Mapping[str, str] = row.get("versions") or {}
    versions = {
        column: parse(written[column]) if column in written else row_version for column in {*filled, *written}
    }
    unversioned = {column for column, version in versions.items() if version is None}
    unversioned.update((row.get("adopted") or {}).get("columns", ()))
    values = _fold(events, versions, unversioned)
    newest = reduce(newer, (stamp for stamp, _ in events))
    if row_version is None or newest.supersedes(row_version):
        version, metadata = _fuller(newest.version, row_version), newest.metadata
    else:
        version, metadata = row_version, _json({name: row[name] for name in row if name not in _OURS})
    differing = {column: each for column, each in versions.items() if each != version or column in explicit}
    adopted = _adopted(stored, versions, unversioned)
    return MergeResult(values, encode_metadata(metadata, version, differing, adopted), versions)


def _fold(
    events: StampedValues, versions: dict[str, Version | None], unversioned: set[str]
) -> dict[str, Any]:
    """Apply the events one by one, as if each came alone; returns the values that change.

    A column that once had a value without version is closed to history for good: were it open after the next
    real-time value, a history item that came before that one would be lost, and the same item after it not.
    """
    values: dict[str, Any] = {}
    for stamp, fed in events:
        for column, value in fed.items():
            if column in versions and (
                not stamp.supersedes(versions[column]) or (stamp.history and column in unversioned)
            ):
                continue
            values[column] = value
            versions[column] = _fuller(stamp.version, versions.get(column))
            if stamp.version is None:
                unversioned.add(column)
    return values


def _fuller(version: Version | None, stored: Version | None) -> Version | None:
    """`version`, or the `stored` one of the same event if only that knows the incarnation."""
    return stored if version is not None and version.lacks(stored) else version


def _adopted(
    stored: Mapping[str, Any] | None, versions: Mapping[str, Version | None], unversioned: Collection[str]
) -> dict[str, Any]:
    """What was on the row before it had versions, and later events need: its columns, and the watermark."""
    adopted: dict[str, Any] = {}
    columns = sorted(column for column in unversioned if versions.get(column) is not None)
    if columns:
        adopted["columns"] = columns
    last = watermark(stored)
    if last is not None:
        adopted["stream"], adopted["stream_sequence"] = last
    return adopted


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
