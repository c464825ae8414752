"""Workers side by side, companies side by side, and what was there before them (SUB-6, CON-6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from nats.aio.client import Client

from tests import builders
from tests.acceptance.company_probe import HISTORY_STREAM, CompanyProbe, comes_true
from tests.acceptance.conftest import Launch, visited

_RECEIVED = "message_event_service_events_received_total"


@pytest.fixture
async def neighbour(nc: Client, postgres_dsn: str) -> AsyncIterator[CompanyProbe]:
    """Another company."""
    async with visited(f"Teh{uuid4().hex[:12].upper()}nusa", nc, postgres_dsn) as probe:
        yield probe


def _message(number: int) -> builders.Payload:
    phone = f"62812{number:07}"
    return builders.message(message_id=f"M{number}", from_phone=phone, chat_id=f"a_{phone}")


@pytest.mark.rule("CON-6")
async def test_two_replicas_share_the_work_without_doubles_and_nothing_is_redelivered(
    launch: Launch, probe: CompanyProbe
) -> None:
    count = 4000
    replicas = [launch(probe.company), launch(probe.company)]
    await probe.publish_many("v1.messages.upsert", [_message(number) for number in range(count)])
    await probe.settled()
    received = [replica.scrape().value(_RECEIVED, company_id=probe.company) for replica in replicas]
    assert all(share > 0 for share in received), received
    assert sum(received) == count
    assert await probe.deliveries() == count
    for table in ("messages", "contacts", "onboarding_log"):
        assert await probe.count(table) == count


@pytest.mark.rule("TAB-6")
async def test_replicas_that_start_together_prepare_the_company_once(
    launch: Launch, probe: CompanyProbe
) -> None:
    replicas = [launch(probe.company, ready=False) for _ in range(3)]
    for replica in replicas:
        replica.wait_ready()
    await probe.publish("v1.chats.upsert", builders.chat())
    await probe.holds("chats", 1)


@pytest.mark.rule("CON-7")
async def test_an_update_finds_its_row_whichever_replica_has_it(launch: Launch, probe: CompanyProbe) -> None:
    """An update that overtakes its message waits for it, and is no dead letter."""
    for _ in range(2):
        launch(probe.company, NATS_REALTIME_NAKBASEDELAY="50ms")
    events = []
    for number in range(300):
        events.append(probe.publish("v1.messages.upsert", _message(number)))
        events.append(probe.publish("v1.messages.update", builders.message_update(message_id=f"M{number}")))
    for event in events:
        await event
    await probe.settled()
    assert await probe.value("SELECT count(*) FROM {schema}.messages WHERE status = 'read'") == 300
    assert await probe.letters() == 0


@pytest.mark.rule("SUB-6")
async def test_two_companies_in_one_worker_never_share_a_row(
    launch: Launch, probe: CompanyProbe, neighbour: CompanyProbe
) -> None:
    worker = launch(probe.company, neighbour.company)
    both = (probe, neighbour)
    for number in range(50):
        await asyncio.gather(*(each.publish("v1.messages.upsert", _message(number)) for each in both))
        await asyncio.gather(*(each.publish("v1.chats.upsert", builders.chat()) for each in both))
        await asyncio.gather(*(each.publish("v1.connection.update", builders.connection()) for each in both))
    await asyncio.gather(*(each.settled() for each in both))
    for each in both:
        assert await each.count("messages") == await each.count("contacts") == 50
        assert await each.count("chats") == await each.count("agents") == 1
        for table in ("messages", "contacts", "onboarding_log", "chats", "agents"):
            assert await each.value(f"SELECT array_agg(DISTINCT company_id) FROM {{schema}}.{table}") == [
                each.company
            ]
        assert worker.scrape().value(_RECEIVED, company_id=each.company) == 150


@pytest.mark.rule("PAY-6")
async def test_an_event_that_names_another_company_is_written_to_neither(
    launch: Launch, probe: CompanyProbe, neighbour: CompanyProbe
) -> None:
    launch(probe.company, neighbour.company)
    await probe.publish("v1.chats.upsert", builders.chat(company_id=neighbour.company))
    await probe.settled()
    assert await probe.letters() == 1
    assert "company_id" in (await probe.letter())["error"]
    assert await probe.count("chats") == await neighbour.count("chats") == 0


async def test_a_worker_stores_only_the_companies_it_is_told_to(
    launch: Launch, probe: CompanyProbe, neighbour: CompanyProbe
) -> None:
    launch(probe.company)
    await neighbour.publish("v1.chats.upsert", builders.chat())
    await probe.publish("v1.chats.upsert", builders.chat())
    await probe.holds("chats", 1)
    assert await probe.value("SELECT to_regnamespace($1)", neighbour.tenant.schema) is None


@pytest.mark.rule("CON-3")
async def test_five_events_before_a_tenants_first_start_make_five_rows(
    launch: Launch, probe: CompanyProbe
) -> None:
    """Of the history stream as well, once it exists."""
    launch(f"{probe.company}x").stop()
    for number in range(5):
        await probe.publish("v1.chats.upsert", builders.chat(chat_id=f"live-{number}"))
        await probe.publish(
            "v1.history.chats", builders.history_chats(builders.chat(chat_id=f"history-{number}"))
        )
    launch(probe.company)
    await probe.settled()
    await probe.settled(HISTORY_STREAM)
    assert await probe.count("chats") == 10


async def test_a_restart_with_a_backlog_stores_all_of_it_once(launch: Launch, probe: CompanyProbe) -> None:
    assert launch(probe.company).stop() == 0
    await probe.publish_many("v1.messages.upsert", [_message(number) for number in range(3000)])
    second = launch(probe.company)
    await probe.settled()
    assert await probe.count("messages") == await probe.count("contacts") == 3000
    assert await probe.deliveries() == 3000
    await comes_true(
        lambda: (
            second.scrape().value("message_event_service_events_processed_total", company_id=probe.company)
            == 3000
        )
    )


@pytest.mark.rule("CON-4")
async def test_changed_limits_at_a_restart_keep_the_position(launch: Launch, probe: CompanyProbe) -> None:
    """Never a new consumer merely because a number differs."""
    first = launch(probe.company)
    await probe.publish("v1.chats.upsert", builders.chat(chat_id="before"))
    await probe.holds("chats", 1)
    first.stop()
    await probe.publish_many(
        "v1.chats.upsert", [builders.chat(chat_id=f"c{number}") for number in range(100)]
    )
    launch(probe.company, NATS_REALTIME_ACKWAIT="45s", NATS_REALTIME_MAXDELIVER="9")
    await probe.settled()
    assert await probe.count("chats") == 101
    assert await probe.deliveries() == 101


@pytest.mark.rule("CTC-2")
async def test_a_thousand_contacts_upserts_make_a_thousand_contacts(
    launch: Launch, probe: CompanyProbe
) -> None:
    launch(probe.company)
    await probe.publish_many(
        "v1.contacts.upsert",
        [
            builders.contact(phone_number=f"62813{number:07}", chat_id=f"a_62813{number:07}")
            for number in range(1000)
        ],
    )
    await probe.holds("contacts", 1000)
    assert await probe.value("SELECT count(DISTINCT id) FROM {schema}.contacts WHERE id <> ''") == 1000
    assert await probe.value("SELECT count(DISTINCT chat_id) FROM {schema}.contacts") == 1000
    assert await probe.letters() == 0


@pytest.mark.rule("ONB-4", "ONB-11")
async def test_five_thousand_incoming_of_new_phones_make_as_many_contacts_and_log_rows(
    launch: Launch, probe: CompanyProbe
) -> None:
    worker = launch(probe.company)
    await probe.publish_many("v1.messages.upsert", [_message(number) for number in range(5000)])
    await probe.settled()
    for table in ("messages", "contacts", "onboarding_log"):
        assert await probe.count(table) == 5000
    assert (
        await probe.value("SELECT count(DISTINCT chat_id) FROM {schema}.contacts WHERE chat_id <> ''") == 5000
    )
    labels = {"company_id": probe.company, "status": "success_created"}
    await comes_true(lambda: worker.scrape().value("onboarding_tasks_processed_total", **labels) == 5000)
