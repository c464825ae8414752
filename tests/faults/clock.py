"""A NATS node whose clock is behind, played by what a proxy writes into the deliveries of real-time events."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from events.subjects import HISTORICAL
from testkit.evidence import Evidence, Given, Row
from testkit.oracle import Published, Version
from tests.acceptance.site import REALTIME_STREAM

BEHIND: Final = 3_000_000_000
# $JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<store time>.<pending>
_REPLY: Final = re.compile(
    rb"(\$JS\.ACK\.(?:[^. ]+\.[^. ]+\.)?%s\.[^. ]+\.\d+\.)(\d+)(\.\d+\.)(\d{19})(?=\.\d+)"
    % REALTIME_STREAM.encode()
)


class SlowClock:
    """Right until `slow_down`: real-time events after that sequence are stored 3 s earlier, by that clock."""

    def __init__(self) -> None:
        self.since: int | None = None
        self.rewritten = 0

    def slow_down(self, sequence: int) -> None:
        """Be behind for everything after this sequence of the real-time stream, redeliveries too."""
        self.since = sequence

    def rewrite(self, data: bytes) -> bytes:
        """What comes from a node, with the store times of this clock; no number changes its length."""
        return data if self.since is None else _REPLY.sub(self._told, data)

    def _told(self, found: re.Match[bytes]) -> bytes:
        before, sequence, between, ns = found.groups()
        assert self.since is not None
        if int(sequence) <= self.since:
            return found.group()
        self.rewritten += 1
        return b"%s%s%s%d" % (before, sequence, between, int(ns) - BEHIND)

    def put_right(self, evidence: Evidence, published: Iterable[Published]) -> None:
        """Write the true store times into the evidence: there the later event has the higher version."""
        if self.since is None:
            return
        true = {
            f"{one.version.ns - BEHIND}-{one.version.sequence}": one.version.ns
            for one in published
            if one.publication.event_type not in HISTORICAL and one.version.sequence > self.since
        }
        for rows in evidence.rows.values():
            for row in (row for found in rows.values() for row in found):
                _put_right(row, true)
        for chat, steps in evidence.steps.items():
            evidence.steps[chat] = {_version(step, true) for step in steps}
        for given in (evidence.letters, evidence.exhausted):
            given[:] = [_given(one, true) for one in given]


def _put_right(row: Row, true: dict[str, int]) -> None:
    metadata: dict[str, Any] = row.columns.get("last_metadata") or {}
    if "version" in metadata:
        metadata["version"] = _text(metadata["version"], true)
    versions = metadata.get("versions") or {}
    versions.update({column: _text(text, true) for column, text in versions.items()})


def _text(text: str, true: dict[str, int]) -> str:
    ns, sequence, *rest = text.split("-") if text.count("-") else (text, "")
    known = true.get(f"{ns}-{sequence}")
    return text if known is None else "-".join([str(known), sequence, *rest])


def _given(one: Given, true: dict[str, int]) -> Given:
    return one._replace(version=_version(one.version, true))


def _version(version: Version, true: dict[str, int]) -> Version:
    known = true.get(f"{version.ns}-{version.sequence}")
    return version if known is None else Version(known, version.sequence)
