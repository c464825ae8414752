"""The worker takes over from the existing service: its tables with data, and its consumers' positions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy, RetentionPolicy, StreamConfig

from events.subjects import HISTORICAL, REALTIME
from testkit import builders
from testkit.servers import NatsServer
from tests.acceptance.conftest import Launch, visited
from tests.acceptance.site import DLQ_STREAM, HISTORY_STREAM, REALTIME_STREAM, Site, comes_to

_EXISTING = Path(__file__).parent.parent / "integration" / "existing_service.sql"
_TABLES = ("messages", "chats", "contacts", "agents", "onboarding_log", "exhausted_events")
_ROWS = """
INSERT INTO {schema}.messages (message_id, message_date, message_timestamp, company_id, jid, chat_id, agent_id, flow,
    status, message_text, from_phone, created_at, updated_at)
VALUES ('old-1', '2026-03-01', 1772323200, '{company}', 'j', 'c', 'a', 'IN', 'read', 'pagi', '62811', now(), now());
INSERT INTO {schema}.messages (message_id, message_date, company_id) VALUES ('old-2', '0001-01-01', '{company}');
INSERT INTO {schema}.chats (chat_id, company_id, agent_id, phone_number, unread_count, push_name)
VALUES ('c', '{company}', 'a', '62811', 4, 'Sari');
INSERT INTO {schema}.contacts (id, phone_number, agent_id, company_id, chat_id, push_name, notes, tags, origin)
VALUES ('u1', '62811', 'a', '{company}', 'c', 'Sari', 'a note', 'vip', 'web'),
       ('', '62812', 'a', '{company}', '', '', '', '', '');
