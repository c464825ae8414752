"""Workers side by side, companies side by side, and what was there before them (SUB-6, CON-6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from nats.aio.client import Client

from testkit import builders
from tests.acceptance.conftest import Launch, visited
from tests.acceptance.site import HISTORY_STREAM, Site, comes_true

_RECEIVED = "message_event_service_events_received_total"


@pytest.fixture
async def neighbour(nc: Client, postgres_dsn: str) -> AsyncIterator[Site]:
    """Another company."""
    async with visited(f"Teh{uuid4().hex[:12].upper()}nusa", nc, postgres_dsn) as site:
        yield site


def _message(number: int) -> builders.Payload:
    phone = f"62812{number:07}"
    return builders.message(message_id=f"M{number}", from_phone=phone, chat_id=f"a_{phone}")


@pytest.mark.rule("CON-6")
async def test_two_replicas_share_the_work_without_doubles_and_nothing_is_redelivered(
    launch: Launch, site: Site
) -> None:
    count = 4000
    replicas = [launch(site.company), launch(site.company)]
    await site.publish_many("v1.messages.upsert", [_message(number) for number in range(count)])
    await site.settled()
    received = [replica.scrape().value(_RECEIVED, company_id=site.company) for replica in replicas]
    assert all(share > 0 for share in received), received
    assert sum(received) == count
    assert await site.deliveries() == count
    for table in ("messages", "contacts", "onboarding_log"):
        assert await site.count(table) == count


@pytest.mark.rule("TAB-6")
async def test_replicas_that_start_together_prepare_the_company_once(launch: Launch, site: Site) -> None:
    replicas = [launch(site.company, ready=False) for _ in range(3)]
    for replica in replicas:
        replica.wait_ready()
    await site.publish("v1.chats.upsert", builders.chat())
    await site.holds("chats", 1)


@pytest.mark.rule("CON-7")
async def test_an_update_finds_its_row_whichever_replica_has_it(launch: Launch, site: Site) -> None:
    """An update that overtakes its message waits for it, and is no dead letter."""
    for _ in range(2):
        launch(site.company, NATS_REALTIME_NAKBASEDELAY="50ms")
    events = []
    for number in range(300):
        events.append(site.publish("v1.messages.upsert", _message(number)))
        events.append(site.publish("v1.messages.update", builders.message_update(message_id=f"M{number}")))
    for event in events:
        await event
    await site.settled()
    assert await site.value("SELECT count(*) FROM {schema}.messages WHERE status = 'read'") == 300
    assert await site.letters() == 0


@pytest.mark.rule("SUB-6")
async def test_two_companies_in_one_worker_never_share_a_row(
    launch: Launch, site: Site, neighbour: Site
) -> None:
    worker = launch(site.company, neighbour.company)
    both = (site, neighbour)
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
    launch: Launch, site: Site, neighbour: Site
) -> None:
    launch(site.company, neighbour.company)
    await site.publish("v1.chats.upsert", builders.chat(company_id=neighbour.company))
    await site.settled()
    assert await site.letters() == 1
    assert "company_id" in (await site.letter())["error"]
    assert await site.count("chats") == await neighbour.count("chats") == 0


async def test_a_worker_stores_only_the_companies_it_is_told_to(
    launch: Launch, site: Site, neighbour: Site
) -> None:
    launch(site.company)
    await neighbour.publish("v1.chats.upsert", builders.chat())
    await site.publish("v1.chats.upsert", builders.chat())
    await site.holds("chats", 1)
    assert await site.value("SELECT to_regnamespace($1)", neighbour.tenant.schema) is None


@pytest.mark.rule("CON-3")
async def test_five_events_before_a_tenants_first_start_make_five_rows(launch: Launch, site: Site) -> None:
    """Of the history stream as well, once it exists."""
    launch(f"{site.company}x").stop()
    for number in range(5):
        await site.publish("v1.chats.upsert", builders.chat(chat_id=f"live-{number}"))
        await site.publish(
            "v1.history.chats", builders.history_chats(builders.chat(chat_id=f"history-{number}"))
        )
    launch(site.company)
    await site.settled()
    await site.settled(HISTORY_STREAM)
    assert await site.count("chats") == 10


async def test_a_restart_with_a_backlog_stores_all_of_it_once(launch: Launch, site: Site) -> None:
    assert launch(site.company).stop() == 0
    await site.publish_many("v1.messages.upsert", [_message(number) for number in range(3000)])
    second = launch(site.company)
    await site.settled()
    assert await site.count("messages") == await site.count("contacts") == 3000
    assert await site.deliveries() == 3000
    await comes_true(
        lambda: (
            second.scrape().value("message_event_service_events_processed_total", company_id=site.company)
            == 3000
        )
    )


@pytest.mark.rule("CON-4")
async def test_changed_limits_at_a_restart_keep_the_position(launch: Launch, site: Site) -> None:
    """Never a new consumer merely because a number differs."""
    first = launch(site.company)
    await site.publish("v1.chats.upsert", builders.chat(chat_id="before"))
    await site.holds("chats", 1)
    first.stop()
    await site.publish_many("v1.chats.upsert", [builders.chat(chat_id=f"c{number}") for number in range(100)])
    launch(site.company, NATS_REALTIME_ACKWAIT="45s", NATS_REALTIME_MAXDELIVER="9")
    await site.settled()
    assert await site.count("chats") == 101
    assert await site.deliveries() == 101


@pytest.mark.rule("CTC-2")
async def test_a_thousand_contacts_upserts_make_a_thousand_contacts(launch: Launch, site: Site) -> None:
    launch(site.company)
    await site.publish_many(
        "v1.contacts.upsert",
        [
            builders.contact(phone_number=f"62813{number:07}", chat_id=f"a_62813{number:07}")
            for number in range(1000)
        ],
    )
    await site.holds("contacts", 1000)
    assert await site.value("SELECT count(DISTINCT id) FROM {schema}.contacts WHERE id <> ''") == 1000
    assert await site.value("SELECT count(DISTINCT chat_id) FROM {schema}.contacts") == 1000
    assert await site.letters() == 0


@pytest.mark.rule("ONB-4", "ONB-11")
async def test_five_thousand_incoming_of_new_phones_make_as_many_contacts_and_log_rows(
    launch: Launch, site: Site
) -> None:
    worker = launch(site.company)
    await site.publish_many("v1.messages.upsert", [_message(number) for number in range(5000)])
    await site.settled()
    for table in ("messages", "contacts", "onboarding_log"):
        assert await site.count(table) == 5000
    assert (
        await site.value("SELECT count(DISTINCT chat_id) FROM {schema}.contacts WHERE chat_id <> ''") == 5000
    )
    labels = {"company_id": site.company, "status": "success_created"}
    await comes_true(lambda: worker.scrape().value("onboarding_tasks_processed_total", **labels) == 5000)
