"""Streams that confirm more than they can keep are told, with what to do."""

from __future__ import annotations

import pytest

from streams.jetstream.durability import weaknesses
from streams.jetstream.specs import TopologyConfig, streams


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"storage": "memory"}, ["storage is memory"]),
        ({"storage": "file", "persist_mode": "async"}, ["persist_mode is async"]),
        ({"storage": "memory", "persist_mode": "async"}, ["storage is memory", "persist_mode is async"]),
        ({"storage": "file", "persist_mode": "default"}, []),
        ({"storage": "file"}, []),
        ({}, []),
    ],
)
def test_what_a_stream_cannot_keep_is_named_with_what_to_do(config: dict[str, str], told: list[str]) -> None:
    found = list(weaknesses(config))
    assert [text.partition(":")[0] for text in found] == told
    assert all("ake the stream anew" in text for text in found)


def test_the_streams_that_we_make_have_no_such_weakness() -> None:
    for stream in streams(TopologyConfig()):
        assert list(weaknesses(stream.config())) == []