INSERT INTO {schema}.agents (agent_id, company_id, status) VALUES ('a', '{company}', 'connected');
INSERT INTO {schema}.onboarding_log (message_id, phone_number, agent_id, company_id, timestamp)
VALUES ('old-1', '62811', 'a', '{company}', 1772323200);
INSERT INTO {schema}.exhausted_events (company_id, source_subject, dlq_payload) VALUES ('{company}', 's', '{{}}');
"""


async def _contents(site: Site) -> dict[str, list[str]]:
    return {
        table: [
            str(row[0])
            for row in await site.database.fetch(f"SELECT t::text FROM {site.schema}.{table} AS t ORDER BY 1")
        ]
        for table in _TABLES
    }


async def _lay(site: Site) -> None:
    """The schema and rows of the existing service."""
    await site.execute(_EXISTING.read_text(encoding="utf-8"))
    await site.execute(_ROWS.replace("{company}", site.company).replace("{{}}", "{}"))


@pytest.mark.rule("TAB-3")
async def test_a_schema_with_data_of_the_existing_service_is_taken_over_unchanged(
    launch: Launch, site: Site
) -> None:
    await _lay(site)
    before = await _contents(site)
    worker = launch(site.company)
    assert await _contents(site) == before
    assert worker.stop() == 0
    assert await _contents(site) == before


@pytest.mark.rule("TAB-3")
async def test_events_change_adopted_rows_in_place(launch: Launch, site: Site) -> None:
    """No second row for what is there already."""
    await _lay(site)
    launch(site.company)
    await site.publish(
        "v1.messages.upsert",
        builders.message(message_id="old-1", chat_id="c", agent_id="a", from_phone="62811", status="deleted"),
    )
    await site.publish("v1.messages.update", builders.message_update(message_id="old-2", status="sent"))
    await site.publish("v1.chats.update", builders.chat_update(chat_id="c", agent_id="a", unread_count=1))
    await site.publish(
        "v1.contacts.upsert",
        builders.contact(phone_number="62811", agent_id="a", chat_id="c", push_name="Sari W"),
    )
    await site.publish(
        "v1.contacts.update", builders.contact_update(phone_number="62812", agent_id="a", push_name="Budi")
    )
    await site.publish("v1.connection.update", {"agent_id": "a", "status": "disconnected"})
    await site.settled()
    assert await site.letters() == 0
    first, second = await site.rows("messages", "message_id")
    assert (first["status"], second["status"]) == ("deleted", "sent")
    assert str(first["message_date"]) == "2026-03-01"
    assert (await site.rows("chats"))[0]["unread_count"] == 5
    sari, budi = await site.rows("contacts", "phone_number")
    assert (sari["id"], sari["push_name"], sari["notes"], sari["tags"]) == ("u1", "Sari W", "a note", "vip")
    assert budi["push_name"] == "Budi"
    assert budi["id"]
    assert (await site.rows("agents"))[0]["status"] == "disconnected"
    assert await site.count("onboarding_log") == 1
    assert await site.letters() == 0


@pytest.mark.rule("TAB-3")
@pytest.mark.parametrize("day", ["0001-01-01", "1969-12-31", "9999-12-31", "58866-01-31"])
async def test_adopted_messages_of_any_day_take_updates(launch: Launch, site: Site, day: str) -> None:
    """Days that the existing service made of 0 and of milliseconds, in the default partition."""
    await site.execute(_EXISTING.read_text(encoding="utf-8"))
    await site.execute(
        "INSERT INTO {schema}.messages (message_id, message_date, company_id, status) "
        f"VALUES ('odd', '{day}', '{site.company}', 'sent')"
    )
    launch(site.company)
    await site.publish("v1.messages.update", builders.message_update(message_id="odd", status="read"))
    await site.publish("v1.messages.upsert", builders.message(message_id="odd", status=builders.ABSENT))
    await site.settled()
    assert await site.count("messages") == 1
    assert await site.value("SELECT status FROM {schema}.messages") == "read"
    assert await site.value("SELECT message_date::text FROM {schema}.messages") == day
    assert await site.letters() == 0


@pytest.fixture
async def predecessor(company: str, postgres_dsn: str) -> AsyncIterator[Site]:
    """The company on a NATS of its own, with streams as the existing service makes them."""
    with NatsServer() as server:
        client = await nats.connect(server.url)
        async with visited(company, client, postgres_dsn) as site:
            for name, subjects, retention in (
                (REALTIME_STREAM, [f"{base}.*" for base in REALTIME], RetentionPolicy.LIMITS),
                (HISTORY_STREAM, [f"{base}.*" for base in HISTORICAL], RetentionPolicy.INTEREST),
                (DLQ_STREAM, ["v1.dlq.>"], RetentionPolicy.LIMITS),
            ):
                await site.js.add_stream(StreamConfig(name=name, subjects=subjects, retention=retention))
            yield site
        await client.close()


async def _push_durable(site: Site, stream: str, durable: str, bases: tuple[str, ...]) -> str:
    """A push consumer of the existing service; the subject it delivers to."""
    inbox = site.nc.new_inbox()
    config = ConsumerConfig(
        durable_name=durable,
        deliver_subject=inbox,
        deliver_group="group",
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        filter_subjects=[site.tenant.subject(base) for base in bases],
        max_deliver=5,
        max_ack_pending=1000,
    )
    await site.js.add_consumer(stream, config)
    return inbox


async def _acknowledge(nc: Client, inbox: str, count: int) -> None:
    """Be the old service for a while: acknowledge so many messages, and go."""
    subscription = await nc.subscribe(inbox, queue="group")
    for _ in range(count):
        message = await subscription.next_msg(timeout=10)
        await message.ack_sync()
    await subscription.unsubscribe()


def _url(site: Site) -> str:
    url = site.nc.connected_url
    assert url is not None
    return str(url.geturl())


@pytest.mark.rule("CON-5")
async def test_the_position_of_the_old_push_durable_is_taken_over(launch: Launch, predecessor: Site) -> None:
    """Publish 1,000, acknowledge 300 under the old durable: the other 700 are stored, none twice."""
    site = predecessor
    inbox = await _push_durable(site, REALTIME_STREAM, f"wa_listener_{site.company}", REALTIME)
    for number in range(1000):
        await site.publish("v1.chats.upsert", builders.chat(chat_id=f"c{number:04}"))
    await _acknowledge(site.nc, inbox, 300)
    launch(site.company, nats_url=_url(site))
    await site.settled()
    stored = [row["chat_id"] for row in await site.rows("chats", "chat_id")]
    assert stored == [f"c{number:04}" for number in range(300, 1000)]
    assert await site.deliveries() == 700
    # Left for an operator's command.
    assert await site.js.consumer_info(REALTIME_STREAM, f"wa_listener_{site.company}")


async def test_the_position_on_an_interest_stream_of_history_is_taken_over(
    launch: Launch, predecessor: Site
) -> None:
    """The old durable keeps what is not acknowledged until the new one is there."""
    site = predecessor
    inbox = await _push_durable(site, HISTORY_STREAM, f"wa_history_listener_{site.company}", HISTORICAL)
    for number in range(100):
        batch = builders.history_chats(builders.chat(chat_id=f"c{number:04}"))
        await site.publish("v1.history.chats", batch)
    await _acknowledge(site.nc, inbox, 30)
    launch(site.company, nats_url=_url(site))
    await site.settled(HISTORY_STREAM)
    stored = [row["chat_id"] for row in await site.rows("chats", "chat_id")]
    assert stored == [f"c{number:04}" for number in range(30, 100)]
    assert await site.deliveries(HISTORY_STREAM) == 70


@pytest.mark.rule("CON-5")
async def test_the_shared_durable_of_dead_letters_is_taken_over_and_left_alone(
    launch: Launch, predecessor: Site
) -> None:
    """Envelopes of other companies stay for their own workers."""
    site = predecessor
    shared = ConsumerConfig(durable_name="v1_dlq_worker_consumer", filter_subject="v1.dlq.>", max_deliver=10)
    await site.js.add_consumer(DLQ_STREAM, shared)
    for number in range(10):
        letter = builders.envelope(
            site.of_us(builders.chat(chat_id=f"c{number}")),
            company=site.company,
            source_subject=site.tenant.subject("v1.chats.upsert"),
            event_version=builders.ABSENT,
        )
        await site.publish("v1.dlq", letter)
        await site.js.publish("v1.dlq.Somebody", builders.body(builders.envelope(company="Somebody")))
    old = await site.js.pull_subscribe_bind("v1_dlq_worker_consumer", stream=DLQ_STREAM)
    for message in await old.fetch(8):
        await message.ack_sync()
    launch(site.company, nats_url=_url(site))
    await site.settled(DLQ_STREAM)
    assert [row["chat_id"] for row in await site.rows("chats", "chat_id")] == [f"c{n}" for n in range(4, 10)]
    assert await site.count("exhausted_events") == 0

    async def left() -> int | None:
        info: ConsumerInfo = await site.js.consumer_info(DLQ_STREAM, "v1_dlq_worker_consumer")
        return info.num_pending

    await comes_to(12, left)
