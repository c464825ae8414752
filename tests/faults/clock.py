"""What a NATS node with a slow clock leaves behind, translated to the true store times."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from events.subjects import HISTORICAL
from testkit.evidence import Evidence, Given, Row
from testkit.oracle import Published, Version
from tests.slow_clock import SlowClock

# Seconds.
BEHIND: Final = 3.0


def restore_store_times(clock: SlowClock, evidence: Evidence, published: Iterable[Published]) -> None:
    """Write the true store times into the evidence: there the later event has the higher version."""
    if clock.since is None:
        return
    true = {
        f"{one.version.ns - clock.behind}-{one.version.sequence}": one.version.ns
        for one in published
        if one.publication.event_type not in HISTORICAL and one.version.ns >= clock.since
    }
    for rows in (*evidence.rows.values(), evidence.onboarded):
        for row in (row for found in rows.values() for row in found):
            _restore(row, true)
    for chat, steps in evidence.steps.items():
        evidence.steps[chat] = {_version(step, true) for step in steps}
    for given in (evidence.letters, evidence.exhausted):
        given[:] = [_given(one, true) for one in given]


def _restore(row: Row, true: dict[str, int]) -> None:
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
