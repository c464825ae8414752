"""A fault of nats-server's own is told apart by evidence, and nothing else is."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from testkit.differences import Problem
from testkit.oracle import Version
from tests.acceptance.company_probe import REALTIME_STREAM
from tests.faults.__main__ import missing
from tests.faults.catalogue import FAULTS, of_kind
from tests.faults.compare import Outcome
from tests.faults.results import Results
from tests.faults.server_fault import differing, stuck
from tests.servers.proxy import Proxy
from tests.slow_clock import SlowClock

COMPANY = "Kopi"


def _stream(leader: str, last: int, *consumers: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "wa_events_stream",
        "state": {"messages": last, "first_seq": 1, "last_seq": last},
        "cluster": {"leader": leader},
        "consumer_detail": list(consumers),
    }


def _consumer(name: str, leader: str, **numbers: int) -> dict[str, Any]:
    return {"name": name, "cluster": {"leader": leader}, "delivered": {}, "ack_floor": {}, **numbers}


def test_a_replica_behind_its_leader_is_named_with_both_states() -> None:
    nodes = {
        name: {"wa_events_stream": _stream("n1", last)} for name, last in (("n1", 9), ("n2", 9), ("n3", 7))
    }
    assert list(differing(nodes)) == ["n3"]
    assert "[7, 1, 7]" in differing(nodes)["n3"]
    assert "[9, 1, 9]" in differing(nodes)["n3"]


def test_replicas_in_step_and_streams_without_a_known_leader_are_no_evidence() -> None:
    assert differing({name: {"wa_events_stream": _stream("n1", 9)} for name in ("n1", "n2")}) == {}
    assert differing({"n2": {"wa_events_stream": _stream("", 7)}}) == {}


def test_a_consumer_that_leaves_our_requests_unanswered_is_stuck() -> None:
    one = _consumer("wa_realtime_Kopi", "n1", num_waiting=1, num_pending=5, num_ack_pending=0)
    assert list(stuck({"n1": {"wa_events_stream": _stream("n1", 9, one)}}, COMPANY)) == [
        ("wa_events_stream", "wa_realtime_Kopi")
    ]


def test_a_consumer_that_nobody_asks_or_that_waits_for_acks_is_our_own_affair() -> None:
    consumers = (
        _consumer("wa_realtime_Kopi", "n1", num_waiting=0, num_pending=5, num_ack_pending=0),
        _consumer("wa_history_Kopi", "n1", num_waiting=1, num_pending=5, num_ack_pending=3),
        _consumer("wa_other_Kopi", "n1", num_waiting=1, num_pending=0, num_ack_pending=0),
        _consumer("wa_realtime_Other", "n1", num_waiting=1, num_pending=5, num_ack_pending=0),
    )
    assert stuck({"n1": {"wa_events_stream": _stream("n1", 9, *consumers)}}, COMPANY) == {}


def test_an_excused_run_is_counted_apart_and_keeps_what_was_seen() -> None:
    outcome = Outcome()
    outcome.blame(Problem("lost", "sequence 4: has neither a row"))
    outcome.excuse(["a replica is stale"])
    assert outcome.ok
    assert (outcome.lost, outcome.server_faults) == (0, 1)
    assert outcome.evidence == ["a replica is stale", "sequence 4: has neither a row"]


def test_a_fault_of_the_servers_excuses_nothing_that_is_put_down_later() -> None:
    outcome = Outcome()
    outcome.excuse(["a replica is stale"])
    outcome.complain("a worker ended by itself")
    assert not outcome.ok


def _reply(sequence: int, ns: int) -> bytes:
    return f"MSG in 1 $JS.ACK.{REALTIME_STREAM}.wa_realtime_Kopi.1.{sequence}.5.{ns}.0 2\r\nhi\r\n".encode()


def test_only_what_is_stored_after_the_moment_gets_an_earlier_time_of_the_same_length() -> None:
    clock = SlowClock(3.0, REALTIME_STREAM)
    ns = 1_790_000_000_123_456_789
    assert clock.rewrite(_reply(7, ns)) == _reply(7, ns)
    clock.set_back(ns)
    unchanged = _reply(7, ns - 1)
    assert clock.rewrite(unchanged + _reply(8, ns)) == unchanged + _reply(8, ns - clock.behind)
    other = _reply(8, ns).replace(REALTIME_STREAM.encode(), b"wa_history_events_stream")
    assert clock.rewrite(other) == other
    assert clock.rewritten == 1


def test_a_worker_is_told_earlier_times_of_what_is_stored_after_the_moment() -> None:
    clock = SlowClock(3.0, REALTIME_STREAM)
    ns = 1_790_000_000_123_456_789
    before, after = Version(ns - 1, 7, 5), Version(ns, 8, 5)
    assert clock.told(after) == after
    clock.set_back(ns)
    assert clock.told(before) == before
    assert clock.told(after) == Version(ns - clock.behind, 8)
    assert clock.told(after).after(before), "the later event wins, by its sequence"


async def test_a_proxy_that_rewrites_loses_nothing_of_what_comes_in_pieces() -> None:
    clock = SlowClock(3.0, REALTIME_STREAM)
    clock.set_back(0)
    sent = b"".join(_reply(number, 1_790_000_000_000_000_000 + number) for number in range(1, 200))

    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            for at in range(0, len(sent), 97):
                writer.write(sent[at : at + 97])
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server, Proxy(server.sockets[0].getsockname()[1], clock.rewrite) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        got = await asyncio.wait_for(reader.readexactly(len(sent)), 10)
        writer.close()
    whole = SlowClock(3.0, REALTIME_STREAM)
    whole.set_back(0)
    assert got == whole.rewrite(sent)
    assert clock.rewritten == 199


def test_a_campaign_goes_on_with_the_runs_that_are_not_on_record(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    Results(path, short=False).add("leader frozen", 1, Outcome())
    wanted = ["leader frozen", "worker's node cut off for 120 s", "nats killed"]
    options = argparse.Namespace(results=path, classes=wanted, runs=None, seed=1, short=False)
    runs = list(missing(options))
    assert [sum(name == one for one, _ in runs) for name in wanted] == [4, 3, 10]
    assert ("leader frozen", 1) not in runs
    assert len(set(runs)) == len(runs)


def test_every_class_is_of_one_kind_and_says_what_it_does() -> None:
    assert sorted(of_kind("single") + of_kind("cluster")) == sorted(FAULTS)
    assert all(fault.inject.__doc__ for fault in FAULTS.values())
