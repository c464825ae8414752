"""No company's rows are ever written by another's events, whatever companies are called and events say."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg
import pytest
from nats.aio.client import Client

from events.subjects import Tenant
from streams.config.names import COMPANIES
from tables.queries import load
from testkit import builders
from testkit.worker import Worker
from tests.acceptance.company_probe import HISTORY_STREAM, CompanyProbe
from tests.acceptance.conftest import visited

TABLES: Final = ("messages", "chats", "contacts", "agents", "onboarding_log")
FOLDER: Final = Path(__file__).parents[2] / "tables"
# Made longer by a few characters that are new for each run: the session's NATS is shared.
HOSTILE: Final = (
    'a"b',
    "a'b",
    'a";DROP_TABLE_x;--',
    "a`$1{schema}%s",
    "Ünï😀",
    "K" * 49,
    "plain",
)
EVENTS: Final = (
    "v1.connection.update",
    "v1.chats.upsert",
    "v1.chats.update",
    "v1.messages.upsert",
    "v1.messages.update",
    "v1.contacts.upsert",
    "v1.contacts.update",
)


@pytest.fixture(params=[2])
async def probes(
    request: pytest.FixtureRequest, nc: Client, database_dsn: str, nats_url: str, tmp_path: Path
) -> AsyncIterator[list[CompanyProbe]]:
    """Some of these companies, served by one worker with one database."""
    names = [f"{name}{uuid4().hex[:8]}" for name in HOSTILE[: request.param]]
    worker = Worker(
        names,
        nats_url=nats_url,
        postgres_dsn=database_dsn,
        log=tmp_path / "worker.log",
        NATS_DLQBASEDELAYMINUTES="0.01",
        NATS_DLQMAXDELAYMINUTES="0.01",
        NATS_REALTIME_NAKBASEDELAY="10ms",
        NATS_REALTIME_NAKMAXDELAY="10ms",
    )
    worker.start()
    try:
        await asyncio.to_thread(worker.wait_ready)
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(visited(name, nc, database_dsn)) for name in names]
    finally:
        worker.kill()


async def _schemas(probe: CompanyProbe) -> set[str]:
    found = await probe.database.fetch("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'")
    return {row["nspname"] for row in found}


async def _counts(probe: CompanyProbe) -> dict[str, int]:
    return {table: await probe.count(table) for table in TABLES}


@pytest.mark.rule("SUB-6")
@pytest.mark.parametrize("probes", [len(HOSTILE)], indirect=True)
async def test_whatever_a_company_is_called_its_events_stay_in_its_schema(probes: list[CompanyProbe]) -> None:
    for event_type in EVENTS:
        await asyncio.gather(
            *(probe.publish(event_type, builders.BUILDERS[event_type]()) for probe in probes)
        )
    for name in ("messages", "chats", "contacts"):
        event_type = f"v1.history.{name}"
        await asyncio.gather(
            *(probe.publish(event_type, builders.BUILDERS[event_type]()) for probe in probes)
        )
    for probe in probes:
        await probe.settled()
        await probe.settled(HISTORY_STREAM)

    assert await _schemas(probes[0]) == {
        "information_schema",
        "public",
        *(probe.tenant.schema for probe in probes),
    }
    assert len(probes[-2].tenant.schema) == 63
    for probe in probes:
        assert await _counts(probe) == {
            "messages": 3,
            "chats": 2,
            "contacts": 1,
            "agents": 1,
            "onboarding_log": 1,
        }
        for table in TABLES:
            assert {row["company_id"] for row in await probe.rows(table)} == {probe.company}
        assert await probe.count("exhausted_events") == 0


def _claims(company: str) -> list[tuple[str, Any]]:
    """Events that say they are `company`'s, in every place where one can say so."""
    other = {"company_id": company}
    live = [(event_type, builders.BUILDERS[event_type](**other)) for event_type in EVENTS]
    return [
        *live,
        ("v1.history.messages", builders.history_messages(builders.message(message_id="H9", **other))),
        ("v1.history.chats", builders.history_chats(builders.chat(chat_id="C9", **other))),
        ("v1.history.contacts", builders.history_contacts(builders.contact(**other))),
    ]


async def test_events_that_claim_another_company_reach_the_tables_of_neither(
    probes: list[CompanyProbe],
) -> None:
    attacker, victim = probes[0], probes[1]
    for event_type in ("v1.messages.upsert", "v1.chats.upsert", "v1.contacts.upsert", "v1.connection.update"):
        await victim.publish(event_type, builders.BUILDERS[event_type]())
    await victim.settled()
    before = {table: await victim.rows(table) for table in TABLES}

    for event_type, payload in _claims(victim.company):
        await attacker.publish(event_type, builders.body(payload))

    await attacker.holds("exhausted_events", len(_claims("")))
    assert {table: await victim.rows(table) for table in TABLES} == before
    assert await _counts(attacker) == dict.fromkeys(TABLES, 0)
    assert await victim.count("exhausted_events") == 0
    errors = {row["last_error"] for row in await attacker.rows("exhausted_events")}
    assert all("company_id" in error for error in errors)


