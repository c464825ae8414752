"""Which value a column keeps."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.last_writer_wins import (
    EventStamp,
    Version,
    decode_metadata,
    encode_metadata,
    merge,
    newer,
    parse,
    watermark,
)


def realtime(ns: int, sequence: int = 1) -> EventStamp:
    return EventStamp(Version(ns, sequence), f'{{"at":{ns}}}')


def history(ns: int) -> EventStamp:
    return EventStamp(Version(ns, 1), f'{{"at":{ns}}}', history=True)


def unversioned() -> EventStamp:
    return EventStamp(None, '{"stream":"dlq_stream","stream_sequence":7}')


def merged(
    *events: tuple[EventStamp, dict[str, Any]],
    stored: dict[str, Any] | None = None,
    filled: tuple[str, ...] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `merge` makes of the events: the values, and the metadata parsed."""
    result = merge(events, stored, filled)
    return result.values, json.loads(result.metadata)


@pytest.mark.parametrize("text", [None, "", "-", "1", "1-", "-1", "a-1", "1-b", "1 -2", "+1-2", "²-1"])
def test_text_that_is_no_version_is_none(text: str | None) -> None:
    assert parse(text) is None


def test_a_version_survives_being_written() -> None:
    assert parse(str(Version(1795500123456789012, 42))) == Version(1795500123456789012, 42)


def test_versions_order_by_time_then_sequence() -> None:
    assert Version(2, 1).supersedes(Version(1, 9))
    assert Version(1, 10).supersedes(Version(1, 9))


@pytest.mark.rule("VER-3")
def test_the_same_version_is_a_repeat_and_applies() -> None:
    assert realtime(5).supersedes(Version(5, 1))
    assert not realtime(5).supersedes(Version(5, 2))


@pytest.mark.rule("VER-7")
def test_a_value_without_version_is_between_history_and_realtime() -> None:
    assert realtime(1).supersedes(None)
    assert unversioned().supersedes(None)
    assert not history(9).supersedes(None)
    assert not unversioned().supersedes(Version(1, 1))


def test_newer_prefers_any_version_to_none_and_the_second_of_equals() -> None:
    first, second = realtime(5), EventStamp(Version(5, 1), '{"second":1}')
    assert newer(first, second) is second
    assert newer(first, unversioned()) is first
    assert newer(unversioned(), first) is first
    assert newer(realtime(6), first).version == Version(6, 1)


@pytest.mark.rule("VER-2")
def test_metadata_gets_its_version_and_the_ones_that_differ() -> None:
    text = encode_metadata('{"a":1}', Version(2, 3), {"status": Version(1, 1), "key": None})
    assert json.loads(text) == {
        "a": 1,
        "version": "2-3",
        "versions": {"status": "1-1", "key": ""},
    }
    assert json.loads(encode_metadata("{}", Version(2, 3))) == {"version": "2-3"}
    assert encode_metadata('{"a":1}', None) == '{"a":1}'


@pytest.mark.rule("VER-3")
def test_a_column_that_an_event_does_not_feed_keeps_its_version() -> None:
    values, metadata = merged(
        (realtime(9), {"status": "read"}), stored={"version": "5-1"}, filled=("status", "text")
    )
    assert values == {"status": "read"}
    assert metadata == {"at": 9, "version": "9-1", "versions": {"text": "5-1"}}


@pytest.mark.rule("VER-3")
def test_a_stale_event_changes_nothing_but_what_is_empty() -> None:
    values, metadata = merged(
        (realtime(3), {"status": "sent", "url": "u"}),
        stored={"at": 5, "version": "5-1"},
        filled=("status",),
    )
    assert values == {"url": "u"}
    assert metadata == {"at": 5, "version": "5-1", "versions": {"url": "3-1"}}


def test_an_explicit_column_always_has_its_own_entry() -> None:
    events = [(realtime(5), {"is_deleted": False})]
    metadata = json.loads(merge(events, None, (), ("is_deleted",)).metadata)
    assert metadata["versions"] == {"is_deleted": "5-1"}


@pytest.mark.rule("VER-7")
def test_history_fills_an_adopted_row_and_replaces_nothing_there() -> None:
    values, metadata = merged((history(9), {"status": "read", "url": "u"}), stored={}, filled=("status",))
    assert values == {"url": "u"}
    assert metadata["versions"] == {"status": ""}


def test_history_newer_than_a_realtime_value_replaces_it() -> None:
    values, _ = merged((history(9), {"status": "read"}), stored={"version": "5-1"}, filled=("status",))
    assert values == {"status": "read"}


@pytest.mark.parametrize("history_first", [True, False])
def test_history_never_replaces_what_was_adopted_whichever_event_comes_first(history_first: bool) -> None:
    events = [(history(9), {"status": "history"}), (realtime(5), {"status": "realtime"})]
    together, _ = merged(*(events if history_first else events[::-1]), stored={}, filled=("status",))
    assert together["status"] == "realtime"

    value = "adopted"
    stored: dict[str, Any] = {}
    for event in events if history_first else events[::-1]:
        values, stored = merged(event, stored=stored, filled=("status",))
        value = values.get("status", value)
    assert value == "realtime"
    assert stored["version"] == "9-1"


