"""Onboarding on a real PostgreSQL: repeats, replicas and any order end in the same rows (ONB-4 to ONB-11)."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tables.attribution import CampaignAttribution, Incoming
from tables.connection.pool import Database
from tables.contacts import Contacts
from tables.last_writer_wins import EventStamp, Version
from tables.mutations import ContactPatch, ContactRow
from tables.onboarding import OnboardingTables, Outcome
from tables.queries import quoted

AGENT = "agent-7f3a"
PHONE = "6281234500011"
CHAT = f"{AGENT}_{PHONE}"


def stamp(ns: int) -> EventStamp:
    return EventStamp(Version(ns, ns), json.dumps({"stream": "s", "stream_sequence": ns}))


def message(ns: int = 1, campaign: CampaignAttribution | None = None, **fields: Any) -> Incoming:
    given = {
        "agent_id": AGENT, "phone": PHONE, "message_id": f"m{ns}", "sent_at": 1_795_500_000 + ns, "chat_id": CHAT,
        "jid": f"{PHONE}@s.whatsapp.net", "campaign": campaign, "stamp": stamp(ns),
    }  # fmt: skip
    return Incoming(**{**given, **fields})


class Stage:
    """Onboarding and contact events of one tenant."""

    def __init__(self, database: Database, schema: str, company: str) -> None:
        self.database = database
        self.schema = quoted(schema)
        self.company = company
        self.observed: list[tuple[str, str, bool]] = []
        self.onboarding = OnboardingTables(database, schema, self._observe)
        self.contacts = Contacts(schema, self._observe)

    def _observe(self, operation: str, entity: str, seconds: float, succeeded: bool) -> None:
        self.observed.append((operation, entity, succeeded))

    async def onboard(self, *messages: Incoming) -> list[Outcome]:
        return await self.onboarding.onboard(self.company, messages)

    async def contact(self, ns: int, name: str, phone: str = PHONE, chat_id: str = CHAT) -> None:
        row = ContactRow(ns, stamp(ns), chat_id, phone, self.company, AGENT, name)
        await self._write(row)

    async def rename(self, ns: int, name: str) -> None:
        await self._write(ContactPatch(ns, stamp(ns), PHONE, self.company, AGENT, name))

    async def _write(self, change: ContactRow | ContactPatch) -> None:
        async with self.database.transaction() as connection:
            await self.contacts.write(connection, [change])

    async def rows(self, table: str) -> Sequence[asyncpg.Record]:
        async with self.database.connection() as connection:
            return await connection.fetch(f"SELECT * FROM {self.schema}.{table} ORDER BY phone_number")

    async def only(self, table: str) -> asyncpg.Record:
        [row] = await self.rows(table)
        return row

    async def execute(self, statement: str) -> None:
        async with self.database.connection() as connection:
            await connection.execute(statement.replace("{schema}", self.schema))


@pytest.fixture
def stage(database: Database, schema: str, company: str) -> Stage:
    return Stage(database, schema, company)


async def test_every_new_phone_gets_a_contact_and_a_log_row(stage: Stage) -> None:
    """5,000 new phones, 5,000 of each."""
    messages = [
        message(n + 1, phone=f"62812{n:07d}", chat_id=f"{AGENT}_62812{n:07d}", message_id=f"m{n}")
        for n in range(5000)
    ]
    outcomes = [
        outcome
        for start in range(0, 5000, 500)
        for outcome in await stage.onboard(*messages[start : start + 500])
    ]
    assert all(outcome.created for outcome in outcomes)
    contacts, logs = await stage.rows("contacts"), await stage.rows("onboarding_log")
    assert len(contacts) == len(logs) == 5000
    assert len({row["chat_id"] for row in contacts}) == 5000
    assert "" not in {row["chat_id"] for row in contacts}


async def test_contact_and_log_row_have_the_values_of_the_contract(stage: Stage) -> None:
    await stage.onboard(message(5))
    contact = dict(await stage.only("contacts"))
    assert UUID(contact.pop("id")).version == 4
    assert contact.pop("created_at") == contact.pop("updated_at") is not None
    assert json.loads(contact.pop("last_metadata"))["stream_sequence"] == 5
    assert contact == {
        "phone_number": PHONE, "agent_id": AGENT, "company_id": stage.company, "chat_id": CHAT, "type": "",
        "custom_name": "", "notes": "", "tags": "Onboarded", "avatar": "", "assigned_to": "", "pob": "",
        "dob": None, "gender": "MALE", "origin": "DirectChat", "push_name": "", "status": "ACTIVE",
        "first_message_id": "m5", "first_message_timestamp": 1_795_500_005,
    }  # fmt: skip
    log = dict(await stage.only("onboarding_log"))
    assert log.pop("created_at") is not None
    assert json.loads(log.pop("last_metadata")) == {"stream": "s", "stream_sequence": 5, "version": "5-5"}
    log.pop("id")
    assert log == {
        "message_id": "m5", "agent_id": AGENT, "company_id": stage.company, "phone_number": PHONE,
        "timestamp": 1_795_500_005,
    }  # fmt: skip


async def test_a_repeated_message_changes_nothing(stage: Stage) -> None:
    await stage.onboard(message(5))
    before = await stage.rows("contacts"), await stage.rows("onboarding_log")
    outcomes = await stage.onboard(message(5), message(6))
    assert [(outcome.created, outcome.complete) for outcome in outcomes] == [(False, True)] * 2
    assert (await stage.rows("contacts"), await stage.rows("onboarding_log")) == before


async def test_many_writers_of_one_new_phone_make_one_contact_and_one_log_row(stage: Stage) -> None:
    """Two instances stand for two replicas."""
    other = OnboardingTables(stage.database, stage.schema.strip('"'), lambda *_: None)
    outcomes = await asyncio.gather(
        *(
            tables.onboard(stage.company, [message(ns)])
            for ns in range(1, 9)
            for tables in (stage.onboarding, other)
        ),
        stage.contact(20, "Sari W"),
    )
    assert sum(outcome[0].created for outcome in outcomes if outcome) <= 1
    contact, log = await stage.only("contacts"), await stage.only("onboarding_log")
    assert contact["first_message_id"] == log["message_id"] == "m1"
    assert contact["push_name"] == "Sari W"


async def test_overlapping_batches_never_deadlock(stage: Stage) -> None:
    phones = [f"62812{n:07d}" for n in range(60)]
    batches = [phones, phones[::-1], phones[30:] + phones[:30], phones[::2]] * 2

    async def onboard(number: int, batch: list[str]) -> None:
        await stage.onboard(
            *(message(number * 1000 + n, phone=phone, chat_id=phone) for n, phone in enumerate(batch, 1))
        )

    await asyncio.gather(*(onboard(number, batch) for number, batch in enumerate(batches)))
    assert len(await stage.rows("contacts")) == len(await stage.rows("onboarding_log")) == 60


async def test_contact_events_and_onboarding_end_as_one_row_in_any_order(stage: Stage) -> None:
    """Only `id` and the times of writing may differ."""
    steps: dict[str, Callable[[], Awaitable[object]]] = {
        "contact": lambda: stage.contact(2, "Sari W"),
        "plain": lambda: stage.onboard(message(3)),
        "late": lambda: stage.onboard(message(1)),
        "campaign": lambda: stage.onboard(message(4, CampaignAttribution("promo", "user-12", "ads"))),
    }
    ends = set()
    for order in itertools.permutations(steps):
        await stage.execute("TRUNCATE {schema}.contacts, {schema}.onboarding_log")
        for name in order:
            await steps[name]()
        contact, log = dict(await stage.only("contacts")), dict(await stage.only("onboarding_log"))
        contact["tags"] = sorted(contact["tags"].split(","))
        for row, ours in ((contact, ("id", "created_at", "updated_at")), (log, ("id", "created_at"))):
            for column in ours:
                row.pop(column)
        ends.add((str(contact), str(log)))
    [(contact_text, log_text)] = ends
    assert "'first_message_id': 'm1'" in contact_text
    assert "'message_id': 'm1'" in log_text


async def test_a_name_can_be_changed_after_onboarding(stage: Stage) -> None:
    await stage.onboard(message(5))
    await stage.rename(6, "Sari Wulandari")
    assert (await stage.only("contacts"))["push_name"] == "Sari Wulandari"


async def test_merged_tags_keep_their_order(stage: Stage) -> None:
    await stage.onboard(message(1))
    await stage.onboard(
        message(2, CampaignAttribution("b, a", "", "")), message(3, CampaignAttribution("a,c,b", "", ""))
    )
    assert (await stage.only("contacts"))["tags"] == "Onboarded,b,a,c"


async def test_a_log_row_of_the_existing_service_is_left_as_it_is(stage: Stage) -> None:
    await stage.execute(
        "INSERT INTO {schema}.onboarding_log (message_id, agent_id, company_id, phone_number, timestamp)"
        f" VALUES ('m0', '{AGENT}', '{stage.company}', '{PHONE}', 7)"
    )
    before = await stage.only("onboarding_log")
    assert await stage.onboard(message(1)) == [Outcome(False, True, since=None)]
    assert await stage.only("onboarding_log") == before
    assert await stage.rows("contacts") == []


async def test_known_pairs_name_the_version_of_their_first_message(stage: Stage) -> None:
    await stage.onboard(message(7))
    await stage.onboard(message(5))
    pairs = [(AGENT, PHONE), (AGENT, "999")]
    assert await stage.onboarding.known(stage.company, pairs) == {(AGENT, PHONE): Version(5, 5)}


async def test_operations_are_observed_and_finding_nothing_is_a_success(stage: Stage) -> None:
    await stage.onboard(message(1))
    await stage.onboard(message(2, CampaignAttribution("a", "", "")))
    assert stage.observed == [
        ("FindContact", "Contact", True), ("FindOnboardingLog", "OnboardingLog", True),
        ("UpsertContact", "Contact", True), ("SaveOnboardingLog", "OnboardingLog", True),
        ("FindContact", "Contact", True), ("FindOnboardingLog", "OnboardingLog", True),
        ("UpdateContact", "Contact", True),
    ]  # fmt: skip


async def test_a_failure_leaves_neither_contact_nor_log_row(stage: Stage) -> None:
    await stage.execute("ALTER TABLE {schema}.onboarding_log ADD CHECK (message_id <> 'm2')")
    with pytest.raises(Exception, match="23514"):
        await stage.onboard(message(1, phone="1", chat_id="1"), message(2))
    assert await stage.rows("contacts") == []


async def test_a_plain_message_older_than_the_campaign_that_gave_the_origin_is_not_done_with(
    stage: Stage,
) -> None:
    """The log names an older campaign, which had no origin to give: what is between the two still has."""
    await stage.onboard(message(10, CampaignAttribution("a", "", "")))
    [outcome] = await stage.onboard(message(30, CampaignAttribution("b", "", "ads")))
    assert outcome == Outcome(False, True, since=Version(30, 30))
    [outcome] = await stage.onboard(message(20))
    assert outcome == Outcome(False, True, since=Version(20, 20))
    assert (await stage.only("contacts"))["origin"] == "DirectChat"
