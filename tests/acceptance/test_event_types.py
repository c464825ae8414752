"""Each of the ten event types, published for a running worker, ends in its rows."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from testkit.worker import Worker
from tests import builders
from tests.acceptance.company_probe import PATIENCE, CompanyProbe, comes_to, stream_of

_TODAY_OF_SENDING = datetime.datetime.fromtimestamp(builders.SENT_AT, datetime.UTC).date()
_METADATA = {
    "stream",
    "consumer",
    "stream_sequence",
    "consumer_sequence",
    "domain",
    "message_id",
    "message_subject",
    "processed_at",
}
_MESSAGE = {
    "message_id": "3EB0A1F2C4",
    "from_phone": builders.PHONE,
    "to_phone": "628990002222",
    "chat_id": builders.CHAT,
    "jid": builders.JID,
    "message_text": "Apakah stok kopi gayo masih ada?",
    "message_url": "",
    "message_type": "conversation",
    "key": {"id": "3EB0A1F2C4", "fromMe": False, "remoteJid": builders.JID},
    "edited_message_obj": None,
    "message_obj": {"conversation": "Apakah stok kopi gayo masih ada?"},
    "flow": "IN",
    "agent_id": builders.AGENT,
    "status": "delivered",
    "is_deleted": False,
    "message_timestamp": builders.SENT_AT,
    "message_date": _TODAY_OF_SENDING,
}
_CHAT = {
    "chat_id": builders.CHAT,
    "jid": builders.JID,
    "push_name": "Sari W",
    "is_group": False,
    "group_name": "",
    "unread_count": 2,
    "last_message": {"id": "3EB0A1F2C4", "text": "Apakah stok kopi gayo masih ada?"},
    "conversation_timestamp": builders.SENT_AT,
    "not_spam": True,
    "agent_id": builders.AGENT,
    "phone_number": builders.PHONE,
}
_CONTACT = {
    "phone_number": builders.PHONE,
    "agent_id": builders.AGENT,
    "chat_id": builders.CHAT,
    "type": "",
    "custom_name": "",
    "notes": "",
    "tags": "",
    "avatar": "",
    "assigned_to": "",
    "pob": "",
    "dob": None,
    "gender": "MALE",
    "origin": "",
    "push_name": "Sari W",
    "status": "ACTIVE",
    "first_message_id": "",
    "first_message_timestamp": 0,
}
_AGENT = {
    "agent_id": builders.AGENT,
    "qr_code": "",
    "status": "connected",
    "agent_name": "CS Utama",
    "host_name": "wa-node-3",
    "version": "2.14.0",
    "phone_number": "628990002222",
}


async def _row(probe: CompanyProbe, table: str) -> dict[str, Any]:
    """The only row of the table, without what differs from run to run; that is checked here."""
    [row] = await probe.rows(table)
    metadata = row.pop("last_metadata")
    assert set(metadata) >= _METADATA
    assert metadata["message_subject"].endswith(f".{probe.company}")
    assert metadata["processed_at"].endswith("Z")
    assert row.pop("company_id") == probe.company
    assert row.pop("id")
    created, updated = row.pop("created_at"), row.pop("updated_at", None)
    assert abs((datetime.datetime.now(datetime.UTC) - created).total_seconds()) < PATIENCE
    assert updated is None or updated >= created
    return row


async def _publish(probe: CompanyProbe, event_type: str, **changes: Any) -> int:
    """Publish the builder's event and wait until it is settled; its stream sequence."""
    published = await probe.publish(event_type, builders.BUILDERS[event_type](**changes))
    await probe.settled(stream_of(event_type))
    return published.seq


async def _counted(worker: Worker, probe: CompanyProbe, event_type: str, count: int = 1) -> None:
    """Wait until the deliveries are counted: received, processed, timed and acknowledged."""
    labels = {"event_type": event_type, "company_id": probe.company, "consumer_type": _kind(event_type)}
    prefix = "message_event_service_event"

    async def counts() -> list[float]:
        scrape = worker.scrape()
        return [
            scrape.value(f"{prefix}s_received_total", **labels),
            scrape.value(f"{prefix}s_processed_total", **labels),
            scrape.value(f"{prefix}s_failed_total", **labels),
            scrape.value(f"{prefix}_processing_duration_seconds_count", **labels),
            scrape.value(f"{prefix}_routing_duration_seconds_count", **labels),
            scrape.value(
                f"{prefix}_processing_actions_total", **labels, action="ack_success", error_type="none"
            ),
        ]

    await comes_to([count, count, 0, count, count, count], counts)


def _kind(event_type: str) -> str:
    return "historical" if event_type.startswith("v1.history.") else "realtime"


@pytest.mark.rule("MSG-1")
async def test_messages_upsert_stores_the_message_and_onboards_its_sender(
    shared: Worker, served: CompanyProbe
) -> None:
    await _publish(served, "v1.messages.upsert")
    assert await _row(served, "messages") == _MESSAGE
    assert await _row(served, "contacts") == _CONTACT | {
        "push_name": "",
        "tags": "Onboarded",
        "origin": "DirectChat",
        "first_message_id": "3EB0A1F2C4",
        "first_message_timestamp": builders.SENT_AT,
    }
    assert await _row(served, "onboarding_log") == {
        "message_id": "3EB0A1F2C4",
        "agent_id": builders.AGENT,
        "phone_number": builders.PHONE,
        "timestamp": builders.SENT_AT,
    }
    await _counted(shared, served, "v1.messages.upsert")
    onboarded = await _onboarding(shared, served)
    assert onboarded == {"success_created": 1, "success_exists": 0, "error_db": 0, "error_other": 0}


