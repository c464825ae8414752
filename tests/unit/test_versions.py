"""Which value a column keeps."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tables.versions import Draft, Origin, Version, newer, parse, remembered, settle, stamped, watermark


def realtime(ns: int, sequence: int = 1) -> Origin:
    return Origin(Version(ns, sequence), f'{{"at":{ns}}}')


def history(ns: int) -> Origin:
    return Origin(Version(ns, 1), f'{{"at":{ns}}}', history=True)


def unversioned() -> Origin:
    return Origin(None, '{"stream":"dlq_stream","stream_sequence":7}')


def settled(
    *events: tuple[Origin, dict[str, Any]], stored: dict[str, Any] | None = None, filled: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `settle` makes of the events: the values, and the metadata parsed."""
    draft = Draft(events[0][0])
    for origin, values in events:
        draft.add(origin, values)
    result = settle(draft, stored, filled)
    return result.values, json.loads(result.metadata)


@pytest.mark.parametrize("text", [None, "", "-", "1", "1-", "-1", "a-1", "1-b", "1 -2", "+1-2", "²-1"])
def test_text_that_is_no_version_is_none(text: str | None) -> None:
    assert parse(text) is None


def test_a_version_survives_being_written() -> None:
    assert parse(str(Version(1795500123456789012, 42))) == Version(1795500123456789012, 42)


def test_versions_order_by_time_then_sequence() -> None:
    assert Version(2, 1).supersedes(Version(1, 9))
    assert Version(1, 10).supersedes(Version(1, 9))


def test_the_same_version_is_a_repeat_and_applies() -> None:
    assert realtime(5).beats(Version(5, 1))
    assert not realtime(5).beats(Version(5, 2))


def test_a_value_without_version_is_between_history_and_realtime() -> None:
    assert realtime(1).beats(None)
    assert unversioned().beats(None)
    assert not history(9).beats(None)
    assert not unversioned().beats(Version(1, 1))


def test_newer_prefers_any_version_to_none_and_the_second_of_equals() -> None:
    first, second = realtime(5), Origin(Version(5, 1), '{"second":1}')
    assert newer(first, second) is second
    assert newer(first, unversioned()) is first
    assert newer(unversioned(), first) is first
    assert newer(realtime(6), first).version == Version(6, 1)


def test_metadata_gets_its_version_and_the_ones_that_differ() -> None:
    text = stamped('{"a":1}', Version(2, 3), {"status": Version(1, 1), "key": None})
    assert json.loads(text) == {
        "a": 1,
        "version": "2-3",
        "versions": {"status": "1-1", "key": ""},
    }
    assert json.loads(stamped("{}", Version(2, 3))) == {"version": "2-3"}
    assert stamped('{"a":1}', None) == '{"a":1}'


def test_a_column_that_an_event_does_not_feed_keeps_its_version() -> None:
    values, metadata = settled(
        (realtime(9), {"status": "read"}), stored={"version": "5-1"}, filled=("status", "text")
    )
    assert values == {"status": "read"}
    assert metadata == {"at": 9, "version": "9-1", "versions": {"text": "5-1"}}


def test_a_stale_event_changes_nothing_but_what_is_empty() -> None:
    values, metadata = settled(
        (realtime(3), {"status": "sent", "url": "u"}),
        stored={"at": 5, "version": "5-1"},
        filled=("status",),
    )
    assert values == {"url": "u"}
    assert metadata == {"at": 5, "version": "5-1", "versions": {"url": "3-1"}}


def test_an_explicit_column_always_has_its_own_entry() -> None:
    draft = Draft(realtime(5))
    draft.add(realtime(5), {"is_deleted": False})
    metadata = json.loads(settle(draft, None, (), ("is_deleted",)).metadata)
    assert metadata["versions"] == {"is_deleted": "5-1"}


def test_history_fills_an_adopted_row_and_replaces_nothing_there() -> None:
    values, metadata = settled((history(9), {"status": "read", "url": "u"}), stored={}, filled=("status",))
    assert values == {"url": "u"}
    assert metadata["versions"] == {"status": ""}


def test_history_newer_than_a_realtime_value_replaces_it() -> None:
    values, _ = settled((history(9), {"status": "read"}), stored={"version": "5-1"}, filled=("status",))
    assert values == {"status": "read"}


@pytest.mark.parametrize("history_first", [True, False])
def test_history_never_replaces_what_was_adopted_whichever_event_comes_first(history_first: bool) -> None:
    events = [(history(9), {"status": "history"}), (realtime(5), {"status": "realtime"})]
    together, _ = settled(*(events if history_first else events[::-1]), stored={}, filled=("status",))
    assert together["status"] == "realtime"

    value = "adopted"
    stored: dict[str, Any] = {}
    for event in events if history_first else events[::-1]:
        values, stored = settled(event, stored=stored, filled=("status",))
        value = values.get("status", value)
    assert value == "realtime"
    assert stored["version"] == "9-1"


def test_an_event_without_version_sets_only_columns_without_one() -> None:
    values, metadata = settled(
        (unversioned(), {"status": "x", "url": "x", "text": "x"}),
        stored={"at": 5, "version": "5-1", "versions": {"url": ""}},
        filled=("status", "url"),
    )
    assert values == {"url": "x", "text": "x"}
    assert metadata["version"] == "5-1"
    assert metadata["versions"] == {"url": "", "text": ""}
    assert metadata["at"] == 5


def test_an_adopted_row_remembers_its_last_event() -> None:
    adopted = {"stream": "wa_events_stream", "stream_sequence": 500}
    assert watermark(adopted) == ("wa_events_stream", 500)
    _, metadata = settled((realtime(5), {}), stored=adopted, filled=("status",))
    assert watermark(metadata) == ("wa_events_stream", 500)
    _, later = settled((realtime(6), {}), stored=metadata, filled=("status",))
    assert watermark(later) == ("wa_events_stream", 500)


def test_a_row_of_ours_has_nothing_adopted() -> None:
    _, metadata = settled((realtime(5), {"status": "x"}))
    assert metadata == {"at": 5, "version": "5-1"}
    assert watermark({**metadata, "stream": "wa_events_stream", "stream_sequence": 5}) is None
    assert watermark(None) is None


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (None, None),
        ("", None),
        ("null", None),
        ("[1]", None),
        ('"text"', None),
        ('{"version":"5-1"}', {"version": "5-1"}),
        ('{"stream_sequence":' + "9" * 400 + "}", {"stream_sequence": int("9" * 400)}),
    ],
)
def test_metadata_of_any_other_program_can_be_read(text: str | None, known: dict[str, object] | None) -> None:
    assert remembered(text) == known


def test_a_number_that_is_no_float_is_no_reason_to_fail() -> None:
    assert remembered('{"stream_sequence":' + "9" * 400 + '.5,"version":"5-1"}') == {
        "stream_sequence": math.inf,
        "version": "5-1",
    }
