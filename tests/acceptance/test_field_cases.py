"""What gateways send in the field, through the whole worker."""

from __future__ import annotations

import pytest

from tests import builders
from tests.acceptance.company_probe import CompanyProbe
from tests.builders import ABSENT

LID = "98765432101234"
LINKED = f"{LID}@lid"
NUMBER = f"{builders.PHONE}@s.whatsapp.net"
EVENT = "v1.messages.upsert"


@pytest.mark.rule("ROW-3")
@pytest.mark.parametrize("first", ["stub", "content"])
async def test_a_stub_never_erases_the_content_of_its_message(served: CompanyProbe, first: str) -> None:
    """What could not be decrypted comes without content, and later or earlier with it."""
    content = builders.message()
    empty = {"message_text": ABSENT, "message_url": ABSENT, "status": ABSENT, "key": ABSENT}
    stub = builders.message(message_type=ABSENT, message_obj=ABSENT, messageStubType=2, **empty)
    for payload in (stub, content) if first == "stub" else (content, stub):
        await served.publish(EVENT, payload)
        await served.settled()

    [row] = await served.rows("messages")
    assert row["message_text"] == content["message_text"]
    assert row["message_obj"] == content["message_obj"]
    assert row["message_type"] == "conversation"
    assert row["status"] == "delivered"


async def test_a_placeholder_gives_way_to_the_content_that_comes_later(served: CompanyProbe) -> None:
    await served.publish(
        EVENT, builders.message(message_type="unavailable", message_obj=ABSENT, message_text=ABSENT)
    )
    await served.holds("messages", 1)
    assert (await served.rows("messages"))[0]["message_type"] == "unavailable"
    await served.publish(EVENT, builders.message())
    await served.settled()

    [row] = await served.rows("messages")
    assert row["message_type"] == "conversation"
    assert row["message_obj"] == builders.message()["message_obj"]


async def test_what_is_appended_after_a_disconnect_is_stored_and_onboarded_once(served: CompanyProbe) -> None:
    """The gateway's flag makes no difference, and the same message by both ways is one."""
    for flag in ("append", "notify", "append"):
        await served.publish(EVENT, builders.message(type=flag, upsertType=flag))
    await served.settled()

    assert await served.count("messages") == 1
    assert await served.count("contacts") == await served.count("onboarding_log") == 1


@pytest.mark.rule("MSG-6")
async def test_any_type_of_message_is_stored_under_its_own_id_and_touches_no_other(
    served: CompanyProbe,
) -> None:
    """Edits as encrypted blobs, albums, reactions taken back, polls, and what is yet to come."""
    await served.publish(EVENT, builders.message())
    types = {
        "secretEncryptedMessage": {"targetMessageKey": {"id": "3EB0A1F2C4"}, "encPayload": "AAA="},
        "reactionMessage": {"text": "", "key": {"id": "3EB0A1F2C4"}},
        "albumMessage": {"expectedImageCount": 2},
        "pollUpdateMessage": {"pollCreationMessageKey": {"id": "3EB0A1F2C4"}},
        "somethingOfNextYear": {},
    }
    for name, content in types.items():
        await served.publish(
            EVENT,
            builders.message(
                message_id=name, message_type=name, message_obj={name: content}, message_text=""
            ),
        )
    await served.settled()

    rows = {row["message_id"]: row for row in await served.rows("messages")}
    assert rows.keys() == {"3EB0A1F2C4", *types}
    assert rows["3EB0A1F2C4"]["message_text"] == builders.message()["message_text"]
    for name, content in types.items():
        assert rows[name]["message_type"] == name
        assert rows[name]["message_obj"] == {name: content}
        assert rows[name]["message_text"] == ""
    assert await served.letters() == 0


async def test_a_linked_id_without_a_number_makes_no_contact_and_one_with_a_number_does(
    served: CompanyProbe,
) -> None:
    """And the row keeps what was received."""
    key = {"id": "L1", "fromMe": False, "remoteJid": LINKED}
    await served.publish(EVENT, builders.message(message_id="L1", jid=LINKED, from_phone=LID, key=key))
    await served.settled()
    assert await served.count("contacts") == await served.count("onboarding_log") == 0

    named = {**key, "id": "L2", "remoteJidAlt": f"{builders.PHONE}:4@s.whatsapp.net"}
    await served.publish(EVENT, builders.message(message_id="L2", jid=LINKED, from_phone=LID, key=named))
    await served.settled()

    [contact] = await served.rows("contacts")
    assert contact["phone_number"] == builders.PHONE
    assert [row["phone_number"] for row in await served.rows("onboarding_log")] == [builders.PHONE]
    for row in await served.rows("messages"):
        assert (row["jid"], row["from_phone"]) == (LINKED, LID)
        assert row["key"] == {"id": row["message_id"], "fromMe": False, "remoteJid": LINKED}


