"""Streams on the server against ours: what is changed, what is left, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from streams.jetstream.changes import refused
from streams.jetstream.specs import StreamSpec, replicas, streams
from streams.jetstream.stream_changes import compare_stream, consumer_limit, describe, durability_warnings
from streams.jetstream.stream_reader import ApiError
from tests.reconcile import default_settings

SPEC = StreamSpec("events", ("v1.a.*", "v1.b.*"), 0, replicas=3, max_consumers=10_000)


def found(consumers: int = 0, **config: Any) -> dict[str, Any]:
    """What the server says of a stream like ours, but for `config`."""
    return {"config": {**SPEC.config(), **config}, "state": {"consumer_count": consumers}}


def texts(answer: dict[str, Any], missing: int = 0) -> list[str]:
    changes = compare_stream(SPEC, answer, missing)
    assert all(change.request is None for change in changes)
    return [change.text for change in changes]


def test_a_stream_like_ours_is_left_without_a_word() -> None:
    assert compare_stream(SPEC, found(), 5) == []


def test_subjects_are_added_to_an_ordinary_stream_only() -> None:
    [change] = compare_stream(SPEC, found(subjects=["v1.a.*"]))
    assert change.request is not None
    assert change.request[1] is not None
    assert change.request[1]["subjects"] == ["v1.a.*", "v1.b.*"]
    for fed in (
        {"mirror": {"name": "hub"}},
        {"sources": [{"name": "hub"}, {"name": "spoke"}]},
        {"sealed": True},
    ):
        assert texts(found(subjects=[], **fed))


@pytest.mark.parametrize(
    "config",
    [
        {"subject_transform": {"src": "v1.>", "dest": "old.v1.>"}},
        {"mirror": {"name": "hub", "subject_transforms": [{"src": "v1.>", "dest": "old.v1.>"}]}},
        {"sources": [{"name": "hub", "subject_transforms": [{"src": "v1.>", "dest": "old.v1.>"}]}]},
    ],
    ids=["own", "mirror", "sources"],
)
def test_events_that_are_stored_under_other_subjects_are_warned_of(config: dict[str, Any]) -> None:
    assert any("stores v1.> as old.v1.>" in text for text in texts(found(**config)))


def test_fewer_copies_than_wanted_are_left_with_the_command_that_mends_it() -> None:
    [one] = texts(found(num_replicas=1))
    assert "one node down stops publishing" in one
    assert "nats stream edit events --replicas 3" in one
    assert texts(found(num_replicas=5)) == []


def test_messages_that_are_confirmed_before_they_are_on_disk_are_warned_of() -> None:
    [text] = texts(found(persist_mode="async"))
    assert "a crash loses them" in text


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_consumers": 7}, 7),
        ({"max_consumers": -1, "metadata": {"_nats.ver": "2.15.1"}}, 1000),
        ({"max_consumers": -1, "metadata": {"_nats.ver": "2.14.3"}}, None),
        ({"max_consumers": -1, "metadata": {"_nats.ver": "3.0.0-dev"}}, 1000),
        ({"max_consumers": -1}, None),
    ],
)
def test_room_for_consumers_is_known_where_the_server_has_a_default_of_its_own(
    config: dict[str, Any], limit: int | None
) -> None:
    assert consumer_limit(found(**config)) == limit


def test_too_little_room_for_our_consumers_is_warned_of_before_it_is_needed() -> None:
    full = found(999, max_consumers=-1, metadata={"_nats.ver": "2.15.0"})
    assert texts(full, missing=1) == []
    [text] = texts(full, missing=2)
    assert "999 of at most 1000 consumers, and 2 more are needed" in text
    assert "nats stream edit events --max-consumers 10000" in text


def test_a_stream_is_described_by_what_decides_over_durability_and_room() -> None:
    line = describe("events", found(3, mirror={"name": "hub"}, persist_mode="async"))
    for words in (
        "replicas 3",
        "storage file",
        "max_consumers 10000",
        "consumers 3",
        "async",
        "mirror of hub",
    ):
        assert words in line
    assert describe("events", None) == "stream events is not there"


def test_streams_get_three_copies_where_there_are_three_nodes_unless_told_otherwise() -> None:
    assert [replicas(0, nodes) for nodes in (1, 2, 3, 5)] == [1, 1, 3, 3]
    assert [replicas(wanted, 1) for wanted in (1, 3, 5)] == [1, 3, 5]
    assert {stream.replicas for stream in streams(default_settings(stream_replicas=5), 3)} == {5}


@pytest.mark.parametrize(
    "code", [10002, 10005, 10008, 10023, 10026, 10027, 10028, 10047, 10065, 10074, 10113]
)
def test_a_refusal_names_stream_consumer_number_and_what_to_do(code: int) -> None:
    error = refused("consumer", "wa_realtime_Two", "events", ApiError(code, "the server's words"), "create")
    told, _, advice = str(error).partition("; ")
    assert told == f"consumer wa_realtime_Two on stream events: create: the server's words ({code})"
    assert advice


def test_a_refusal_that_we_do_not_know_is_told_in_the_servers_words() -> None:
    told = str(refused("stream", "events", "events", ApiError(19999, "new in this version")))
    assert told == "stream events: new in this version (19999)"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"storage": "memory"}, ["storage is memory"]),
        ({"storage": "file", "persist_mode": "async"}, ["persist_mode is async"]),
        ({"storage": "memory", "persist_mode": "async"}, ["storage is memory", "persist_mode is async"]),
        ({"storage": "file", "persist_mode": "default"}, []),
        ({"storage": "file"}, []),
        ({}, []),
    ],
)
def test_what_a_stream_cannot_keep_is_named_with_what_to_do(
    config: dict[str, str], expected: list[str]
) -> None:
    found = list(durability_warnings(config))
    assert [text.partition(":")[0] for text in found] == expected
    assert all("ake the stream anew" in text for text in found)


def test_the_streams_that_we_make_have_no_such_weakness() -> None:
    for stream in streams(default_settings()):
        assert list(durability_warnings(stream.config())) == []
