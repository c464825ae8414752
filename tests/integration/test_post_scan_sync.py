"""The post-scan sync on a real PostgreSQL (PSS-1 to PSS-4)."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from agents.post_scan import run_due
from events.subjects import Tenant
from tables import post_scan
from tables.connection.pool import Database
from tables.mutations import PostScanRequest
from tables.post_scan import LEASE, PostScanJobs
from tables.queries import quoted

AGENT = "agent-7f3a"
STORED = datetime.datetime(2026, 11, 24, 7, 0, tzinfo=datetime.UTC)
DUE = STORED + datetime.timedelta(minutes=15)


class Stage:
    """One tenant, its jobs, and a clock that only we move."""

    def __init__(self, database: Database, tenant: Tenant) -> None:
        self.database = database
        self.tenant = tenant
        self.schema = quoted(tenant.schema)
        self.now = DUE
        self.observed: list[tuple[str, str]] = []
        self.jobs = PostScanJobs(database, tenant.schema, self._observe)

    def _observe(self, operation: str, entity: str, seconds: float, succeeded: bool) -> None:
        assert succeeded
        self.observed.append((operation, entity))

    async def schedule(
        self, agent_id: str = AGENT, stored_at: datetime.datetime = STORED, seq: int = 1
    ) -> None:
        async with self.database.transaction() as connection:
            metadata = f'{{"stream_sequence":{seq}}}'
            await self.jobs.schedule(connection, PostScanRequest(0, agent_id, stored_at, metadata))

    async def run(self) -> int:
        return await run_due(self.jobs, self.tenant.company, lambda: self.now)

    async def contacts(self, *phones: str | None, **fields: Any) -> None:
        given = {
            "agent_id": AGENT, "company_id": self.tenant.company, "origin": "", "tags": "", "chat_id": None,
            "created_at": STORED, **fields,
        }  # fmt: skip
        for number, phone in enumerate(phones):
            values = {**given, "phone_number": phone, "id": fields.get("id", f"c-{phone}-{number}")}
            await self._insert("contacts", values)

    async def message(self, message_id: str, phone: str, sent_at: int, **fields: Any) -> None:
        given = {
            "message_id": message_id, "from_phone": phone, "agent_id": AGENT, "flow": "IN",
            "company_id": self.tenant.company, "message_timestamp": sent_at,
            "message_date": datetime.date(2026, 11, 24),
        }  # fmt: skip
        await self._insert("messages", {**given, **fields})

    async def _insert(self, table: str, values: dict[str, Any]) -> None:
        places = ", ".join(f"${number + 1}" for number in range(len(values)))
        async with self.database.connection() as connection:
            await connection.execute(
                f"INSERT INTO {self.schema}.{table} ({', '.join(values)}) VALUES ({places})", *values.values()
            )

    async def rows(self, table: str) -> Sequence[asyncpg.Record]:
        async with self.database.connection() as connection:
            return await connection.fetch(f"SELECT * FROM {self.schema}.{table} ORDER BY 1")

    async def only(self, table: str) -> asyncpg.Record:
        [row] = await self.rows(table)
        return row


@pytest.fixture
def stage(database: Database, schema: str, tenant: Tenant) -> Stage:
    assert schema == tenant.schema
    return Stage(database, tenant)


@pytest.mark.rule("PSS-3")
async def test_a_contact_gets_its_first_incoming_message_origin_tag_and_log_row(stage: Stage) -> None:
    await stage.contacts("62811", tags="vip")
    await stage.message("later", "62811", 200)
    await stage.message("first", "62811", 100)
    await stage.message("out", "62811", 50, flow="OUT")
    await stage.message("elsewhere", "62811", 40, agent_id="agent-2")
    await stage.schedule()
    assert await stage.run() == 1
    contact, log = await stage.only("contacts"), await stage.only("onboarding_log")
    assert contact["origin"] == "DirectChat"
    assert contact["tags"] == "vip,Onboarded", "appended, not overwritten"
    assert (contact["first_message_id"], contact["first_message_timestamp"]) == ("first", 100)
    assert contact["updated_at"] > contact["created_at"]
    assert (log["message_id"], log["timestamp"], log["phone_number"]) == ("first", 100, "62811")
    assert (log["agent_id"], log["company_id"]) == (AGENT, stage.tenant.company)
    assert json.loads(log["last_metadata"]) == {
        "source": "post_scan_sync", "synced_at": "2026-11-24T07:15:00Z",
    }  # fmt: skip
    assert await stage.rows("post_scan_jobs") == []


async def test_a_phone_that_is_stored_as_sent_is_found_and_logged_cleaned(stage: Stage) -> None:
    await stage.contacts("+62 (811)")
    await stage.message("m", "62811", 100)
    await stage.schedule()
    await stage.run()
    assert (await stage.only("onboarding_log"))["phone_number"] == "62811"


@pytest.mark.rule("PSS-4")
async def test_groups_the_logged_the_silent_and_those_with_origin_are_skipped(stage: Stage) -> None:
    group, logged, silent, known = "120363040101010101", "62812", "62813", "62814"
    await stage.contacts(group, logged, silent)
    await stage.contacts(known, origin="Referral", id="known")
    await stage.contacts(None, id="no phone")
    for phone in (group, logged, known):
        await stage.message(f"m{phone}", phone, 100)
    await stage._insert(
        "onboarding_log", {"phone_number": logged, "agent_id": AGENT, "company_id": stage.tenant.company}
    )
    before = await stage.rows("contacts")
    await stage.schedule()
    assert await stage.run() == 1
    assert await stage.rows("contacts") == before
    assert len(await stage.rows("onboarding_log")) == 1


@pytest.mark.rule("PSS-4")
async def test_linked_id_that_a_gateway_gives_as_a_phone_is_never_onboarded(stage: Stage) -> None:
    """One of its messages tells; in others, in a group say, it looks like a number."""
    told: list[dict[str, str]] = [
        {"jid": "{0}@lid"},
        {"jid": "{0}:12@lid"},
        {"key": '{{"remoteJid":"{0}@hosted.lid"}}'},
    ]
    phones = [f"{sign}14590000000001{number}" for number in range(len(told)) for sign in ("", "+")]
    await stage.contacts(*phones)
    for phone, fields in zip(phones, [field for field in told for _ in range(2)], strict=True):
        named = {name: text.format(phone.removeprefix("+")) for name, text in fields.items()}
        await stage.message(f"first {phone}", phone, 100, jid="120363040101010101@g.us")
        await stage.message(f"second {phone}", phone, 200, **named)
    before = await stage.rows("contacts")
    await stage.schedule()
    await stage.run()
    assert await stage.rows("contacts") == before
    assert await stage.rows("onboarding_log") == []


async def test_contact_whose_phone_is_written_as_a_linked_id_is_never_onboarded(stage: Stage) -> None:
    await stage.contacts("98765@lid")
    await stage.message("m", "98765@lid", 100)
    await stage.schedule()
    await stage.run()
    assert await stage.rows("onboarding_log") == []


async def test_number_beside_a_linked_id_is_onboarded(stage: Stage) -> None:
    await stage.contacts("62811")
    await stage.message(
        "m", "62811", 100, jid="145900000000010@lid", key='{"remoteJid":"145900000000010@lid"}'
    )
    await stage.schedule()
    assert await stage.run() == 1
    assert (await stage.only("onboarding_log"))["phone_number"] == "62811"


async def test_a_hyphenated_phone_counts_without_its_hyphens(stage: Stage) -> None:
    await stage.contacts("6281-2345-6789-012")
    await stage.message("m", "6281-2345-6789-012", 100)
    await stage.schedule()
    await stage.run()
    assert len(await stage.rows("onboarding_log")) == 1


@pytest.mark.rule("PSS-2")
async def test_no_contact_is_skipped_whatever_the_page_size(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages go by key, though the set shrinks under them."""
    monkeypatch.setattr(post_scan, "PAGE_SIZE", 7)
    phones = [f"62811{n:05d}" for n in range(50)]
    for number, phone in enumerate(phones):
        created_at = None if number % 9 == 0 else STORED + datetime.timedelta(seconds=number // 4)
        await stage.contacts(phone, created_at=created_at, id="" if number == 0 else f"c{number}")
        if number % 3:
            await stage.message(f"m{phone}", phone, 100 + number)
    await stage.schedule()
    await stage.run()
    synced = {row["phone_number"] for row in await stage.rows("contacts") if row["origin"]}
    assert synced == {phone for number, phone in enumerate(phones) if number % 3}
    assert len(await stage.rows("onboarding_log")) == len(synced)


@pytest.mark.rule("PSS-1")
async def test_a_job_waits_for_its_delay_from_the_store_time_and_survives_a_restart(stage: Stage) -> None:
    await stage.schedule()
    stage.now = DUE - datetime.timedelta(seconds=1)
    assert await stage.run() == 0
    again = Stage(stage.database, stage.tenant)
    assert await again.run() == 1


async def test_a_redelivered_batch_does_not_put_the_job_off(stage: Stage) -> None:
    await stage.schedule()
    await stage.schedule(stored_at=STORED - datetime.timedelta(minutes=1))
    assert (await stage.only("post_scan_jobs"))["due_at"] == DUE


@pytest.mark.rule("PSS-1")
async def test_two_replicas_never_do_the_same_job(stage: Stage) -> None:
    agents = [f"agent-{n}" for n in range(12)]
    for agent_id in agents:
        await stage.schedule(agent_id)
    others = [Stage(stage.database, stage.tenant) for _ in range(4)]
    assert sum(await asyncio.gather(*(other.run() for other in others))) == len(agents)
    assert await stage.rows("post_scan_jobs") == []


async def test_a_job_whose_worker_died_is_done_again_without_effect_on_what_is_done(stage: Stage) -> None:
    await stage.contacts("62811")
    await stage.message("m", "62811", 100)
    await stage.schedule()
    claim = await stage.jobs.claim(stage.now)
    assert claim is not None
    await stage.jobs.sync_page(claim, stage.tenant.company, stage.now)
    before = await stage.rows("contacts"), await stage.rows("onboarding_log")
    assert await stage.run() == 0, "the job is still taken"
    stage.now += LEASE
    assert await stage.run() == 1
    assert (await stage.rows("contacts"), await stage.rows("onboarding_log")) == before


async def test_a_job_that_is_asked_for_again_while_it_runs_stays(stage: Stage) -> None:
    await stage.schedule()
    claim = await stage.jobs.claim(stage.now)
    assert claim is not None
    await stage.schedule(stored_at=STORED + datetime.timedelta(seconds=1), seq=2)
    await stage.jobs.sync_page(claim, stage.tenant.company, stage.now)
    await stage.jobs.finish(claim)
    assert len(await stage.rows("post_scan_jobs")) == 1


async def test_operations_are_observed_by_their_names(stage: Stage) -> None:
    await stage.contacts("62811")
    await stage.message("m", "62811", 100)
    await stage.schedule()
    await stage.run()
    assert stage.observed == [
        ("FindContactsWithoutOrigin", "Contact"), ("FindContact", "Contact"),
        ("FindOnboardingLog", "OnboardingLog"), ("FindFirstIncomingMessage", "Message"),
        ("UpdateContact", "Contact"), ("SaveOnboardingLog", "OnboardingLog"),
    ]  # fmt: skip