async def _onboarding(worker: Worker, probe: CompanyProbe) -> dict[str, float]:
    scrape = worker.scrape()
    return {
        status: scrape.value("onboarding_tasks_processed_total", company_id=probe.company, status=status)
        for status in ("success_created", "success_exists", "error_db", "error_other")
    }


@pytest.mark.rule("MSG-5")
async def test_messages_update_changes_the_named_columns_only(shared: Worker, served: CompanyProbe) -> None:
    await _publish(served, "v1.messages.upsert")
    update = {"edited_message_obj": {"text": "Masih?"}, "is_deleted": True, "message_url": "https://a.id/1"}
    await _publish(served, "v1.messages.update", **update)
    assert await _row(served, "messages") == _MESSAGE | update | {"status": "read"}
    await _counted(shared, served, "v1.messages.update")


@pytest.mark.rule("CHT-1")
async def test_chats_upsert_and_update_store_the_chat(shared: Worker, served: CompanyProbe) -> None:
    await _publish(served, "v1.chats.upsert")
    assert await _row(served, "chats") == _CHAT
    await _publish(served, "v1.chats.update")
    assert await _row(served, "chats") == _CHAT | {
        "unread_count": 3,
        "conversation_timestamp": builders.SENT_AT + 337,
        "last_message": {"id": "3EB0A1F2D9", "text": "Halo?"},
    }
    await _counted(shared, served, "v1.chats.upsert")
    await _counted(shared, served, "v1.chats.update")


async def test_contacts_upsert_and_update_store_the_contact(shared: Worker, served: CompanyProbe) -> None:
    await _publish(served, "v1.contacts.upsert")
    assert await _row(served, "contacts") == _CONTACT
    await _publish(served, "v1.contacts.update")
    assert await _row(served, "contacts") == _CONTACT | {"push_name": "Sari Wulandari"}
    assert await served.count("onboarding_log") == 0
    await _counted(shared, served, "v1.contacts.upsert")
    await _counted(shared, served, "v1.contacts.update")


@pytest.mark.rule("AGT-1")
async def test_connection_update_stores_the_agent_with_its_phone_number(
    shared: Worker, served: CompanyProbe
) -> None:
    """The phone number of the account included."""
    await _publish(served, "v1.connection.update")
    assert await _row(served, "agents") == _AGENT
    changed = {"agent_id": builders.AGENT, "status": "disconnected"}
    await served.publish("v1.connection.update", changed)
    await served.settled()
    assert await _row(served, "agents") == _AGENT | {"status": "disconnected"}
    await _counted(shared, served, "v1.connection.update", 2)


@pytest.mark.rule("HIS-5")
async def test_history_messages_are_stored_and_not_onboarded(shared: Worker, served: CompanyProbe) -> None:
    await _publish(served, "v1.history.messages")
    incoming, outgoing = await served.rows("messages", "message_id")
    assert (incoming["message_id"], outgoing["message_id"]) == ("H1", "H2")
    assert outgoing["flow"] == "OUT"
    for name in set(_MESSAGE) - {"message_id", "flow"}:
        assert incoming[name] == outgoing[name] == _MESSAGE[name], name
    assert incoming["company_id"] == served.company
    assert await served.count("contacts") == await served.count("onboarding_log") == 0
    await _counted(shared, served, "v1.history.messages")


@pytest.mark.rule("CHT-1")
async def test_history_chats_are_stored(shared: Worker, served: CompanyProbe) -> None:
    await _publish(served, "v1.history.chats")
    single, group = await served.rows("chats", "is_group")
    assert {name: single[name] for name in _CHAT} == _CHAT
    assert (group["is_group"], group["group_name"]) == (True, "Tim Gudang")
    await _counted(shared, served, "v1.history.chats")


async def test_history_contacts_are_stored_with_an_id(shared: Worker, served: CompanyProbe) -> None:
    await _publish(served, "v1.history.contacts")
    assert await _row(served, "contacts") == _CONTACT
    await _counted(shared, served, "v1.history.contacts")


@pytest.mark.rule("ROW-2")
async def test_history_contacts_that_repeat_touch_updated_at_and_metadata(served: CompanyProbe) -> None:
    await _publish(served, "v1.history.contacts")
    [before] = await served.rows("contacts")
    await _publish(served, "v1.history.contacts")
    [after] = await served.rows("contacts")
    assert after["updated_at"] > before["updated_at"]
    assert after["created_at"] == before["created_at"]
    assert after["last_metadata"]["consumer_sequence"] == 2


@pytest.mark.rule("SUB-7", "ROW-1")
async def test_rows_tell_which_delivery_they_come_from(served: CompanyProbe) -> None:
    published = await served.publish("v1.chats.upsert", builders.chat(), Nats_Msg_Id="wamid-1")
    await served.settled()
    [row] = await served.rows("chats")
    metadata = row["last_metadata"]
    assert metadata["stream"] == "wa_events_stream"
    assert metadata["consumer"] == f"wa_realtime_{served.company}"
    assert metadata["stream_sequence"] == published.seq
    assert metadata["consumer_sequence"] == 1
    assert metadata["domain"] == ""
    assert metadata["message_id"] == "wamid-1"
    assert metadata["message_subject"] == f"v1.chats.upsert.{served.company}"
