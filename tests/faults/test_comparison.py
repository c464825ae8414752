"""The harness notices harm: each kind of it, done to a perfect run, is counted as what it is."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from testkit.differences import Problem
from testkit.evidence import Evidence, Given, Row
from testkit.oracle import Published, Version
from tests.faults.compare import Claim, Outcome, judge
from tests.faults.load import EARLY, Load
from tests.faults.results import Results
from tests.servers.proxy import Proxy
from tests.unit.test_accounting import COMPANY, perfect, stream

_STREAM = stream()


def _sound(evidence: Evidence) -> Published:
    """A message with nothing wrong, and of which no other event speaks."""
    spoken_of = Counter(item.key for one in _STREAM for item in one.publication.items)
    given = {one.version for one in evidence.letters}
    return next(
        one
        for one in _STREAM
        if one.publication.event_type == "v1.messages.upsert"
        and one.version not in given
        and spoken_of[one.publication.items[0].key] == 1
        and one.publication.items[0].payload["flow"] == "OUT"
    )


def judged(harm: Callable[[Evidence], object], **claims: object) -> Outcome:
    evidence = perfect(_STREAM)
    harm(evidence)
    return judge(Claim(COMPANY, _STREAM, **claims), evidence)  # type: ignore[arg-type]


def _remove_row(evidence: Evidence) -> None:
    del evidence.rows["messages"][_sound(evidence).publication.items[0].key]


def _double_row(evidence: Evidence) -> None:
    evidence.rows["messages"][_sound(evidence).publication.items[0].key].append(Row({}))


def _double_dead_letter(evidence: Evidence) -> None:
    evidence.letters.append(evidence.letters[0])


def _needless_dead_letter(evidence: Evidence) -> None:
    one = _sound(evidence)
    evidence.letters.append(Given(one.version, one.publication.body))


def _change_value(evidence: Evidence) -> None:
    next(iter(evidence.rows["messages"].values()))[0].columns["status"] = "nonsense"


def test_a_perfect_run_keeps_the_promise() -> None:
    outcome = judged(lambda _: None)
    assert outcome.ok
    assert outcome.published == outcome.stored + outcome.waiting > 400


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (_remove_row, "lost"),
        (_double_row, "doubled"),
        (_double_dead_letter, "doubled"),
        (_needless_dead_letter, "needless"),
        (_change_value, "wrong"),
    ],
)
def test_harm_is_counted_as_what_it_is(harm: Callable[[Evidence], object], kind: str) -> None:
    outcome = judged(harm)
    assert not outcome.ok
    assert getattr(outcome, kind) >= 1


def test_what_a_deleted_stream_still_held_is_counted_apart() -> None:
    lost = _sound(perfect(_STREAM))
    outcome = judged(_remove_row, doubtful=frozenset({lost.version}))
    assert (outcome.lost, outcome.gone) == (0, 1)
    assert judged(_remove_row, doubtful=frozenset({Version(1, 1)})).lost == 1


def test_the_results_go_on_where_they_were_left_and_short_runs_count_apart(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    first, short = (Results(path, short=short) for short in (False, True))
    first.add("nats killed", 1, Outcome(published=10, stored=10, recovered=1.5))
    bad = Outcome(published=10, stored=9)
    bad.blame(Problem("lost", "has neither a row nor anything else"))
    first.add("nats killed", 2, bad)
    short.add("nats killed", 1, Outcome(published=5, stored=5, recovered=0.5))
    again, short = (Results(path, short=short) for short in (False, True))
    assert [one["seed"] for one in again.of("nats killed")] == [1, 2]
    assert [one["seed"] for one in again.failed(["nats killed"])] == [2]
    line = "| nats killed | 2 | 20 | 19 | 0 | 0 | 0 | 1 | 0 | 0 | 0 | 0 | 0 | 0 | never | never |"
    assert line in again.table(["nats killed", "mixed"])
    line = "| nats killed | 1 | 5 | 5 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0.5 | 0.5 |"
    assert line in short.table(["nats killed"])
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 3


async def test_the_proxy_carries_freezes_heals_and_cuts() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Proxy(server.sockets[0].getsockname()[1]) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"one")
        assert await reader.read(100) == b"one"
        proxy.freeze()
        writer.write(b"two")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(100), 0.1)
        proxy.heal()
        assert await asyncio.wait_for(reader.read(100), 5) == b"two"
        proxy.cut()
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(100), 5) == b""
        refused, other = await asyncio.open_connection("127.0.0.1", proxy.port)
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(refused.read(100), 5) == b""
        proxy.heal()
        back, third = await asyncio.open_connection("127.0.0.1", proxy.port)
        third.write(b"again")
        assert await asyncio.wait_for(back.read(100), 5) == b"again"
        for one in (writer, other, third):
            one.close()


class SlowClient:
    """A connection to a JetStream whose answers come out of order."""

    max_payload = 1024 * 1024
    is_connected = False
    jetstream = new_inbox = staticmethod(lambda: "inbox")

    async def subscribe(self, _subject: str, *, cb: Callable[[Msg], Awaitable[None]], **_: object) -> None:
        self._answer = cb
        self._answers: set[asyncio.Task[None]] = set()

    async def publish(self, _subject: str, _body: bytes, reply: str, _headers: object) -> None:
        self._answers.add(asyncio.create_task(self._confirm(reply)))

    async def _confirm(self, reply: str) -> None:
        await asyncio.sleep(random.uniform(0, 0.02))
        await self._answer(Msg(Client(), reply, data=b'{"stream":"wa_events_stream","seq":1}'))


async def test_what_is_about_one_row_is_published_in_order_however_slow_a_confirmation_is() -> None:
    load = Load(SlowClient(), COMPANY, seed=1, rate=2000, without=EARLY)  # type: ignore[arg-type]
    running = asyncio.create_task(load.run())
    while len(load.eras[-1].confirmed) < 300:
        await asyncio.sleep(0.01)
    load.finish()
    await running
    numbers: dict[str, list[int]] = {}
    for one in load.eras[-1].confirmed:
        for key in {item.key for item in one.publication.items if item.key}:
            numbers.setdefault(key, []).append(one.publication.number)
    assert max(map(len, numbers.values())) > 5
    assert all(found == sorted(found) for found in numbers.values())
