"""Servers that go away under load and come back: nothing lost, nothing dead-lettered (OUT-12)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error

from testkit.servers import NatsServer, PostgresServer
from testkit.worker import Worker
from tests import builders
from tests.acceptance.company_probe import HISTORY_STREAM, CompanyProbe, comes_to, comes_true
from tests.acceptance.conftest import Launch, visited

_COUNT = 600


@pytest.fixture
async def servers(company: str) -> AsyncIterator[tuple[CompanyProbe, NatsServer, PostgresServer]]:
    """The test's company on servers of its own."""
    with NatsServer() as broker, PostgresServer() as postgres:
        client = await nats.connect(broker.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
        async with visited(company, client, postgres.dsn) as probe:
            yield probe, broker, postgres
        await client.close()


def _message(number: int) -> builders.Payload:
    phone = f"62814{number:07}"
    return builders.message(message_id=f"M{number}", from_phone=phone, chat_id=f"a_{phone}")


async def _publish(probe: CompanyProbe, numbers: range) -> None:
    """One after the other, each until the server confirms it; the id keeps a repeat from counting twice."""
    for number in numbers:
        while True:
            try:
                await probe.publish("v1.messages.upsert", _message(number), Nats_Msg_Id=f"M{number}")
                break
            except (Error, TimeoutError, OSError):
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.003)


def _has_processed(worker: Worker, count: int) -> bool:
    return worker.scrape().value("message_event_service_events_processed_total") > count


async def _all_stored(company: str, client: Client, dsn: str) -> None:
    # The visit's own connection to the database did not survive.
    async with visited(company, client, dsn) as probe:
        await probe.holds("messages", _COUNT)
        await probe.settled()
        assert await probe.count("contacts") == await probe.count("onboarding_log") == _COUNT
        assert await probe.letters() == 0
        assert await probe.count("exhausted_events") == 0


@pytest.mark.rule("OUT-12")
@pytest.mark.parametrize("how", ["stop", "kill", "pause"])
async def test_an_outage_of_postgresql_under_load_makes_no_dead_letter_and_loses_nothing(
    launch: Launch, servers: tuple[CompanyProbe, NatsServer, PostgresServer], how: str
) -> None:
    probe, broker, postgres = servers
    worker = launch(probe.company, nats_url=broker.url, postgres_dsn=postgres.dsn)
    load = asyncio.create_task(_publish(probe, range(_COUNT)))
    await comes_true(partial(_has_processed, worker, 50))
    await asyncio.to_thread(getattr(postgres, how))
    worker.wait_page("/ready", 503)
    assert "postgres" in worker.ready()["details"]
    await load
    await asyncio.to_thread(postgres.resume if how == "pause" else postgres.start)
    await _all_stored(probe.company, probe.nc, postgres.dsn)
    worker.wait_ready()
    # Counted once it is acknowledged.
    await comes_true(partial(_has_processed, worker, _COUNT - 1))
    scrape = worker.scrape()
    assert scrape.value("message_event_service_events_failed_total") == 0
    assert scrape.value("message_event_service_events_processed_total") == _COUNT


async def test_the_server_is_killed_and_comes_back_and_the_worker_goes_on(
    launch: Launch, servers: tuple[CompanyProbe, NatsServer, PostgresServer]
) -> None:
    probe, broker, postgres = servers
    # Acks that the crash swallowed are made up for after the ack wait.
    short = {"NATS_REALTIME_ACKWAIT": "3s"}
    worker = launch(probe.company, nats_url=broker.url, postgres_dsn=postgres.dsn, also=short)
    pid = worker.process.pid
    load = asyncio.create_task(_publish(probe, range(_COUNT)))
    for enough in (50, 200):
        await comes_true(partial(_has_processed, worker, enough))
        await asyncio.to_thread(broker.kill)
        worker.wait_page("/ready", 503)
        assert "nats" in worker.ready()["details"]
        await asyncio.to_thread(broker.start)
        worker.wait_ready()
    await load
    await _all_stored(probe.company, probe.nc, postgres.dsn)
    assert worker.running
    assert worker.process.pid == pid
    await comes_true(lambda: worker.scrape().value("daisi_nats_reconnects_total") == 2)


@pytest.mark.rule("CON-2")
async def test_a_deleted_consumer_is_made_again_and_the_worker_goes_on(
    launch: Launch, servers: tuple[CompanyProbe, NatsServer, PostgresServer]
) -> None:
    probe, broker, postgres = servers
    launch(probe.company, nats_url=broker.url, postgres_dsn=postgres.dsn)
    for stream, durable in (
        ("wa_events_stream", f"wa_realtime_{probe.company}"),
        ("wa_history_events_stream", f"wa_history_{probe.company}"),
    ):
        await probe.js.delete_consumer(stream, durable)
    await probe.publish("v1.chats.upsert", builders.chat(chat_id="live"))
    await probe.publish("v1.history.chats", builders.history_chats(builders.chat(chat_id="past")))
    await probe.holds("chats", 2)
    await probe.settled()
    await probe.settled(HISTORY_STREAM)


@pytest.mark.rule("ROW-5")
async def test_an_update_that_changes_nothing_leaves_no_lock_behind(
    launch: Launch, servers: tuple[CompanyProbe, NatsServer, PostgresServer]
) -> None:
    """The next one of its chat is stored."""
    probe, broker, postgres = servers
    launch(probe.company, nats_url=broker.url, postgres_dsn=postgres.dsn)
    await probe.publish("v1.chats.upsert", builders.chat(unread_count=0, last_message=builders.ABSENT))
    nothing = {"chat_id": builders.CHAT, "agent_id": builders.AGENT, "company_id": builders.COMPANY}
    for _ in range(100):
        await probe.publish("v1.chats.update", nothing)
    await probe.publish("v1.chats.update", builders.chat_update(unread_count=7))
    await comes_to(7, lambda: probe.value("SELECT unread_count FROM {schema}.chats"))
    await probe.settled()
    idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    assert await probe.value(idle) == 0
    assert await probe.letters() == 0