@pytest.mark.rule("ONB-3")
async def test_a_sender_with_and_without_its_device_is_one_contact(served: CompanyProbe) -> None:
    phone = builders.PHONE
    senders = (phone, f"{phone}:67", f"{phone}:67@s.whatsapp.net", NUMBER)
    for number, sender in enumerate(senders):
        await served.publish(
            EVENT,
            builders.message(message_id=f"D{number}", from_phone=sender, jid=f"{phone}:67@s.whatsapp.net"),
        )
    await served.settled()

    assert [row["phone_number"] for row in await served.rows("contacts")] == [phone]
    assert await served.count("onboarding_log") == 1
    assert {row["from_phone"] for row in await served.rows("messages")} == set(senders)
    assert {row["jid"] for row in await served.rows("messages")} == {f"{phone}:67@s.whatsapp.net"}


async def test_a_status_before_its_message_is_not_lost(served: CompanyProbe) -> None:
    """It waits for its row. Of two, the one that was published later counts."""
    await served.publish("v1.messages.update", builders.message_update(status="read"))
    await served.publish(EVENT, builders.message(status=ABSENT))
    await served.settled()
    assert [row["status"] for row in await served.rows("messages")] == ["read"]

    await served.publish("v1.messages.update", builders.message_update(status="delivered"))
    await served.settled()
    assert [row["status"] for row in await served.rows("messages")] == ["delivered"]


@pytest.mark.rule("CHT-2")
async def test_unread_counts_as_gateways_write_them(served: CompanyProbe) -> None:
    """Three steps are three; null, 0 and -1 are all read."""
    await served.publish("v1.chats.upsert", builders.chat(unread_count=0))
    for _ in range(3):
        await served.publish("v1.chats.update", builders.chat_update(unread_count=1))
    await served.settled()
    assert [row["unread_count"] for row in await served.rows("chats")] == [3]
    for read in (None, 0, -1):
        await served.publish("v1.chats.update", builders.chat_update(unread_count=2))
        await served.publish("v1.chats.update", builders.chat_update(unread_count=read))
        await served.settled()
        assert [row["unread_count"] for row in await served.rows("chats")] == [0]


@pytest.mark.rule("ROW-3", "CTC-3")
@pytest.mark.parametrize("name", ["", None, ABSENT])
async def test_an_empty_name_never_replaces_a_name(served: CompanyProbe, name: object) -> None:
    await served.publish("v1.chats.upsert", builders.chat())
    await served.publish("v1.contacts.upsert", builders.contact())
    await served.publish("v1.chats.upsert", builders.chat(push_name=name))
    await served.publish("v1.contacts.update", builders.contact_update(push_name=name))
    await served.settled()

    assert [row["push_name"] for row in await served.rows("chats")] == ["Sari W"]
    assert [row["push_name"] for row in await served.rows("contacts")] == ["Sari W"]


@pytest.mark.rule("PAY-10")
async def test_media_of_900_kb_inside_a_message_is_stored_as_it_is(served: CompanyProbe) -> None:
    media = {"imageMessage": {"jpegThumbnail": "A" * 900_000}}
    await served.publish(EVENT, builders.message(message_obj=media))
    await served.settled()

    assert [row["message_obj"] for row in await served.rows("messages")] == [media]


@pytest.mark.parametrize("group", [False, True], ids=["chat", "group"])
async def test_the_number_is_onboarded_where_the_linked_id_stands_beside_it(
    served: CompanyProbe, group: bool
) -> None:
    """The gateway gives the linked id as the sender's phone, and the number as the chat's or participant's address."""
    linked, number = "145900000000010", "6281200000010"
    told = f"{number}@s.whatsapp.net", f"{linked}@lid"
    if group:
        jid, names = "120363040101010101@g.us", ("participant", "participantAlt")
        key = {"id": "3EB0", "remoteJid": jid, **dict(zip(names, told, strict=True))}
    else:
        jid, key = told[0], {"id": "3EB0", "remoteJid": told[0], "remoteJidAlt": told[1]}
    await served.publish(EVENT, builders.message(from_phone=linked, jid=jid, key=key, chat_id=f"a_{linked}"))
    await served.settled()

    [message] = await served.rows("messages")
    assert (message["from_phone"], message["jid"]) == (linked, jid)
    [contact] = await served.rows("contacts")
    [log] = await served.rows("onboarding_log")
    assert contact["phone_number"] == log["phone_number"] == number