@pytest.mark.rule("VER-8")
def test_an_event_without_version_sets_only_columns_without_one() -> None:
    values, metadata = merged(
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
    _, metadata = merged((realtime(5), {}), stored=adopted, filled=("status",))
    assert watermark(metadata) == ("wa_events_stream", 500)
    _, later = merged((realtime(6), {}), stored=metadata, filled=("status",))
    assert watermark(later) == ("wa_events_stream", 500)


def test_a_row_of_ours_has_nothing_adopted() -> None:
    _, metadata = merged((realtime(5), {"status": "x"}))
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
    assert decode_metadata(text) == known


def test_a_number_that_is_no_float_is_no_reason_to_fail() -> None:
    assert decode_metadata('{"stream_sequence":' + "9" * 400 + '.5,"version":"5-1"}') == {
        "stream_sequence": math.inf,
        "version": "5-1",
    }


SECOND = 10**9
MADE, ANEW = 1_795_400_000 * SECOND, 1_795_500_000 * SECOND


def of(seconds: float, sequence: int, incarnation: int = MADE) -> Version:
    return Version(int((1_795_500_100 + seconds) * SECOND), sequence, incarnation)


@pytest.mark.rule("VER-1")
@pytest.mark.parametrize("version", [Version(5, 7), Version(5, 7, 9), of(0, 1), of(0, 1, 0), Version(0, 0)])
def test_a_version_survives_being_written_with_and_without_its_incarnation(version: Version) -> None:
    assert parse(str(version)) == version
    assert str(version) == "-".join(
        str(part) for part in (*version.event, version.incarnation)[: 3 if version.incarnation else 2]
    )


@pytest.mark.parametrize(
    "text",
    ["1-2-", "1-2-3-4", "1--3", "-1-2-3", "1-2-x", " 1-2-3", "1-2-3\n", "9" * 19 + "-1", "1-" + "9" * 5000],
)
def test_longer_text_that_is_no_version_is_none(text: str) -> None:
    assert parse(text) is None


@pytest.mark.rule("VER-4")
def test_a_later_event_wins_when_its_store_time_steps_back() -> None:
    assert of(-1, 8).supersedes(of(0, 7))
    assert not of(0, 7).supersedes(of(-1, 8))
    assert of(-10, 8).supersedes(of(0, 7))
    assert EventStamp(of(-1, 8), "{}").supersedes(of(0, 7))
    assert not EventStamp(of(0, 7), "{}").supersedes(of(-1, 8))


@pytest.mark.rule("VER-4")
def test_sequences_given_out_again_are_newer() -> None:
    assert of(11, 2).supersedes(of(0, 7))
    assert of(11, 7).supersedes(of(0, 7))
    assert of(1, 7).supersedes(of(0, 7))


@pytest.mark.rule("VER-4")
def test_a_stream_made_anew_is_newer_whatever_its_sequences() -> None:
    assert of(1, 1, ANEW).supersedes(of(0, 500))
    assert not of(0, 500).supersedes(of(1, 1, ANEW))


@pytest.mark.rule("VER-5")
def test_versions_without_incarnation_compare_by_time_with_all_others() -> None:
    assert of(0, 7, 0).supersedes(of(-1, 8))
    assert of(0, 7).supersedes(of(-1, 8, 0))
    assert of(0, 7, 0).supersedes(of(-1, 8, 0))


def test_versions_cannot_be_compared_as_tuples() -> None:
    versions: Any = [of(0, 7), of(-1, 8)]
    with pytest.raises(TypeError):
        sorted(versions)
    with pytest.raises(TypeError):
        max(versions)


@pytest.mark.rule("VER-5")
def test_a_repeat_without_incarnation_keeps_the_one_that_is_known() -> None:
    known, repeat = str(of(0, 7)), EventStamp(of(0, 7, 0), '{"at":1}')
    for stored in ({"version": known}, {"version": "9" * 18 + "-1", "versions": {"status": known}}):
        _, metadata = merged((repeat, {"status": "x"}), stored=stored, filled=("status",))
        assert metadata.get("versions", {}).get("status", metadata["version"]) == known
    _, metadata = merged((EventStamp(of(0, 7), "{}"), {"status": "x"}), (repeat, {"status": "x"}))
    assert metadata == {"version": known}


def test_a_repeat_with_incarnation_completes_a_row_that_has_none() -> None:
    stored = {"version": str(of(0, 7, 0))}
    _, metadata = merged((EventStamp(of(0, 7), "{}"), {"status": "x"}), stored=stored, filled=("status",))
    assert metadata == {"version": str(of(0, 7))}


@pytest.mark.rule("VER-4")
@given(
    st.lists(st.integers(0, 9_999), min_size=2, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_within_one_incarnation_the_sequence_is_a_total_order(back: list[int], quick: list[bool]) -> None:
    """However the clocks of the leaders differ, while none is behind by more than ten seconds."""
    versions, seconds = [], 0.0
    for sequence, (behind, soon) in enumerate(zip(back, quick, strict=False), 1):
        seconds += 0.001 if soon else 30.0
        versions.append(of(seconds - behind / 1000, sequence))
    for older, first in enumerate(versions):
        for newer_one in versions[older + 1 :]:
            assert newer_one.supersedes(first)
            assert not first.supersedes(newer_one)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.sampled_from([0, MADE, ANEW])), min_size=2)
)
def test_of_two_versions_exactly_one_is_newer_unless_they_are_one_event(
    drawn: list[tuple[int, int, int]],
) -> None:
    first, second = (of(*parts) for parts in drawn[:2])
    assert first.supersedes(second) + second.supersedes(first) == (first.event != second.event)
