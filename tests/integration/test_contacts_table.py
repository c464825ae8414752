"""The contacts table on a real PostgreSQL (CTC-1 to CTC-7)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tables.connection.pool import Database
from tables.contact_index import derived_chat_id
from tables.contacts import ContactLookup, Contacts
from tables.errors import SerializationFailure
from tables.last_writer_wins import EventStamp, Version
from tables.mutations import ContactPatch, ContactRow, WriteRejection
from tables.queries import load, quoted

AGENT = "agent-7f3a"
PHONE = "6281234500011"
CHAT = "chat-of-sari"


class Stage:
    """The contacts of one tenant, and what was observed of their operations."""

    def __init__(self, database: Database, schema: str, company: str) -> None:
        self.database = database
        self.company = company
        self.table = f"{quoted(schema)}.contacts"
        self.observed: list[tuple[str, str, bool]] = []
        self.contacts = Contacts(schema, self._observe)

    def _observe(self, operation: str, entity: str, seconds: float, succeeded: bool) -> None:
        assert seconds >= 0
        self.observed.append((operation, entity, succeeded))

    def row(self, ns: int = 1, *, history: bool = False, **fields: Any) -> ContactRow:
        given = {
            "ref": ns, "stamp": stamp(ns, history=history), "chat_id": CHAT, "phone_number": PHONE,
            "company_id": self.company, "agent_id": AGENT, "push_name": "Sari W",
        }  # fmt: skip
        return ContactRow(**{**given, **fields})

    def patch(self, ns: int = 1, **fields: Any) -> ContactPatch:
        given = {
            "ref": ns, "stamp": stamp(ns), "phone_number": PHONE, "company_id": self.company,
            "agent_id": AGENT, "push_name": "Sari Wulandari",
        }  # fmt: skip
        return ContactPatch(**{**given, **fields})

    async def write(self, *changes: ContactRow | ContactPatch, bulk: bool = False) -> list[WriteRejection]:
        async with self.database.transaction() as connection:
            return await self.contacts.write(connection, changes, bulk=bulk)

    async def seed(self, **fields: Any) -> None:
        """A row as the existing service, or another program, left it."""
        given = {
            "id": "c-1", "phone_number": PHONE, "agent_id": AGENT, "company_id": self.company, "chat_id": CHAT,
            "push_name": "", "tags": "", "origin": "", "created_at": None,
        }  # fmt: skip
        fields = {**given, **fields}
        places = ", ".join(f"${number + 1}" for number in range(len(fields)))
        await self.execute(f"INSERT INTO {{table}} ({', '.join(fields)}) VALUES ({places})", *fields.values())

    async def execute(self, statement: str, *values: Any) -> None:
        async with self.database.connection() as connection:
            await connection.execute(statement.replace("{table}", self.table), *values)

    async def rows(self) -> Sequence[asyncpg.Record]:
        async with self.database.connection() as connection:
            return await connection.fetch(f"SELECT * FROM {self.table} ORDER BY phone_number, chat_id")

    async def only(self) -> asyncpg.Record:
        [row] = await self.rows()
        return row


def stamp(ns: int, *, history: bool = False) -> EventStamp:
    return EventStamp(Version(ns, ns), json.dumps({"stream": "s", "stream_sequence": ns}), history)


@pytest.fixture
def stage(database: Database, schema: str, company: str) -> Stage:
    return Stage(database, schema, company)


@pytest.mark.rule("CTC-2")
async def test_a_thousand_contacts_make_a_thousand_rows(stage: Stage) -> None:
    changes = [stage.row(n + 1, chat_id=f"chat-{n}", phone_number=f"62812{n:07d}") for n in range(1000)]
    assert await stage.write(*changes) == []
    rows = await stage.rows()
    assert len(rows) == len({row["id"] for row in rows}) == len({row["chat_id"] for row in rows}) == 1000
    assert all(UUID(row["id"]).version == 4 for row in rows)


@pytest.mark.rule("CTC-2")
async def test_a_new_contact_has_the_documented_values(stage: Stage) -> None:
    await stage.write(stage.row(3, phone_number="+62 812"))
    row = dict(await stage.only())
    assert row.pop("created_at") == row.pop("updated_at") is not None
    assert str(UUID(row.pop("id"))).islower()
    assert json.loads(row.pop("last_metadata")) == {"stream": "s", "stream_sequence": 3, "version": "3-3"}
    assert row == {
        "phone_number": "+62 812", "agent_id": AGENT, "chat_id": CHAT, "type": "", "custom_name": "",
        "notes": "", "tags": "", "company_id": stage.company, "avatar": "", "assigned_to": "", "pob": "",
        "dob": None, "gender": "MALE", "origin": "", "push_name": "Sari W", "status": "ACTIVE",
        "first_message_id": "", "first_message_timestamp": 0,
    }  # fmt: skip


@pytest.mark.rule("HIS-2")
async def test_a_repeated_pair_in_a_batch_makes_one_contact_with_the_newest_name(stage: Stage) -> None:
    await stage.write(stage.row(9, push_name="new"), stage.row(3, push_name="old", phone_number=f"+{PHONE}"))
    assert (await stage.only())["push_name"] == "new"


@pytest.mark.rule("ROW-2")
async def test_created_at_never_changes(stage: Stage) -> None:
    await stage.write(stage.row(1))
    before = await stage.only()
    await stage.write(stage.row(2), stage.patch(3), stage.row(4, history=True))
    after = await stage.only()
    assert after["created_at"] == before["created_at"]
    assert after["updated_at"] > before["updated_at"]


@pytest.mark.rule("CTC-3")
async def test_an_update_applies_the_name(stage: Stage) -> None:
    await stage.write(stage.row(1))
    assert await stage.write(stage.patch(2)) == []
    row = await stage.only()
    assert row["push_name"] == "Sari Wulandari"
    assert json.loads(row["last_metadata"])["stream_sequence"] == 2


@pytest.mark.rule("CTC-3")
async def test_an_update_with_an_empty_name_leaves_the_name(stage: Stage) -> None:
    await stage.write(stage.row(1))
    await stage.write(stage.patch(2, push_name=""))
    assert (await stage.only())["push_name"] == "Sari W"


async def test_an_older_name_never_overwrites_a_newer_one(stage: Stage) -> None:
    await stage.write(stage.row(5))
    await stage.write(stage.patch(4), stage.row(3, push_name="older"))
    await stage.write(stage.row(2, push_name="from the history", history=True), bulk=True)
    assert (await stage.only())["push_name"] == "Sari W"


async def test_an_update_finds_the_upsert_of_its_own_batch(stage: Stage) -> None:
    assert await stage.write(stage.row(1), stage.patch(2)) == []
    assert (await stage.only())["push_name"] == "Sari Wulandari"


async def test_an_update_without_row_is_refused_and_the_others_are_written(stage: Stage) -> None:
    rejections = await stage.write(stage.patch(7, phone_number="999"), stage.row(8))
    assert rejections == [WriteRejection(7, "not_found")]
    assert len(await stage.rows()) == 1


async def test_an_update_of_another_companys_row_is_refused(stage: Stage) -> None:
    await stage.seed(company_id="other")
    assert await stage.write(stage.patch(7)) == [WriteRejection(7, "company")]


async def test_an_upsert_beside_another_companys_row_makes_its_own(stage: Stage) -> None:
    await stage.seed(company_id="other")
    await stage.write(stage.row(7))
    assert {row["company_id"]: row["chat_id"] for row in await stage.rows()} == {
        "other": CHAT, stage.company: derived_chat_id(AGENT, PHONE),
    }  # fmt: skip


@pytest.mark.rule("CTC-1")
@pytest.mark.parametrize(
    ("stored", "sent"), [("+62 8123 (4500011)", PHONE), (PHONE, "+62 8123 (4500011)"), ("+62812", "62 812")]
)
async def test_phones_compare_cleaned_and_stay_as_first_stored(stage: Stage, stored: str, sent: str) -> None:

    await stage.seed(phone_number=stored)
    await stage.write(stage.row(1, phone_number=sent, chat_id="another"))
    assert await stage.write(stage.patch(2, phone_number=sent)) == []
    row = await stage.only()
    assert (row["phone_number"], row["push_name"]) == (stored, "Sari Wulandari")


async def test_a_phone_of_which_cleaning_leaves_nothing_stays_one_contact(stage: Stage) -> None:
    await stage.seed(phone_number="", chat_id="no phone")
    for ns in (1, 2, 3):
        await stage.write(stage.row(ns, phone_number="+"))
    assert [row["phone_number"] for row in await stage.rows()] == ["", "+"]


@pytest.mark.rule("CTC-4")
@pytest.mark.parametrize(
    ("stored", "after"),
    [("", CHAT), (None, CHAT), (derived_chat_id(AGENT, PHONE), CHAT), ("of its own", "of its own")],
)
async def test_an_empty_or_derived_chat_id_is_replaced(stage: Stage, stored: str | None, after: str) -> None:
    await stage.seed(chat_id=stored)
    await stage.write(stage.row(1))
    assert (await stage.only())["chat_id"] == after


@pytest.mark.rule("CTC-4")
async def test_a_chat_id_that_another_contact_holds_is_not_taken(stage: Stage) -> None:
    await stage.seed(id="holder", phone_number="999")
    await stage.seed(id="c-1", chat_id=None)
    await stage.write(stage.row(1))
    await stage.write(stage.row(2, phone_number="777"))
    assert {row["phone_number"]: row["chat_id"] for row in await stage.rows()} == {
        "999": CHAT, PHONE: None, "777": derived_chat_id(AGENT, "777"),
    }  # fmt: skip


async def test_two_pairs_of_a_batch_that_claim_one_chat_id_are_both_stored(stage: Stage) -> None:
    await stage.write(stage.row(1), stage.row(2, phone_number="777"))
    assert {row["phone_number"]: row["chat_id"] for row in await stage.rows()} == {
        PHONE: CHAT, "777": derived_chat_id(AGENT, "777"),
    }  # fmt: skip


@pytest.mark.rule("CTC-1")
@pytest.mark.parametrize(("agent", "rows"), [(AGENT, 1), ("agent-2", 2)])
async def test_the_holder_of_the_chat_id_counts_only_with_the_same_agent_and_no_phone(
    stage: Stage, agent: str, rows: int
) -> None:
    await stage.seed(phone_number="", agent_id=agent)
    await stage.write(stage.row(1))
    await stage.write(stage.row(2))
    assert len(await stage.rows()) == rows
    assert PHONE in [row["phone_number"] for row in await stage.rows()]


@pytest.mark.rule("CTC-6")
async def test_a_row_without_id_gets_an_id_and_a_chat_id(stage: Stage) -> None:
    await stage.seed(id="", chat_id="")
    await stage.write(stage.patch(1))
    row = await stage.only()
    assert UUID(row["id"]).version == 4
    assert (row["chat_id"], row["push_name"]) == (derived_chat_id(AGENT, PHONE), "Sari Wulandari")


async def test_a_repeated_pair_of_old_data_keeps_one_contact_up_to_date(stage: Stage) -> None:
    for contact_id in ("b", "a"):
        await stage.seed(id=contact_id, chat_id=None)
    await stage.write(stage.row(1, chat_id="chat"), stage.patch(2))
    assert {row["id"]: row["push_name"] for row in await stage.rows()} == {"a": "Sari Wulandari", "b": ""}


async def test_history_fills_only_what_is_empty_on_a_row_of_the_existing_service(stage: Stage) -> None:
    await stage.seed(push_name="kept")
    await stage.seed(id="c-2", phone_number="777", chat_id="chat-2")
    item = stage.row(0, history=True, push_name="history")
    await stage.write(item, item._replace(phone_number="777", chat_id="chat-2"), bulk=True)
    rows = await stage.rows()
    assert {row["phone_number"]: row["push_name"] for row in rows} == {PHONE: "kept", "777": "history"}
    assert all(row["updated_at"] for row in rows)


@pytest.mark.rule("CTC-5")
async def test_columns_of_other_programs_are_left_alone(stage: Stage) -> None:
    await stage.seed(notes="call back", tags="vip", gender="FEMALE", origin="Referral", assigned_to="user-1")
    await stage.write(stage.row(1), stage.patch(2))
    row = await stage.only()
    assert [row[name] for name in ("notes", "tags", "gender", "origin", "assigned_to")] == [
        "call back", "vip", "FEMALE", "Referral", "user-1",
    ]  # fmt: skip


@pytest.mark.rule("ROW-4")
async def test_a_change_by_another_program_in_between_is_never_undone(stage: Stage) -> None:
    """It is seen, and the batch is done again (ROW-4)."""
    await stage.seed(tags="vip")
    async with stage.database.transaction() as connection:
        index = await stage.contacts.look_up(connection, [ContactLookup(AGENT, PHONE, CHAT)])
        await stage.execute("UPDATE {table} SET tags = 'changed'")
        contact = index.stored("c-1")
        assert contact is not None
        contact.apply(stamp(1), {"push_name": "Sari"})
        with pytest.raises(SerializationFailure):
            await stage.contacts.save(connection, index)
    await stage.write(stage.row(1))
    assert (await stage.only())["tags"] == "changed"


@pytest.mark.rule("CTC-7")
async def test_two_writers_of_one_new_phone_make_one_contact(stage: Stage) -> None:
    await asyncio.gather(*(stage.write(stage.row(ns, push_name=f"name {ns}")) for ns in range(1, 9)))
    assert (await stage.only())["push_name"] == "name 8"


@pytest.mark.rule("ROW-5")
async def test_writers_of_overlapping_batches_never_deadlock(stage: Stage) -> None:
    phones = [f"62812{n:07d}" for n in range(60)]
    batches = [phones, phones[::-1], phones[30:] + phones[:30], phones[::2]] * 2

    async def write(number: int, batch: list[str]) -> None:
        rows = [stage.row(number * 1000 + n, phone_number=it, chat_id=it) for n, it in enumerate(batch)]
        await stage.write(*rows)

    await asyncio.gather(*(write(number, batch) for number, batch in enumerate(batches)))
    assert len(await stage.rows()) == 60


async def test_operations_are_observed_by_their_names(stage: Stage) -> None:
    """A look-up that finds nothing is a success."""
    await stage.write(stage.row(1))
    await stage.write(stage.patch(2))
    await stage.write(stage.row(3, history=True, phone_number="777", chat_id="x"), bulk=True)
    assert stage.observed == [
        ("FindContact", "Contact", True), ("UpsertContact", "Contact", True),
        ("FindContact", "Contact", True), ("UpdateContact", "Contact", True),
        ("FindContact", "Contact", True), ("BulkUpsertContacts", "Contact", True),
    ]  # fmt: skip


@pytest.mark.rule("CTC-1")
async def test_the_look_up_by_pair_uses_the_index_on_cleaned_phones(stage: Stage, schema: str) -> None:
    rows = [stage.row(n + 1, phone_number=f"62812{n:07d}", chat_id=f"c{n}") for n in range(3000)]
    await stage.write(*rows)
    await stage.execute("ANALYZE {table}")
    async with stage.database.connection() as connection:
        find = load("contacts", schema)["find"]
        plan = await connection.fetch(f"EXPLAIN {find}", [AGENT], ["628120000001"], ["c1"])
    assert "contacts_cleaned_phone" in "\n".join(row[0] for row in plan)
