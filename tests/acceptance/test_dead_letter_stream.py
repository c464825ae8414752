"""A dead-letter stream that takes nothing, for longer than the ack wait: no event that was given up is lost."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest
from nats.js.api import DiscardPolicy, StreamConfig

from testkit.servers import NatsServer
from testkit.worker import Worker
from tests import builders
from tests.acceptance.company_probe import (
    DLQ_STREAM,
    HISTORY_STREAM,
    REALTIME_STREAM,
    CompanyProbe,
    comes_to,
    comes_true,
)
from tests.acceptance.conftest import Launch, visited

_ACK_WAIT = 1.0
_QUICK = {
    "NATS_REALTIME_ACKWAIT": f"{_ACK_WAIT}s",
    "NATS_HISTORICAL_ACKWAIT": f"{_ACK_WAIT}s",
    "NATS_HISTORICAL_BATCHSIZE": "5",
}
_DENIED = 'authorization {{ users: [{{user: "worker", password: "w", permissions: {{publish: {{deny: [{0}]}}}}}}] }}'
_ROUNDS = 3


@pytest.fixture
def broker() -> Iterator[NatsServer]:
    """A NATS of this test's own, for a user `worker`, who may everything."""
    with NatsServer(settings=_DENIED.format('"nowhere"')) as server:
        yield server


def _url(broker: NatsServer) -> str:
    return broker.url.replace("//", "//worker:w@")


