"""What an incoming message does to contact and log, in any order (ONB-4 to ONB-10)."""

from __future__ import annotations

import datetime
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables.attribution import CampaignAttribution, Incoming, LogRow, Logs, onboard
from tables.contact_index import ContactIndex, clean_phone, derived_chat_id
from tables.contacts import rename, upsert
from tables.last_writer_wins import EventStamp, Version, parse
from tables.mutations import ContactPatch, ContactRow

COMPANY = "KopiNusa01"
AGENT = "agent-7f3a"
PHONE = "6281234500011"
CHAT = f"{AGENT}_{PHONE}"
COLUMNS = (
    "push_name", "tags", "assigned_to", "origin", "first_message_id", "first_message_timestamp", "chat_id",
)  # fmt: skip
COMPARED = ("push_name", "assigned_to", "origin", "first_message_id", "first_message_timestamp")


def _age(event: Incoming | ContactRow | ContactPatch) -> tuple[int, int]:
    return event.stamp.version.event if event.stamp.version else (0, 0)


def stamp(ns: int | None, *, history: bool = False) -> EventStamp:
    return EventStamp(None if ns is None else Version(ns, ns), json.dumps({"stream_sequence": ns}), history)


def message(ns: int | None = 1, campaign: CampaignAttribution | None = None, **fields: Any) -> Incoming:
    given = {
        "agent_id": AGENT, "phone": PHONE, "message_id": f"m{ns}", "sent_at": 1_795_500_000 + (ns or 0),
        "chat_id": CHAT, "jid": f"{PHONE}@s.whatsapp.net", "campaign": campaign, "stamp": stamp(ns),
    }  # fmt: skip
    return Incoming(**{**given, **fields})


