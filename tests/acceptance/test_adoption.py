"""The worker takes over from the existing service: its tables with data, and its consumers' positions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy, RetentionPolicy, StreamConfig

from events.subjects import HISTORICAL, REALTIME
from testkit.servers import NatsServer
from tests import builders
from tests.acceptance.company_probe import DLQ_STREAM, HISTORY_STREAM, REALTIME_STREAM, CompanyProbe, comes_to
from tests.acceptance.conftest import Launch, visited

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


async def _contents(probe: CompanyProbe) -> dict[str, list[str]]:
    return {
        table: [
            str(row[0])
            for row in await probe.database.fetch(
                f"SELECT t::text FROM {probe.schema}.{table} AS t ORDER BY 1"
            )
        ]
        for table in _TABLES
    }


async def _lay(probe: CompanyProbe) -> None:
    """The schema and rows of the existing service."""
    await probe.execute(_EXISTING.read_text(encoding="utf-8"))
    await probe.execute(_ROWS.replace("{company}", probe.company).replace("{{}}", "{}"))


@pytest.mark.rule("TAB-3")
async def test_a_schema_with_data_of_the_existing_service_is_taken_over_unchanged(
    launch: Launch, probe: CompanyProbe
) -> None:
    await _lay(probe)
    before = await _contents(probe)
    worker = launch(probe.company)
    assert await _contents(probe) == before
    assert worker.stop() == 0
    assert await _contents(probe) == before


@pytest.mark.rule("TAB-3")
async def test_events_change_adopted_rows_in_place(launch: Launch, probe: CompanyProbe) -> None:
    """No second row for what is there already."""
    await _lay(probe)
    launch(probe.company)
    await probe.publish(
        "v1.messages.upsert",
        builders.message(message_id="old-1", chat_id="c", agent_id="a", from_phone="62811", status="deleted"),
    )
    await probe.publish("v1.messages.update", builders.message_update(message_id="old-2", status="sent"))
    await probe.publish("v1.chats.update", builders.chat_update(chat_id="c", agent_id="a", unread_count=1))
    await probe.publish(
        "v1.contacts.upsert",
        builders.contact(phone_number="62811", agent_id="a", chat_id="c", push_name="Sari W"),
    )
    await probe.publish(
        "v1.contacts.update", builders.contact_update(phone_number="62812", agent_id="a", push_name="Budi")
    )
    await probe.publish("v1.connection.update", {"agent_id": "a", "status": "disconnected"})
    await probe.settled()
    assert await probe.letters() == 0
    first, second = await probe.rows("messages", "message_id")
    assert (first["status"], second["status"]) == ("deleted", "sent")
    assert str(first["message_date"]) == "2026-03-01"
    assert (await probe.rows("chats"))[0]["unread_count"] == 5
    sari, budi = await probe.rows("contacts", "phone_number")
    assert (sari["id"], sari["push_name"], sari["notes"], sari["tags"]) == ("u1", "Sari W", "a note", "vip")
    assert budi["push_name"] == "Budi"
    assert budi["id"]
    assert (await probe.rows("agents"))[0]["status"] == "disconnected"
    assert await probe.count("onboarding_log") == 1
    assert await probe.letters() == 0


@pytest.mark.rule("TAB-3")
@pytest.mark.parametrize("day", ["0001-01-01", "1969-12-31", "9999-12-31", "58866-01-31"])
async def test_adopted_messages_of_any_day_take_updates(
    launch: Launch, probe: CompanyProbe, day: str
) -> None:
    """Days that the existing service made of 0 and of milliseconds, in the default partition."""
    await probe.execute(_EXISTING.read_text(encoding="utf-8"))
    await probe.execute(
        "INSERT INTO {schema}.messages (message_id, message_date, company_id, status) "
        f"VALUES ('odd', '{day}', '{probe.company}', 'sent')"
    )
    launch(probe.company)
    await probe.publish("v1.messages.update", builders.message_update(message_id="odd", status="read"))
    await probe.publish("v1.messages.upsert", builders.message(message_id="odd", status=builders.ABSENT))
    await probe.settled()
    assert await probe.count("messages") == 1
    assert await probe.value("SELECT status FROM {schema}.messages") == "read"
    assert await probe.value("SELECT message_date::text FROM {schema}.messages") == day
    assert await probe.letters() == 0


@pytest.fixture
async def predecessor(company: str, postgres_dsn: str) -> AsyncIterator[CompanyProbe]:
    """The company on a NATS of its own, with streams as the existing service makes them."""
    with NatsServer() as server:
        client = await nats.connect(server.url)
        async with visited(company, client, postgres_dsn) as probe:
            for name, subjects, retention in (
                (REALTIME_STREAM, [f"{base}.*" for base in REALTIME], RetentionPolicy.LIMITS),
                (HISTORY_STREAM, [f"{base}.*" for base in HISTORICAL], RetentionPolicy.INTEREST),
                (DLQ_STREAM, ["v1.dlq.>"], RetentionPolicy.LIMITS),
            ):
                await probe.js.add_stream(StreamConfig(name=name, subjects=subjects, retention=retention))
            yield probe
        await client.close()


async def _push_durable(probe: CompanyProbe, stream: str, durable: str, bases: tuple[str, ...]) -> str:
    """A push consumer of the existing service; the subject it delivers to."""
    inbox = probe.nc.new_inbox()
    config = ConsumerConfig(
        durable_name=durable,
        deliver_subject=inbox,
        deliver_group="group",
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        filter_subjects=[probe.tenant.subject(base) for base in bases],
        max_deliver=5,
        max_ack_pending=1000,
    )
    await probe.js.add_consumer(stream, config)
    return inbox


async def _acknowledge(nc: Client, inbox: str, count: int) -> None:
    """Be the old service for a while: acknowledge so many messages, and go."""
    subscription = await nc.subscribe(inbox, queue="group")
    for _ in range(count):
        message = await subscription.next_msg(timeout=10)
        await message.ack_sync()
    await subscription.unsubscribe()


def _url(probe: CompanyProbe) -> str:
    url = probe.nc.connected_url
    assert url is not None
    return str(url.geturl())


@pytest.mark.rule("CON-5")
async def test_the_position_of_the_old_push_durable_is_taken_over(
    launch: Launch, predecessor: CompanyProbe
) -> None:
    """Publish 1,000, acknowledge 300 under the old durable: the other 700 are stored, none twice."""
    probe = predecessor
    inbox = await _push_durable(probe, REALTIME_STREAM, f"wa_listener_{probe.company}", REALTIME)
    for number in range(1000):
        await probe.publish("v1.chats.upsert", builders.chat(chat_id=f"c{number:04}"))
    await _acknowledge(probe.nc, inbox, 300)
    launch(probe.company, nats_url=_url(probe))
    await probe.settled()
    stored = [row["chat_id"] for row in await probe.rows("chats", "chat_id")]
    assert stored == [f"c{number:04}" for number in range(300, 1000)]
    assert await probe.deliveries() == 700
    # Left for an operator's command.
    assert await probe.js.consumer_info(REALTIME_STREAM, f"wa_listener_{probe.company}")


async def test_the_position_on_an_interest_stream_of_history_is_taken_over(
    launch: Launch, predecessor: CompanyProbe
) -> None:
    """The old durable keeps what is not acknowledged until the new one is there."""
    probe = predecessor
    inbox = await _push_durable(probe, HISTORY_STREAM, f"wa_history_listener_{probe.company}", HISTORICAL)
    for number in range(100):
        batch = builders.history_chats(builders.chat(chat_id=f"c{number:04}"))
        await probe.publish("v1.history.chats", batch)
    await _acknowledge(probe.nc, inbox, 30)
    launch(probe.company, nats_url=_url(probe))
    await probe.settled(HISTORY_STREAM)
    stored = [row["chat_id"] for row in await probe.rows("chats", "chat_id")]
    assert stored == [f"c{number:04}" for number in range(30, 100)]
    assert await probe.deliveries(HISTORY_STREAM) == 70


@pytest.mark.rule("CON-5")
async def test_the_shared_durable_of_dead_letters_is_taken_over_and_left_alone(
    launch: Launch, predecessor: CompanyProbe
) -> None:
    """Envelopes of other companies stay for their own workers."""
    probe = predecessor
    shared = ConsumerConfig(durable_name="v1_dlq_worker_consumer", filter_subject="v1.dlq.>", max_deliver=10)
    await probe.js.add_consumer(DLQ_STREAM, shared)
    for number in range(10):
        letter = builders.envelope(
            probe.of_us(builders.chat(chat_id=f"c{number}")),
            company=probe.company,
            source_subject=probe.tenant.subject("v1.chats.upsert"),
            event_version=builders.ABSENT,
        )
        await probe.publish("v1.dlq", letter)
        await probe.js.publish("v1.dlq.Somebody", builders.body(builders.envelope(company="Somebody")))
    old = await probe.js.pull_subscribe_bind("v1_dlq_worker_consumer", stream=DLQ_STREAM)
    for message in await old.fetch(8):
        await message.ack_sync()
    launch(probe.company, nats_url=_url(probe))
    await probe.settled(DLQ_STREAM)
    assert [row["chat_id"] for row in await probe.rows("chats", "chat_id")] == [f"c{n}" for n in range(4, 10)]
    assert await probe.count("exhausted_events") == 0

    async def left() -> int | None:
        info: ConsumerInfo = await probe.js.consumer_info(DLQ_STREAM, "v1_dlq_worker_consumer")
        return info.num_pending

    await comes_to(12, left)
