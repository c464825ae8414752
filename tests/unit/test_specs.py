"""Streams and consumers as data, and what can be read from the server's texts."""

from __future__ import annotations

import pytest

from events.subjects import Tenant
from streams.jetstream.in_flight import parse_reply
from streams.jetstream.specs import (
    MAX_BYTES_OF_WORKER,
    TopologyConfig,
    batch_share,
    byte_share,
    consumers,
    covers,
    streams,
)
from streams.jetstream.stream_reader import nanoseconds


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("v1.chats.upsert.*", "v1.chats.upsert.*", True),
        ("v1.chats.upsert.*", "v1.chats.upsert.Acme", True),
        ("v1.*.upsert.*", "v1.chats.upsert.*", True),
        ("v1.>", "v1.chats.upsert.*", True),
        (">", "v1.chats.upsert.*", True),
        ("v1.dlq.>", "v1.dlq.>", True),
        ("v1.dlq.*", "v1.dlq.>", False),
        ("v1.dlq.>", "v1.dlq", False),
        ("v1.chats.upsert.Acme", "v1.chats.upsert.*", False),
        ("v1.chats.upsert", "v1.chats.upsert.*", False),
        ("v1.chats.upsert.*.*", "v1.chats.upsert.*", False),
        ("v1.chats.update.*", "v1.chats.upsert.*", False),
    ],
)
def test_a_pattern_covers_what_it_matches_completely(pattern: str, subject: str, expected: bool) -> None:
    assert covers(pattern, subject) is expected


def test_names_and_subjects_follow_the_settings() -> None:
    config = TopologyConfig(
        realtime_stream="r", realtime_subjects=("x.y",), dlq_subject="site.dead", realtime_durable="pull_"
    )
    realtime, historical, dlq = consumers(config, Tenant("Acme"))
    assert (realtime.stream, realtime.durable, realtime.predecessor) == ("r", "pull_Acme", "wa_listener_Acme")
    assert realtime.subjects == ("x.y.Acme",)
    assert (historical.durable, historical.predecessor) == ("wa_history_Acme", "wa_history_listener_Acme")
    assert (dlq.durable, dlq.predecessor) == ("site_dead_worker_consumer_Acme", "site_dead_worker_consumer")
    assert dlq.subjects == ("site.dead.Acme",)
    assert [stream.subjects for stream in streams(config)][::2] == [("x.y.*",), ("site.dead.>",)]


def test_no_age_is_no_limit() -> None:
    assert streams(TopologyConfig(dlq_max_age_days=0))[2].config()["max_age"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("2026-11-24T07:15:30.123456789Z", 1_795_504_530_123_456_789),
        ("1970-01-01T02:00:00.000000007+02:00", 7),
    ],
)
def test_times_of_the_server_keep_their_nanoseconds(text: str, expected: int) -> None:
    assert nanoseconds(text) == expected


@pytest.mark.parametrize(
    ("reply", "domain"),
    [
        ("$JS.ACK.s.c.2.10.7.1700000000000000001.5", ""),
        ("$JS.ACK._.HASH.s.c.2.10.7.1700000000000000001.5", ""),
        ("$JS.ACK.hub.HASH.s.c.2.10.7.1700000000000000001.5", "hub"),
        ("$JS.ACK.hub.HASH.s.c.2.10.7.1700000000000000001.5.random", "hub"),
    ],
)
def test_reads_the_facts_from_the_reply_subject_of_each_form(reply: str, domain: str) -> None:
    found = parse_reply(reply)
    assert found == ("s", "c", domain, 10, 7, 2, 1_700_000_000_000_000_001, 5, 0)


@pytest.mark.parametrize("reply", ["", "_INBOX.a.b", "$JS.ACK.s.c.2.10"])
def test_another_reply_subject_is_refused(reply: str) -> None:
    with pytest.raises(ValueError, match="reply subject"):
        parse_reply(reply)


@pytest.mark.parametrize(
    ("size", "tenants", "part"),
    [(500, 1, 500), (500, 20, 500), (500, 50, 200), (500, 1000, 50), (10, 1000, 10), (5000, 1, 5000)],
)
def test_many_tenants_share_the_memory_of_batches(size: int, tenants: int, part: int) -> None:
    assert batch_share(size, tenants) == part


@pytest.mark.rule("CON-8")
@pytest.mark.parametrize("tenants", [1, 3, 50, 2000])
def test_all_requests_of_a_worker_bring_less_at_once_than_the_server_keeps_for_a_client(tenants: int) -> None:
    """`max_pending` of nats-server is 64 MB unless somebody sets it."""
    together = sum(byte_share(role, tenants) for role in MAX_BYTES_OF_WORKER) * tenants
    assert 0.9 * 48 * 1024**2 <= together <= 48 * 1024**2
