"""What gateways really send: who is onboarded, and that rows keep everything as it was received."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.decode import decode
from agents.received_event import ReceivedEvent
from events.fields import AlternateAddresses
from events.senders import Jid, is_to_many, jid
from tables.last_writer_wins import EventStamp, Version
from tables.mutations import MessageRow
from tests import builders
from tests.builders import ABSENT, PHONE
from tests.unit.fakes import LIMITS, STORED_NS, TENANT, FakeDelivery

LID = "98765432101234"
LINKED = f"{LID}@lid"
GROUP = "120363040101010101@g.us"
NUMBER = f"{PHONE}@s.whatsapp.net"


def decoded(**changes: Any) -> ReceivedEvent:
    """An incoming message, decoded."""
    delivery = FakeDelivery(payload=builders.message(**changes))
    stamp = EventStamp(Version(STORED_NS, 7), "{}")
    event = ReceivedEvent(TENANT, delivery, LIMITS["realtime"], "v1.messages.upsert", stamp)
    decode(event, delivery.data, itertools.count())
    return event


def onboarded(**changes: Any) -> str | None:
    """The phone that onboarding gets, None if it gets nothing; the message must be storable in any case."""
    message = decoded(**changes)
    assert message.error is None
    return None if message.incoming is None else message.incoming.phone


def row(**changes: Any) -> MessageRow:
    """What is stored."""
    [write] = decoded(**changes).writes
    assert isinstance(write, MessageRow)
    return write


def key(remote: str, **more: Any) -> dict[str, Any]:
    return {"id": "3EB0A1F2C4", "fromMe": False, "remoteJid": remote, **more}


@pytest.mark.rule("ONB-3")
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("4912@s.whatsapp.net", Jid("4912", "s.whatsapp.net")),
        ("4912:67@s.whatsapp.net", Jid("4912", "s.whatsapp.net")),
        ("4912_1:67@s.whatsapp.net", Jid("4912", "s.whatsapp.net")),
        ("4912@c.us", Jid("4912", "c.us")),
        ("12:3@lid", Jid("12", "lid")),
        ("628111-1620000000@g.us", Jid("628111-1620000000", "g.us")),
        ("status@broadcast", Jid("status", "broadcast")),
        ("4912", Jid("4912", "")),
        (":67@s.whatsapp.net", Jid(":67", "s.whatsapp.net")),
        ("a@b@c", Jid("a", "b@c")),
        ("", Jid("", "")),
    ],
)
def test_a_device_is_no_part_of_an_address_and_its_server_stays(text: str, parts: Jid) -> None:
    assert jid(text) == parts


@pytest.mark.rule("ONB-3")
@pytest.mark.parametrize(
    ("changes", "phone"),
    [
        # The plain case, and what the specification says of it (ONB-3).
        ({}, PHONE),
        ({"from_phone": "+62 812-111 (1)"}, "62812-1111"),
        ({"from_phone": ABSENT}, None),
        ({"from_phone": ""}, None),
        ({"from_phone": None}, None),
        ({"flow": "OUT"}, None),
        ({"jid": GROUP}, PHONE),
        ({"from_phone": "628111-1620000000", "jid": "628111-1620000000@g.us"}, "628111-1620000000"),
        # One person with and without a device.
        ({"jid": f"{PHONE}:67@s.whatsapp.net"}, PHONE),
        ({"from_phone": f"{PHONE}:67"}, PHONE),
        ({"from_phone": f"{PHONE}:67", "jid": f"{PHONE}:67@s.whatsapp.net"}, PHONE),
        ({"from_phone": NUMBER}, PHONE),
        ({"from_phone": f"{PHONE}:67@s.whatsapp.net", "jid": f"{PHONE}:67@s.whatsapp.net"}, PHONE),
        ({"from_phone": f"{PHONE}@c.us"}, PHONE),
        ({"from_phone": "not:a@phone"}, "not:a@phone"),
        # A linked id without a number is no phone.
        ({"jid": LINKED, "from_phone": ABSENT, "key": key(LINKED)}, None),
        ({"jid": LINKED, "from_phone": LID, "key": key(LINKED)}, None),
        ({"jid": f"{LID}:12@lid", "from_phone": LID, "key": ABSENT}, None),
        ({"jid": LINKED, "from_phone": f"+{LID}", "key": key(LINKED)}, None),
        ({"jid": LINKED, "from_phone": f"{LID[:4]} {LID[4:8]}-{LID[8:]}", "key": key(LINKED)}, None),
        ({"jid": LINKED, "from_phone": LINKED, "key": key(LINKED)}, None),
        ({"jid": LINKED, "from_phone": f"{LID}:12@lid", "key": key(LINKED)}, None),
        ({"jid": f"{LID}@hosted.lid", "from_phone": LID, "key": ABSENT}, None),
        ({"from_phone": LID, "jid": GROUP, "key": key(GROUP, participant=LINKED)}, None),
        ({"from_phone": LID, "jid": GROUP, "participant": LINKED, "key": key(GROUP)}, None),
        ({"from_phone": LID, "jid": GROUP, "key": key(GROUP, participantLid=LINKED)}, None),
        ({"from_phone": LID, "jid": GROUP, "key": key(GROUP, participantLid=LID)}, None),
        ({"jid": LINKED, "from_phone": PHONE}, PHONE),
        # Nor where a field says that it is one, and another one writes it like a number.
        ({"from_phone": f"{LID}@s.whatsapp.net", "jid": LINKED, "key": key(LINKED)}, None),
        ({"from_phone": LID, "jid": f"{LID}@s.whatsapp.net", "key": key(LINKED)}, None),
        ({"from_phone": LID, "jid": f"{LID}@c.us", "key": key(f"{LID}@c.us", remoteJidAlt=LINKED)}, None),
        # The chat's own address may be the number, and what stands beside it the linked id.
        ({"from_phone": LID, "jid": NUMBER, "key": key(NUMBER, remoteJidAlt=LINKED)}, PHONE),
        ({"from_phone": LID, "jid": NUMBER, "key": key(LINKED)}, PHONE),
        ({"from_phone": LID, "jid": LINKED, "key": key(NUMBER)}, PHONE),
        ({"from_phone": LID, "jid": NUMBER, "remoteJidAlt": LINKED, "key": ABSENT}, PHONE),
        (
            {
                "from_phone": LID,
                "jid": GROUP,
                "key": key(GROUP, participant=f"{PHONE}:3@s.whatsapp.net", participantAlt=LINKED),
            },
            PHONE,
        ),
        # A device as some gateways write it.
        ({"from_phone": f"{PHONE}.0:4@s.whatsapp.net", "jid": f"{PHONE}.0:4@s.whatsapp.net"}, PHONE),
        # The number in a field beside it, by all its names.
        *(
            (
                {"jid": LINKED, "from_phone": from_phone, "key": key(LINKED, **{name: number})},
                PHONE,
            )
            for name in ("remoteJidAlt", "senderPn", "participantAlt", "participantPn")
            for from_phone in (ABSENT, "", LID, LINKED)
            for number in (NUMBER, f"{PHONE}:4@s.whatsapp.net", PHONE)
        ),
        ({"jid": LINKED, "from_phone": LID, "remoteJidAlt": NUMBER}, PHONE),
        ({"jid": LINKED, "from_phone": LID, "senderPn": NUMBER, "key": key(LINKED)}, PHONE),
        (
            {"jid": LINKED, "from_phone": LID, "key": {"id": "x", "remote_jid": LINKED, "senderPn": NUMBER}},
            PHONE,
        ),
        # In a group the sender is the participant, elsewhere the other side of the chat.
        (
            {
                "jid": GROUP,
                "from_phone": ABSENT,
                "key": key(GROUP, remoteJidAlt="4911@s.whatsapp.net", participantAlt=NUMBER),
            },
            PHONE,
        ),
        (
            {
                "jid": LINKED,
                "from_phone": LID,
                "key": key(LINKED, remoteJidAlt=NUMBER, participantAlt="4911@s.whatsapp.net"),
            },
            PHONE,
        ),
        # What stands there need not be a number: the other one of the two may be the linked id.
        ({"key": key(NUMBER, remoteJidAlt=LINKED)}, PHONE),
        ({"jid": LINKED, "from_phone": LID, "key": key(LINKED, remoteJidAlt=LINKED, senderPn=NUMBER)}, PHONE),
        ({"jid": LINKED, "from_phone": LID, "key": key(LINKED, remoteJidAlt=LID)}, None),
        ({"jid": LINKED, "from_phone": LID, "key": key(LINKED, remoteJidAlt=GROUP)}, None),
        ({"jid": LINKED, "from_phone": LID, "key": key(LINKED, remoteJidAlt="Sari")}, None),
        *(
            ({"jid": LINKED, "from_phone": LID, "key": key(LINKED, remoteJidAlt=odd)}, None)
            for odd in (None, 12, 1.5, True, [NUMBER], {"jid": NUMBER}, "", "@", "@s.whatsapp.net", ":5")
        ),
        # No one to have a contact, wherever it stands.
        ({"jid": "status@broadcast"}, None),
        ({"jid": "123@broadcast"}, None),
        ({"jid": "123@newsletter"}, None),
        ({"key": key("status@broadcast", participantAlt=NUMBER)}, None),
        ({"jid": LINKED, "key": key("123@newsletter")}, None),
        ({"from_phone": "status@broadcast"}, None),
    ],
)
def test_the_sender_is_onboarded_with_a_phone_or_not_at_all(
    changes: dict[str, Any], phone: str | None
) -> None:
    assert onboarded(**changes) == phone


@pytest.mark.rule("PAY-11")
def test_jids_phones_and_chats_are_stored_as_they_were_received() -> None:
    stored = row(
        jid=f"{LID}:12@lid",
        chat_id="agent-7f3a_98765",
        from_phone=f"{LID}:12@lid",
        to_phone="+62 (812)",
        key=key(f"{LID}:12@lid", remoteJidAlt=NUMBER),
    )

    assert (stored.jid, stored.chat_id) == (f"{LID}:12@lid", "agent-7f3a_98765")
    assert (stored.from_phone, stored.to_phone) == (f"{LID}:12@lid", "+62 (812)")
    assert stored.key == '{"id":"3EB0A1F2C4","fromMe":false,"remoteJid":"' + f"{LID}:12@lid" + '"}'


@pytest.mark.rule("PAY-2")
@pytest.mark.parametrize("value", [12, None, [], {}, {"a": "1e400000"}, "x", True])
@pytest.mark.parametrize("name", ["remoteJidAlt", "participantAlt", "senderPn", "participant", "senderLid"])
def test_a_field_that_is_not_documented_never_refuses_an_event(name: str, value: Any) -> None:
    assert onboarded(**{name: value, "key": key(NUMBER, **{name: value})}) == PHONE


@pytest.mark.rule("PAY-8")
@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (1_730_000_000, 1_730_000_000),
        (1_730_000_000.0, 1_730_000_000),
        ("1713135736", 1_713_135_736),
        (1_730_000_000_123, 1_730_000_000),
        ("1730000000123", 1_730_000_000),
        ({"low": 1_730_000_000, "high": 0, "unsigned": True}, 1_730_000_000),
        ({"low": -1_294_967_296, "high": 0, "unsigned": True}, 3_000_000_000),
        ({"low": 705_032_704, "high": 1}, 5_000_000_000),
        ({"low": -1, "high": -1, "unsigned": False}, -1),
        ({"low": -871_820_165, "high": 402, "unsigned": True}, 1_730_000_000),
        ({"low": 1_730_000_000}, 1_730_000_000),
        (0, 0),
        (None, 0),
        (ABSENT, 0),
    ],
)
def test_a_timestamp_is_seconds_however_it_is_written(sent: object, seconds: int) -> None:
    assert row(message_timestamp=sent).message_timestamp == seconds


@pytest.mark.rule("PAY-11")
@pytest.mark.parametrize(
    ("message_type", "content"),
    [
        ("reactionMessage", {"reactionMessage": {"text": "", "key": {"id": "3EB0"}}}),
        ("albumMessage", {"albumMessage": {"expectedImageCount": 3}}),
        ("pollUpdateMessage", {"pollUpdateMessage": {"vote": {"encPayload": "AAA="}}}),
        ("secretEncryptedMessage", {"secretEncryptedMessage": {"targetMessageKey": {"id": "3EB0OTHER"}}}),
        ("unavailable", ABSENT),
        ("conversation", {"conversation": ""}),
        ("something of next year", {"x": [1, {"y": None}]}),
        (ABSENT, ABSENT),
    ],
)
def test_any_type_of_message_is_stored_as_it_is(message_type: object, content: object) -> None:
    stored = row(message_type=message_type, message_obj=content, message_text=ABSENT)

    assert stored.message_type == ("" if message_type is ABSENT else message_type)
    assert (stored.message_obj is None) == (content is ABSENT)
    assert stored.message_text == ""
    assert stored.message_id == "3EB0A1F2C4"


@pytest.mark.rule("ONB-1")
def test_broadcasts_and_newsletters_are_to_many_and_people_and_groups_are_not() -> None:
    assert all(map(is_to_many, ("status@broadcast", "1@broadcast", "1@newsletter")))
    assert not any(map(is_to_many, (NUMBER, LINKED, GROUP, "", PHONE)))


@pytest.mark.rule("ONB-3")
def test_a_field_beside_a_message_is_seen_whatever_its_name() -> None:
    assert AlternateAddresses().alone
    for name in AlternateAddresses.__struct_fields__:
        assert not AlternateAddresses(**{name: msgspec.Raw(b"1")}).alone, name


_CHAT_FIELDS = ("remoteJidAlt", "remote_jid_alt")
_PERSON_FIELDS = (
    "participant",
    "participantAlt",
    "participantPn",
    "senderPn",
    "participant_alt",
    "participant_pn",
    "sender_pn",
)
_LINKED_FIELDS = ("participantLid", "senderLid", "participant_lid", "sender_lid")
_LINKED_FORMS = (LINKED, f"{LID}:12@lid", f"{LID}_1:12@lid", f"{LID}@hosted.lid", f"{LID}.0:3@lid")
_NUMBER_FORMS = (
    NUMBER,
    f"{PHONE}:67@s.whatsapp.net",
    f"{PHONE}@c.us",
    f"{PHONE}@hosted",
    f"{PHONE}.0:1@s.whatsapp.net",
)
_FROM_FORMS = (LID, f"+{LID}", f"{LID}:4", LINKED, f"{LID}:4@lid", f"{LID}@s.whatsapp.net", "")

# Where an address stands: in the chat's own fields, in the key, or in the message.
_Place = tuple[str, str]


def _places(*names: str) -> list[_Place]:
    return [(side, name) for side in ("key", "message") for name in names]


@st.composite
def _payloads(draw: st.DrawFn) -> tuple[dict[str, Any], bool]:
    """A message of a sender with a linked id, and whether any field has the sender's number."""
    in_group = draw(st.booleans())
    own = GROUP if in_group else draw(st.sampled_from((*_LINKED_FORMS, *_NUMBER_FORMS)))
    beside = _places(*_PERSON_FIELDS, *(() if in_group else _CHAT_FIELDS))
    addresses: dict[_Place, str] = {
        place: draw(st.sampled_from((*_LINKED_FORMS, *_NUMBER_FORMS)))
        for place in draw(st.sets(st.sampled_from(beside)))
    }
    addresses |= {
        place: draw(st.sampled_from((*_LINKED_FORMS, LID)))
        for place in draw(st.sets(st.sampled_from(_places(*_LINKED_FIELDS))))
    }
    told = [own, *addresses.values()]
    from_phone = draw(st.sampled_from(_FROM_FORMS))
    if not any(text.endswith("lid") for text in (*told, from_phone)):
        addresses["key", "senderLid"] = LINKED
    remote = draw(st.sampled_from(("remoteJid", "remote_jid")))
    sides: dict[str, dict[str, Any]] = {"key": {"id": "3EB0", remote: own}, "message": {}}
    for (side, name), address in addresses.items():
        sides[side][name] = address
    has_number = any(PHONE in text for text in told)
    return {"from_phone": from_phone, "jid": own, "key": sides["key"], **sides["message"]}, has_number


@pytest.mark.rule("ONB-3")
@given(_payloads())
def test_a_linked_id_is_never_onboarded_and_the_number_is_wherever_it_stands(
    made: tuple[dict[str, Any], bool],
) -> None:
    payload, has_number = made
    assert onboarded(**payload) == (PHONE if has_number else None)


@given(_payloads())
def test_what_is_stored_of_a_sender_with_a_linked_id_is_what_was_sent(
    made: tuple[dict[str, Any], bool],
) -> None:
    payload, _ = made
    stored = row(**payload)
    assert (stored.from_phone, stored.jid) == (payload["from_phone"], payload["jid"])