async def test_dead_letters_that_claim_another_company_are_kept_and_never_replayed(
    probes: list[CompanyProbe],
) -> None:
    attacker, victim = probes[0], probes[1]
    ours, theirs = attacker.company, victim.company
    message = builders.message()
    del message["company_id"]
    letters = [
        builders.envelope(message, company=theirs, source_subject=f"v1.messages.upsert.{theirs}"),
        builders.envelope(message, company=theirs, source_subject=f"v1.messages.upsert.{ours}"),
        builders.envelope(message, company=ours, source_subject=f"v1.messages.upsert.{theirs}"),
        builders.envelope(message, company="", source_subject=f"v1.messages.upsert.{theirs}"),
        builders.envelope(message, company=ours, source_subject=f"v1.messages.upsert.{ours}.{theirs}"),
        builders.envelope(message, company=ours.swapcase(), source_subject=f"v1.messages.upsert.{ours}"),
        builders.envelope(message, company=ours, source_subject="v1.messages.upsert.*"),
    ]
    for number, letter in enumerate(letters):
        # Else they would be the same event given up twice, which is one row.
        told = {**letter, "event_version": f"{number}-1"}
        await attacker.publish("v1.dlq", json.dumps(told).encode())
    claim = builders.envelope(
        builders.message(company_id=theirs), company=ours, source_subject=f"v1.messages.upsert.{ours}"
    )
    await attacker.publish("v1.dlq", json.dumps(claim).encode())

    await attacker.holds("exhausted_events", len(letters) + 1)
    rows = await attacker.rows("exhausted_events")
    assert all(re.search("compan|source_subject", row["last_error"]) for row in rows)
    assert all(row["original_payload"] for row in rows)
    for probe in (attacker, victim):
        assert await _counts(probe) == dict.fromkeys(TABLES, 0)
    assert await victim.count("exhausted_events") == 0


async def test_values_of_events_are_never_read_as_sql(probes: list[CompanyProbe]) -> None:
    probe = probes[0]
    text = "'); DROP TABLE messages; --\"; $1 {schema} %s \\"
    texts = dict.fromkeys(("message_text", "message_type", "message_url", "status", "from_phone"), text)
    ids = {"message_id": text, "chat_id": text, "jid": text, "agent_id": text}
    await probe.publish("v1.messages.upsert", builders.message(**texts, **ids, key={"id": text}))
    await probe.publish("v1.messages.update", builders.message_update(message_id=text, status=text + "2"))
    await probe.publish("v1.chats.upsert", builders.chat(chat_id=text, push_name=text, agent_id=text))
    await probe.publish("v1.connection.update", builders.connection(agent_id=text, qr_code=text))

    await probe.settled()
    [message] = await probe.rows("messages")
    assert {message[name] for name in (*ids, "message_text", "message_url", "from_phone")} == {text}
    assert message["status"] == text + "2"
    assert message["key"]["id"] == text
    assert [row["push_name"] for row in await probe.rows("chats")] == [text]
    assert [row["qr_code"] for row in await probe.rows("agents")] == [text]
    assert await probe.count("exhausted_events") == 0


@pytest.mark.rule("SUB-4")
def test_a_name_that_grows_when_lowered_is_measured_by_what_it_becomes() -> None:
    """PostgreSQL would cut the schema's name, and two companies could share it."""
    grows = "İ" * 28  # 56 bytes, 84 when lowered

    assert len(grows.encode()) <= 57
    with pytest.raises(ValueError, match="longer than 57 bytes"):
        COMPANIES(grows)
    assert len(Tenant("İ" * 19).schema.encode()) == 63
    assert COMPANIES("İ" * 19)


def _strings_built(tree: ast.AST) -> list[ast.AST]:
    """Calls of the driver whose statement is put together in Python, but for the ones below."""
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        if node.func.attr in {"execute", "executemany", "fetch", "fetchval", "fetchrow", "cursor", "prepare"}:
            statement = node.args[0]
            built = isinstance(statement, ast.JoinedStr | ast.BinOp) or (
                isinstance(statement, ast.Call)
                and isinstance(statement.func, ast.Attribute)
                and statement.func.attr in {"format", "join", "replace"}
            )
            if built:
                found.append(node)
    return found


def test_no_statement_is_put_together_from_values() -> None:
    """But for those that PostgreSQL itself wrote, with `format('%I')`, of names in its catalogue."""
    built = {
        (file.name, ast.unparse(call.args[0]))
        for file in sorted(FOLDER.rglob("*.py"))
        for call in _strings_built(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
    }

    assert built == {
        ("partitions.py", "'; '.join((row['ddl'] for row in missing))"),
        ("publication.py", "'; '.join(statements)"),
        ("publication.py", "f\"ALTER PUBLICATION daisi_pub ADD TABLE {', '.join(additions)}\""),
    }


def test_statements_have_no_other_placeholder_than_the_quoted_schema() -> None:
    files = sorted((FOLDER / "sql").rglob("*.sql"))
    for file in files:
        text = re.sub(r"'\{[a-z_,]+\}'", "", file.read_text(encoding="utf-8"))  # array literals of columns
        assert set(re.findall(r"\{\w*\}|%\(\w+\)s", text)) <= {"{schema}"}, file.name
        assert not re.search(r"'[^'\n]*\{schema\}", text), file.name  # a quoted name inside a text is no name
    assert len(files) >= 14


async def test_every_statement_is_understood_by_the_server_for_a_hostile_schema(
    database_dsn: str, schema: str
) -> None:
    """Not only those that the tests above come by."""
    hostile = "daisi_a\"b';x--"
    connection = await asyncpg.connect(database_dsn)
    try:
        quoted = '"' + hostile.replace('"', '""') + '"'
        await connection.execute(f'ALTER SCHEMA "{schema}" RENAME TO {quoted}')
        for file in sorted((FOLDER / "sql").glob("*.sql")):
            for name, text in load(file.stem, hostile).items():
                if name not in {"create_schema", "create_index_once", "drop_index_once"}:
                    try:
                        await connection.prepare(text)
                    except asyncpg.PostgresError as error:
                        raise AssertionError(f"{file.stem}.{name}: {error}") from error
    finally:
        await connection.close()