def row(**fields: Any) -> dict[str, Any]:
    """A row of the existing service, unless told otherwise."""
    given = {
        "id": "c-1", "row_version": "7", "agent_id": AGENT, "company_id": COMPANY, "phone_number": PHONE,
        "chat_id": CHAT, "push_name": "", "tags": "", "assigned_to": "", "origin": "", "first_message_id": "",
        "first_message_timestamp": 0, "last_metadata": None,
        "created_at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    }  # fmt: skip
    return {**given, **fields}


class Store:
    """Rows in memory; every event is a batch of its own, as if each came alone."""

    def __init__(self, *rows: dict[str, Any], log: LogRow | None = None) -> None:
        self.rows = list(rows)
        self.logs: Logs = {} if log is None else {(log.agent_id, log.phone): log}
        self.changed = False

    def apply(self, *events: Incoming | ContactRow | ContactPatch) -> list[bool]:
        index = ContactIndex(self.rows)
        made = []
        for event in events:
            if isinstance(event, Incoming):
                made.append(onboard(index, self.logs, COMPANY, event))
            elif isinstance(event, ContactRow):
                upsert(index, event)
            else:
                rename(index, event)
        self._write(index)
        return made

    def _write(self, index: ContactIndex) -> None:
        self.changed = bool(index.changed)
        by_id = {item["id"]: item for item in self.rows}
        for contact in [*index.changed, *index.added]:
            known = row() if contact.stored_id is None else by_id[contact.stored_id]
            fields = {name: getattr(contact, name) for name in known if hasattr(contact, name)}
            new = {**known, **fields, "row_version": "8"}
            if contact.stored_id is None:
                self.rows.append(new)
            else:
                self.rows[self.rows.index(known)] = new

    @property
    def contact(self) -> dict[str, Any]:
        [contact] = self.rows
        return contact

    @property
    def log(self) -> LogRow:
        [log] = self.logs.values()
        return log

    def summary(self) -> tuple[Any, ...]:
        contact = self.contact
        tags = frozenset(tag.strip() for tag in (contact["tags"] or "").split(",") if tag.strip())
        log = [(log.message_id, log.sent_at, log.version) for log in self.logs.values()]
        return (*(contact[name] for name in COMPARED), tags, log)


def known_log(version: int | None = None) -> LogRow:
    return LogRow(AGENT, PHONE, 1, None if version is None else Version(version, version), "m0", 1)


def test_phone_cleaning_removes_plus_space_and_brackets_only() -> None:
    assert clean_phone("+62 812-111 (1)") == "62812-1111"


class TestNewContact:
    def test_a_plain_message_makes_a_direct_chat_contact_and_a_log_row(self) -> None:
        store = Store()
        assert store.apply(message(5)) == [True]
        assert {name: store.contact[name] for name in COLUMNS} == {
            "push_name": "", "tags": "Onboarded", "assigned_to": "", "origin": "DirectChat",
            "first_message_id": "m5", "first_message_timestamp": 1_795_500_005, "chat_id": CHAT,
        }  # fmt: skip
        assert (store.log.message_id, store.log.sent_at) == ("m5", 1_795_500_005)
        assert parse(json.loads(store.log.last_metadata)["version"]) == Version(5, 5)

    def test_a_campaign_message_gives_tags_as_sent_assignee_and_origin(self) -> None:
        store = Store()
        store.apply(message(5, CampaignAttribution("promo, ig,", "user-12", "instagram-ads")))
        contact = store.contact
        assert (contact["tags"], contact["assigned_to"], contact["origin"]) == (
            "promo, ig,", "user-12", "instagram-ads",
        )  # fmt: skip

    def test_a_zero_timestamp_is_stored_on_a_new_contact(self) -> None:
        store = Store()
        store.apply(message(5, sent_at=0))
        assert store.contact["first_message_timestamp"] == 0

    def test_a_group_jid_gives_the_derived_chat_id(self) -> None:
        store = Store()
        phone = "62812-1500"
        store.apply(message(5, phone=phone, jid="120363@g.us", chat_id="group-chat"))
        assert store.contact["chat_id"] == f"{AGENT}_628121500" == derived_chat_id(AGENT, phone)

    def test_a_chat_id_that_is_taken_gives_the_derived_one_then_none(self) -> None:
        store = Store(row(id="other", agent_id="agent-2", chat_id="chat-x"))
        store.apply(message(5, chat_id="chat-x"))
        assert store.rows[1]["chat_id"] == CHAT
        store = Store(
            row(id="o1", agent_id="agent-2", chat_id="chat-x"), row(id="o2", agent_id="agent-2", chat_id=CHAT)
        )
        store.apply(message(5, chat_id="chat-x"))
        assert store.rows[2]["chat_id"] is None

    def test_the_same_phone_at_two_agents_is_onboarded_twice(self) -> None:
        store = Store()
        store.apply(message(5), message(6, agent_id="agent-2", chat_id=f"agent-2_{PHONE}"))
        assert len(store.rows) == len(store.logs) == 2

    def test_a_pair_that_comes_twice_in_a_batch_makes_one_contact(self) -> None:
        store = Store()
        assert store.apply(message(5), message(6)) == [True, False]
        assert len(store.rows) == len(store.logs) == 1


class TestExistingContact:
    @pytest.mark.parametrize("empty", ["", None])
    @pytest.mark.parametrize(
        ("tags", "after"),
        [
            ("", "Onboarded"),
            (None, "Onboarded"),
            ("vip", "vip,Onboarded"),
            ("vip, Onboarded", "vip, Onboarded"),
        ],
    )
    def test_a_plain_message_fills_an_empty_origin_and_appends_the_tag(
        self, empty: str | None, tags: str | None, after: str
    ) -> None:
        store = Store(row(origin=empty, tags=tags))
        assert store.apply(message(5)) == [False]
        assert (store.contact["origin"], store.contact["tags"]) == ("DirectChat", after)

    def test_a_plain_message_changes_nothing_where_the_origin_is_set(self) -> None:
        store = Store(row(origin="Referral", tags="vip", first_message_id="m0"))
        store.apply(message(5))
        assert not store.changed
        assert store.log.message_id == "m5", "the log row is made all the same"

    def test_a_campaign_merges_tags_in_a_stable_order_without_repeats_and_empties(self) -> None:
        store = Store(row(origin="Referral", tags="vip, new,,old"))
        store.apply(message(5, CampaignAttribution(" promo,old, ,vip,ig", "", "ads")))
        assert store.contact["tags"] == "vip,new,old,promo,ig"
        assert store.contact["origin"] == "Referral", "the origin is set only where it is empty"

    def test_a_campaign_replaces_the_assignee_only_if_it_has_one(self) -> None:
        store = Store(row(assigned_to="user-1"))
        store.apply(message(5, CampaignAttribution("a", "", "")))
        assert store.contact["assigned_to"] == "user-1"
        store.apply(message(6, CampaignAttribution("a", "user-2", "")))
        assert store.contact["assigned_to"] == "user-2"

    def test_a_campaign_sets_an_empty_origin(self) -> None:
        store = Store(row())
        store.apply(message(5, CampaignAttribution("a", "", "ads")))
        assert store.contact["origin"] == "ads"

    def test_an_empty_first_message_is_filled(self) -> None:
        store = Store(row(origin="Referral", first_message_id=None, first_message_timestamp=77))
        store.apply(message(5))
        assert (store.contact["first_message_id"], store.contact["first_message_timestamp"]) == (
            "m5", 1_795_500_005,
        )  # fmt: skip

    def test_a_zero_timestamp_leaves_the_column_as_it_is(self) -> None:
        store = Store(row(first_message_timestamp=77))
        store.apply(message(5, sent_at=0))
        assert store.contact["first_message_timestamp"] == 77

    def test_a_first_message_of_the_existing_service_is_left_as_it_is(self) -> None:
        store = Store(row(origin="Referral", first_message_id="m0", last_metadata='{"version":"9-9"}'))
        store.apply(message(5))
        assert store.contact["first_message_id"] == "m0"
        assert store.contact["origin"] == "Referral"

    def test_the_holder_of_the_chat_id_counts_only_with_the_same_agent_and_no_phone(self) -> None:
        store = Store(row(phone_number=""))
        assert store.apply(message(5)) == [False]
        assert store.contact["phone_number"] == PHONE
        store = Store(row(phone_number="999", chat_id="chat-x"))
        assert store.apply(message(5, chat_id="chat-x")) == [True]

    def test_stored_phones_compare_cleaned(self) -> None:
        store = Store(row(phone_number="+62 8123 (4500011)"))
        assert store.apply(message(5)) == [False]
        assert store.contact["phone_number"] == "+62 8123 (4500011)"

    def test_a_row_without_id_gets_one_and_a_chat_id(self) -> None:

        store = Store(row(id="", chat_id="", origin="Referral", first_message_id="m0"))
        store.apply(message(5))
        assert len(store.contact["id"]) == 36
        assert store.contact["chat_id"] == CHAT


class TestAlreadyOnboarded:
    @pytest.mark.parametrize("version", [None, 3])
    def test_a_plain_message_changes_nothing(self, version: int | None) -> None:
        store = Store(row(origin="ads", tags="vip"), log=known_log(version))
        assert store.apply(message(5)) == [False]
        assert not store.changed
        assert not store.log.changed

    def test_a_plain_message_does_not_fill_the_origin_of_what_the_existing_service_onboarded(self) -> None:
        store = Store(row(), log=known_log())
        store.apply(message(5))
        assert not store.changed

    def test_a_campaign_updates_tags_assignee_and_origin_but_not_the_first_message(self) -> None:
        store = Store(row(tags="vip"), log=known_log())
        store.apply(message(5, CampaignAttribution("promo", "user-1", "ads")))
        contact = store.contact
        assert (contact["tags"], contact["assigned_to"], contact["origin"]) == ("vip,promo", "user-1", "ads")
        assert contact["first_message_id"] == ""
        assert not store.log.changed, "no second log row, and the first as it was"

    def test_a_contact_that_was_deleted_is_not_made_again(self) -> None:
        store = Store(log=known_log())
        assert store.apply(message(5)) == [False]
        assert store.rows == []


class TestAnyOrder:
    def test_an_earlier_message_corrects_first_message_and_log(self) -> None:
        store = Store()
        for ns in (7, 3, 5):
            store.apply(message(ns))
        assert store.contact["first_message_id"] == store.log.message_id == "m3"
        assert store.contact["first_message_timestamp"] == store.log.sent_at == 1_795_500_003

    def test_the_origin_is_that_of_the_lowest_version_and_the_assignee_that_of_the_highest(self) -> None:
        events = [
            message(2, CampaignAttribution("a", "user-2", "ads-2")),
            message(4, CampaignAttribution("b", "user-4", "ads-4")),
            message(6),
        ]
        for order in itertools.permutations(events):
            store = Store()
            for event in order:
                store.apply(event)
            assert (store.contact["origin"], store.contact["assigned_to"]) == ("ads-2", "user-4")
            assert set(store.contact["tags"].split(",")) == {"a", "b"}

    def test_a_message_without_version_never_corrects_anything(self) -> None:
        store = Store()
        store.apply(message(7))
        before = store.summary()
        store.apply(message(None))
        assert store.summary() == before

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_contacts_and_onboarding_end_the_same_in_any_order_and_grouping(
        self, data: st.DataObject
    ) -> None:
        campaigns = st.builds(
            CampaignAttribution,
            st.sampled_from(["", "a", "b, c", "Onboarded,a"]),
            st.sampled_from(["", "user-1", "user-2"]),
            st.sampled_from(["", "ads", "shop"]),
        )
        numbers = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5, unique=True))
        events: list[Incoming | ContactRow | ContactPatch] = []
        for ns in numbers:
            kind = data.draw(st.sampled_from(["plain", "campaign", "contact", "history"]))
            if kind in ("plain", "campaign"):
                events.append(message(ns, data.draw(campaigns) if kind == "campaign" else None))
            else:
                said = stamp(ns, history=kind == "history")
                events.append(ContactRow(ns, said, CHAT, PHONE, COMPANY, AGENT, f"name {ns}"))
        reference, other, together = Store(), Store(), Store()
        for event in sorted(events, key=_age):
            reference.apply(event)
        order = data.draw(st.permutations([*events, *events]))
        for event in order:
            other.apply(event)
        together.apply(*order)
        assert other.summary() == reference.summary()
        assert together.summary() == reference.summary()
