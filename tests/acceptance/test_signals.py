"""How a worker ends, while events keep coming: nothing lost, nothing twice (RUN-13)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import pytest
from nats.js.api import DiscardPolicy, StreamConfig

from testkit.servers import NatsServer
from tests import builders
from tests.acceptance.company_probe import CompanyProbe, comes_to
from tests.acceptance.conftest import Launch, visited

_ENOUGH = 1000
# Messages, and seconds between them: a load that a worker keeps up with, also on a slow machine.
_PORTION = 50
_BREAK = 0.05


class Load:
    """Publishes messages all the time, each of a sender of its own."""

    def __init__(self, probe: CompanyProbe) -> None:
        self.published = 0
        self.over = False
        self._probe = probe

    async def run(self) -> None:
        """Until it is over."""
        while not self.over:
            numbers = range(self.published, self.published + _PORTION)
            await self._probe.publish_many("v1.messages.upsert", [_message(number) for number in numbers])
            self.published += _PORTION
            await asyncio.sleep(_BREAK)


def _message(number: int) -> builders.Payload:
    phone = f"62811{number:07}"
    return builders.message(message_id=f"M{number}", from_phone=phone, chat_id=f"a_{phone}")


@asynccontextmanager
async def loaded(probe: CompanyProbe) -> AsyncIterator[Load]:
    """Events keep coming; on leaving the last ones are confirmed."""
    load = Load(probe)
    task = asyncio.create_task(load.run())
    try:
        yield load
    finally:
        load.over = True
        await task


async def _stored(probe: CompanyProbe, at_least: int) -> None:
    async def enough() -> bool:
        return await probe.count("messages") >= at_least

    await comes_to(True, enough)


async def _each_once(probe: CompanyProbe) -> None:
    """Every message that is in the stream has one row, one contact and one log row."""
    subject = probe.tenant.subject("v1.messages.upsert")
    state = (await probe.js.stream_info("wa_events_stream", subjects_filter=subject)).state
    published = (state.subjects or {}).get(subject, 0)
    for table in ("messages", "contacts", "onboarding_log"):
        await probe.holds(table, published)
    assert await probe.value("SELECT count(DISTINCT message_id) FROM {schema}.messages") == published
    assert await probe.count("exhausted_events") == 0
    assert await probe.letters() == 0


@pytest.mark.rule("RUN-13")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_under_load_loses_and_redelivers_nothing(
    launch: Launch, probe: CompanyProbe, number: signal.Signals
) -> None:
    first = launch(probe.company)
    async with loaded(probe) as load:
        await _stored(probe, _ENOUGH)
        assert await asyncio.to_thread(first.stop, number) == 0

        async def unacknowledged() -> int | None:
            return (await probe.consumer()).num_ack_pending

        # The server hears of the last acks a moment after they were sent.
        await comes_to(0, unacknowledged)
        info = await probe.consumer()
        assert info.num_redelivered == 0
        # What was delivered to the first worker is committed and acknowledged, all of it.
        delivered = await probe.deliveries()
        assert await probe.count("messages") == delivered == await probe.count("onboarding_log")
        assert info.ack_floor is not None
        assert info.ack_floor.consumer_seq == delivered

        launch(probe.company)
        await _stored(probe, load.published)
    await probe.settled()
    await _each_once(probe)
    rows = await probe.count("messages")
    assert await probe.deliveries() == rows
    assert (
        await probe.value(
            "SELECT count(*) FROM {schema}.messages WHERE (last_metadata->>'consumer_sequence')::int <= $1",
            delivered,
        )
        == delivered
    )


@pytest.mark.rule("RUN-12")
async def test_a_crash_under_load_loses_nothing_and_doubles_nothing(
    launch: Launch, probe: CompanyProbe
) -> None:
    """The messages of a killed worker come again after their ack wait, to whoever is there."""
    short = {"NATS_REALTIME_ACKWAIT": "2s"}
    first = launch(probe.company, also=short)
    async with loaded(probe) as load:
        await _stored(probe, _ENOUGH)
        first.kill()
        second = launch(probe.company, also=short)
        await _stored(probe, load.published)
    await probe.settled()
    await _each_once(probe)
    assert second.ready()["status"] == "READY"


async def test_a_second_worker_goes_on_when_the_first_one_is_killed(
    launch: Launch, probe: CompanyProbe
) -> None:
    short = {"NATS_REALTIME_ACKWAIT": "2s"}
    first, second = launch(probe.company, also=short), launch(probe.company, also=short)
    async with loaded(probe):
        await _stored(probe, _ENOUGH)
        first.kill()
        await _stored(probe, await probe.count("messages") + 200)
    await probe.settled()
    await _each_once(probe)
    assert second.running


@pytest.mark.rule("RUN-14")
async def test_what_a_worker_cannot_finish_in_its_time_is_given_back_and_stored_by_the_next(
    launch: Launch, company: str, postgres_dsn: str
) -> None:
    """Limit 30 s. The database is locked, and a dead letter finds no room in its stream."""
    with NatsServer() as server:
        client = await nats.connect(server.url)
        async with visited(company, client, postgres_dsn) as probe:
            # What is given back must come long before what is not.
            settings = {"NATS_REALTIME_ACKWAIT": "5m"}
            worker = launch(company, nats_url=server.url, also=settings, STOP_TIMEOUT="5s")
            config = (await probe.js.stream_info("dlq_stream")).config
            await probe.js.update_stream(
                StreamConfig(**{**vars(config), "max_bytes": 1, "discard": DiscardPolicy.NEW})
            )
            await probe.publish("v1.contacts.upsert", builders.contact(push_name=""))
            await probe.publish("v1.connection.update", builders.connection())
            await probe.holds("agents", 1)
            async with probe.database.transaction():
                await probe.execute("LOCK TABLE {schema}.chats IN ACCESS EXCLUSIVE MODE")
                await probe.publish("v1.chats.upsert", builders.chat())

                async def held() -> int | None:
                    return (await probe.consumer()).num_ack_pending

                await comes_to(2, held)
                assert await asyncio.to_thread(worker.stop) == 0
            await probe.js.update_stream(StreamConfig(**{**vars(config), "max_bytes": -1}))
            launch(company, nats_url=server.url, also=settings, STOP_TIMEOUT="5s")
            await probe.settled()
            assert await probe.count("chats") == 1
            assert await probe.letters() == 1
        await client.close()