@asynccontextmanager
async def _opened(company: str, broker: NatsServer, dsn: str) -> AsyncIterator[CompanyProbe]:
    client = await nats.connect(_url(broker), max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    try:
        async with visited(company, client, dsn) as probe:
            yield probe
    finally:
        await client.close()


class Full:
    """A stream that is full."""

    reason = "maximum bytes exceeded"

    def __init__(self, probe: CompanyProbe, _: NatsServer) -> None:
        self._probe = probe
        self._config: StreamConfig | None = None

    async def refuse(self) -> None:
        self._config = (await self._probe.js.stream_info(DLQ_STREAM)).config
        full = {**vars(self._config), "max_bytes": 1, "discard": DiscardPolicy.NEW}
        await self._probe.js.update_stream(StreamConfig(**full))

    async def take(self) -> None:
        await self._probe.js.update_stream(StreamConfig(**{**vars(self._config), "max_bytes": -1}))


class Elsewhere(Full):
    """A stream that an operator gave other subjects: nobody answers."""

    reason = "no stream has this subject"

    async def refuse(self) -> None:
        self._config = (await self._probe.js.stream_info(DLQ_STREAM)).config
        await self._probe.js.update_stream(
            StreamConfig(**{**vars(self._config), "subjects": ["elsewhere.>"]})
        )

    async def take(self) -> None:
        await self._probe.js.update_stream(self._config)


class Remade(Full):
    """A stream that is full, then deleted, and made anew."""

    async def take(self) -> None:
        await self._probe.js.delete_stream(DLQ_STREAM)


class Denied(Full):
    """A subject that the worker must not publish to."""

    reason = "NATS"

    def __init__(self, probe: CompanyProbe, broker: NatsServer) -> None:
        super().__init__(probe, broker)
        self._broker = broker

    async def refuse(self) -> None:
        await self._restart('"v1.dlq.>"')

    async def take(self) -> None:
        await self._restart('"nowhere"')

    async def _restart(self, denied: str) -> None:
        self._broker._settings = _DENIED.format(denied)
        await asyncio.to_thread(self._broker.restart)
        await comes_true(lambda: self._probe.nc.is_connected)


class Frozen(Full):
    """A stream that is full, on a server that is frozen for longer than the ack wait."""

    def __init__(self, probe: CompanyProbe, broker: NatsServer) -> None:
        super().__init__(probe, broker)
        self._broker = broker

    async def take(self) -> None:
        await asyncio.to_thread(self._broker.pause)
        await asyncio.sleep(1.5 * _ACK_WAIT)
        await asyncio.to_thread(self._broker.resume)
        await super().take()


async def _published(probe: CompanyProbe) -> list[str]:
    """Bad items among good ones, and bad events: the chats that must be in a letter, one each."""
    batches = []
    for number in range(_ROUNDS):
        bad = [builders.chat(chat_id=f"H{number}-{item}", jid="") for item in range(3)]
        good = [builders.chat(chat_id=f"G{number}-{item}", jid=f"{number}{item}@c.us") for item in range(3)]
        batches.append(builders.history_chats(*bad, *good))
    await probe.publish_many("v1.history.chats", batches)
    events = [builders.chat(chat_id=f"R{number}", jid="") for number in range(_ROUNDS)]
    await probe.publish_many("v1.chats.upsert", events)
    history = [f"H{number}-{item}" for number in range(_ROUNDS) for item in range(3)]
    return [*history, *(f"R{number}" for number in range(_ROUNDS))]


async def _carried(probe: CompanyProbe) -> Counter[str]:
    """The chats in our dead letters, and in how many letters each is."""
    found: Counter[str] = Counter()
    state = (await probe.js.stream_info(DLQ_STREAM)).state
    for sequence in range(max(state.first_seq, 1), state.last_seq + 1):
        payload: Any = json.loads((await probe.js.get_msg(DLQ_STREAM, sequence)).data or b"")[
            "original_payload"
        ]
        found.update(item["chat_id"] for item in payload.get("chats", [payload]))
    return found


async def _each_in_one_letter(probe: CompanyProbe, chats: list[str]) -> None:
    for stream in (HISTORY_STREAM, REALTIME_STREAM):
        await probe.settled(stream)
    assert await _carried(probe) == Counter(chats)
    assert await probe.count("chats") == 3 * _ROUNDS


def _reason(worker: Worker, company: str) -> str:
    return str(worker.ready()["details"].get(f"dead letters {company}", ""))


async def _all_wait(worker: Worker, count: int) -> None:
    await comes_true(
        lambda: (
            worker.scrape().value(
                "message_event_service_event_processing_actions_total", action="nak_dlq_publish_fail"
            )
            >= count
        )
    )


@pytest.mark.rule("OUT-5")
@pytest.mark.parametrize("refusal", [Full, Elsewhere, Remade, Denied, Frozen], ids=lambda it: it.__name__)
async def test_events_given_up_while_the_dead_letter_stream_takes_nothing_are_each_in_one_letter(
    launch: Launch, company: str, broker: NatsServer, postgres_dsn: str, refusal: type[Full]
) -> None:
    async with _opened(company, broker, postgres_dsn) as probe:
        worker = launch(company, nats_url=_url(broker), postgres_dsn=postgres_dsn, also=_QUICK)
        stream = refusal(probe, broker)
        await stream.refuse()
        await comes_true(lambda: worker.page("/ready")[0] == 200)
        chats = await _published(probe)
        await _all_wait(worker, 2 * _ROUNDS)
        assert worker.page("/ready")[0] == 503
        reason = _reason(worker, company)
        assert reason.startswith(f"{DLQ_STREAM} takes nothing on v1.dlq.{company}: ")
        assert stream.reason in reason
        await asyncio.sleep(1.5 * _ACK_WAIT)

        await stream.take()
        await _each_in_one_letter(probe, chats)
        await comes_to(200, lambda: asyncio.to_thread(lambda: worker.page("/ready")[0]))
        told = [line["msg"] for line in worker.lines() if f"dead letters {company} w" in line["msg"]]
        assert len(told) <= 4, "the log says when it begins, when the reason changes, and when it ends"
        assert told[-1] == f"dead letters {company} works again"


async def test_events_whose_letters_wait_when_the_worker_stops_are_in_letters_of_the_next_one(
    launch: Launch, company: str, broker: NatsServer, postgres_dsn: str
) -> None:
    async with _opened(company, broker, postgres_dsn) as probe:
        quick = {**_QUICK, "STOP_TIMEOUT": "5s"}
        worker = launch(company, nats_url=_url(broker), postgres_dsn=postgres_dsn, also=quick)
        stream = Full(probe, broker)
        await stream.refuse()
        chats = await _published(probe)
        await _all_wait(worker, 2 * _ROUNDS)
        assert await asyncio.to_thread(worker.stop) == 0
        await stream.take()
        assert await _carried(probe) == Counter()
        launch(company, nats_url=_url(broker), postgres_dsn=postgres_dsn, also=quick)
        await _each_in_one_letter(probe, chats)


async def test_more_events_than_may_wait_for_the_dead_letter_stream_are_each_in_one_letter(
    launch: Launch, company: str, broker: NatsServer, postgres_dsn: str
) -> None:
    """Routing waits at the limit, with a history batch behind it, and goes on when there is room."""
    async with _opened(company, broker, postgres_dsn) as probe:
        worker = launch(company, nats_url=_url(broker), postgres_dsn=postgres_dsn, also=_QUICK)
        stream = Full(probe, broker)
        await stream.refuse()
        many = [f"C{number}" for number in range(1200)]
        await probe.publish_many("v1.chats.upsert", [builders.chat(chat_id=chat, jid="") for chat in many])
        await _all_wait(worker, 1000)
        chats = await _published(probe)
        await stream.take()
        await _each_in_one_letter(probe, [*many, *chats])
