"""What operators do with exhausted events, by the commands they type, beside a running worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest

from testkit.servers import NatsServer, free_port
from testkit.worker import Worker, environment
from tests import builders
from tests.acceptance.company_probe import DLQ_STREAM, CompanyProbe, comes_to, comes_true
from tests.programs import command

Run = Callable[..., CompletedProcess[str]]

NEWEST = "daisi_exhausted_newest_timestamp_seconds"
# Long before any event that a test publishes.
OLD = "1600000000000000000-7"


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Dead letters are tried again after a fraction of a second."""
    return {"NATS_DLQBASEDELAYMINUTES": "0.001", "NATS_DLQMAXDELAYMINUTES": "0.002"}


@pytest.fixture
def run(shared: Worker, served: CompanyProbe, nats_url: str, postgres_dsn: str) -> Run:
    """Runs a command for the test's company, or for `companies`."""

    def run(
        *arguments: str, companies: tuple[str, ...] = (served.company,), nats_url: str = nats_url
    ) -> CompletedProcess[str]:
        return command(*arguments, env=environment(companies, nats_url, postgres_dsn, LOG_LEVEL="error"))

    return run


async def _give_up(probe: CompanyProbe, **changes: Any) -> int:
    """Have the worker give up an update of a message that is not there; the row's id."""
    before = await probe.count("exhausted_events")
    payload = probe.of_us(changes.pop("payload", builders.message_update()))
    given = {
        "company": probe.company,
        "source_subject": probe.tenant.subject("v1.messages.update"),
        "retry_count": 5,
        "event_version": OLD,
    }
    await probe.publish("v1.dlq", builders.envelope(payload, **{**given, **changes}))
    await probe.holds("exhausted_events", before + 1)
    await probe.settled(DLQ_STREAM)
    return int(await probe.value("SELECT max(id) FROM {schema}.exhausted_events"))


async def _row(probe: CompanyProbe, row: int) -> dict[str, Any]:
    [found] = [one for one in await probe.rows("exhausted_events") if one["id"] == row]
    return found


async def _store(
    probe: CompanyProbe, *, error: str = "boom", hours: float = 0, resolved: bool = False
) -> int:
    """A row as the worker writes it; `hours` old. Its payloads say `secret`."""
    letter = builders.envelope({"text": "secret"}, source_subject=probe.tenant.subject("v1.chats.upsert"))
    return int(
        await probe.value(
            """INSERT INTO {schema}.exhausted_events (created_at, company_id, source_subject, last_error,
                retry_count, dlq_payload, original_payload, resolved, notes)
            VALUES (now() - make_interval(secs => $1), $2, $3, $4, 5, $5, $6, $7, '') RETURNING id""",
            hours * 3600,
            probe.company,
            probe.tenant.subject("v1.chats.upsert"),
            error,
            letter,
            letter["original_payload"],
            resolved,
        )
    )


def _ids(listed: CompletedProcess[str]) -> list[int]:
    assert listed.returncode == 0, listed.stderr
    return [int(line.split()[0]) for line in listed.stdout.splitlines()[1:]]


def _refused(done: CompletedProcess[str]) -> str:
    """The one line that says why nothing was done."""
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    return line


@pytest.mark.rule("PRK-7")
async def test_the_list_shows_what_waits_newest_first_and_no_payload(run: Run, served: CompanyProbe) -> None:
    old = await _store(served, hours=3)
    new = await _store(served, error="fatal: validation\nfailed\x1b[31m " + "x" * 300)
    await _store(served, resolved=True)

    listed = run("exhausted")

    assert _ids(listed) == [new, old]
    heading, first, _ = listed.stdout.splitlines()
    assert heading.split() == ["id", "company", "subject", "tries", "when", "state", "error"]
    for told in (served.company, served.tenant.subject("v1.chats.upsert"), " 5 ", "fatal: validation failed"):
        assert told in first
    assert "\x1b" not in first
    assert "secret" not in listed.stdout
    assert listed.stderr == ""


@pytest.mark.rule("PRK-7")
async def test_the_list_is_chosen_by_error_age_and_state_and_has_a_limit(
    run: Run, served: CompanyProbe
) -> None:
    old = await _store(served, error="fatal: Message to update not found", hours=50)
    new = await _store(served, error="fatal: validation failed: jid", hours=1)
    done = await _store(served, resolved=True, hours=2)

    assert _ids(run("exhausted", "--error", "message TO update")) == [old]
    assert _ids(run("exhausted", "--older-than", "48h")) == [old]
    assert _ids(run("exhausted", "--newer-than", "48h", "--company", served.company)) == [new]
    assert _ids(run("exhausted", "--resolved")) == [done]
    assert _ids(run("exhausted", "--any")) == [new, done, old]
    limited = run("exhausted", "--any", "--limit", "2")
    assert _ids(limited) == [new, done]
    assert "--limit" in limited.stderr
    assert run("exhausted", "--error", "nobody has this").stdout == "none\n"


async def test_a_program_can_read_the_list_and_a_row(run: Run, served: CompanyProbe) -> None:
    row = await _store(served)

    [listed] = json.loads(run("--json", "exhausted").stdout)
    shown = json.loads(run("--json", "exhausted-show", str(row), "--payload").stdout)

    assert (listed["id"], listed["company"], listed["state"]) == (row, served.company, "open")
    assert shown["original_payload"] == {"text": "secret"}


async def test_a_row_is_shown_whole_and_its_payloads_only_when_asked(run: Run, served: CompanyProbe) -> None:
    row = await _store(served)

    shown = run("exhausted-show", str(row))
    whole = run("exhausted-show", str(row), "--payload")

    assert shown.returncode == whole.returncode == 0
    for told in (f"id: {row}", "last_error: boom", "resolved: False", "event_version: 17955", "notes: "):
        assert told in shown.stdout
    assert "secret" not in shown.stdout
    assert '"text": "secret"' in whole.stdout


@pytest.mark.rule("PRK-3")
async def test_a_replay_is_stored_once_its_cause_is_gone_and_the_row_says_by_whom(
    run: Run, served: CompanyProbe
) -> None:
    row = await _give_up(served)
    await served.publish("v1.messages.upsert", builders.message(status=builders.ABSENT))
    await served.holds("messages", 1)

    done = run("exhausted-replay", str(row), "--by", "Sari W")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{served.company} {row} replayed\n"
    await comes_to("read", lambda: served.value("SELECT status FROM {schema}.messages"))
    await served.settled(DLQ_STREAM)
    found = await _row(served, row)
    assert found["resolved"]
    assert found["resolved_at"] is not None
    assert found["notes"].startswith("replayed by Sari W at 20")


async def test_a_replay_never_overwrites_what_is_newer(run: Run, served: CompanyProbe) -> None:
    row = await _give_up(served)
    await served.publish("v1.messages.upsert", builders.message(status="played"))
    await served.holds("messages", 1)

    assert run("exhausted-replay", str(row)).returncode == 0

    await served.settled(DLQ_STREAM)
    assert await served.value("SELECT status FROM {schema}.messages") == "played"
    assert (await _row(served, row))["resolved"]


@pytest.mark.rule("PRK-4")
async def test_a_second_replay_within_the_duplicate_window_is_called_a_duplicate(
    run: Run, served: CompanyProbe
) -> None:
    row = await _give_up(served)
    await served.publish("v1.messages.upsert", builders.message())
    await served.holds("messages", 1)
    assert run("exhausted-replay", str(row)).returncode == 0
    await served.settled(DLQ_STREAM)
    letters, before = await served.letters(), await _row(served, row)

    again = run("exhausted-replay", str(row))

    assert "duplicate, not published" in _refused(again)
    assert "replayed" not in again.stdout
    assert await served.letters() == letters
    assert await _row(served, row) == before


@pytest.mark.rule("PRK-4")
async def test_a_row_whose_replay_is_a_duplicate_stays_open(run: Run, served: CompanyProbe) -> None:
    """Its confirmation was lost: what was published then may still fail."""
    row = await _store(served)
    await served.publish("v1.dlq", b"{}", Nats_Msg_Id=f"exhausted-{served.company}-{row}-5")

    assert "duplicate, not published" in _refused(run("exhausted-replay", str(row)))

    found = await _row(served, row)
    assert (found["resolved"], found["resolved_at"], found["notes"]) == (False, None, "")


@pytest.mark.rule("PRK-5")
@pytest.mark.parametrize("version", [OLD, builders.ABSENT], ids=["versioned", "of the existing service"])
async def test_a_replay_that_fails_again_opens_its_row_which_can_be_replayed_again(
    run: Run, shared: Worker, served: CompanyProbe, version: object
) -> None:
    row = await _give_up(served, event_version=version)
    await served.execute("UPDATE {schema}.exhausted_events SET created_at = '2025-03-04', last_error = 'old'")
    before = await _row(served, row)

    assert run("exhausted-replay", str(row), "--by", "Sari").returncode == 0

    reopened = "SELECT count(*) FROM {schema}.exhausted_events WHERE notes LIKE '%given up again at 20%'"
    await comes_to(1, lambda: served.value(reopened))
    after = await _row(served, row)
    assert await served.count("exhausted_events") == 1
    assert (after["resolved"], after["resolved_at"]) == (False, None)
    assert (before["retry_count"], after["retry_count"]) == (5, 10)
    assert after["last_error"] == "fatal: message to update not found"
    assert after["notes"].splitlines()[0].startswith("replayed by Sari at ")
    for kept in ("created_at", "event_timestamp", "dlq_payload", "original_payload"):
        assert after[kept] == before[kept]
    # The alert ExhaustedEvents looks at this one.
    since = before["created_at"].timestamp() + 86400
    await comes_true(lambda: shared.scrape().value(NEWEST, company_id=served.company) > since)
    assert _ids(run("exhausted", "--newer-than", "1h")) == [row]

    assert run("exhausted-replay", str(row)).returncode == 0


async def test_a_replay_that_fails_at_once_is_not_forgotten(run: Run, served: CompanyProbe) -> None:
    """The worker gives it up while the command has yet to resolve the row."""
    row = await _give_up(served, company="Somebody")

    assert run("exhausted-replay", str(row)).returncode == 0

    await comes_to(False, lambda: served.value("SELECT resolved FROM {schema}.exhausted_events"))
    assert (await _row(served, row))["notes"].splitlines()[1].startswith("given up again at ")
    assert await served.count("exhausted_events") == 1


async def test_all_replays_what_the_filters_choose_and_nothing_that_is_resolved(
    run: Run, served: CompanyProbe
) -> None:
    chosen = [await _store(served, error=f"wanted {number}") for number in range(3)]
    await _store(served, error="other")
    await _store(served, error="wanted, but done", resolved=True)

    done = run("exhausted-replay", "--all", "--error", "wanted")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *(f"{served.company} {row} replayed" for row in chosen),
        "3 replayed",
    ]
    assert await served.letters() == 3
    assert run("exhausted-replay", "--all", "--error", "nobody").stdout == "nothing to replay\n"


@pytest.mark.rule("PRK-3")
async def test_replays_keep_to_the_rate(run: Run, served: CompanyProbe) -> None:
    """A replay of many must not flood the workers."""
    rows = [str(await _store(served)) for _ in range(6)]
    assert run("exhausted-replay", *rows, "--rate", "5").returncode == 0

    times = [
        message.time.timestamp()
        for message in [await served.js.get_msg(DLQ_STREAM, number) for number in await _letters(served)]
        if message.time is not None
    ]
    assert len(times) == 6
    # One second without the time that the first one took to be stored.
    assert max(times) - min(times) > 0.5


async def _letters(probe: CompanyProbe) -> list[int]:
    """Sequences of our dead letters, the oldest first."""
    found: list[int] = []
    while len(found) < await probe.letters():
        after = found[-1] + 1 if found else 1
        message = await probe.js.get_msg(DLQ_STREAM, after, subject=probe.tenant.subject("v1.dlq"), next=True)
        found.append(message.seq or 0)
    return found


async def test_what_jsonb_did_not_take_is_replayed_from_its_text(run: Run, served: CompanyProbe) -> None:
    payload = builders.body(served.of_us(builders.chat()))[:-1] + b', "more": 1e999999}'
    letter = builders.body(
        builders.envelope(
            "HERE", source_subject=served.tenant.subject("v1.chats.upsert"), company=served.company
        )
    ).replace(b'"HERE"', payload)
    row = await _store(served)
    await served.database.execute(
        f"UPDATE {served.schema}.exhausted_events SET dlq_payload = $1", letter.decode()
    )

    assert run("exhausted-replay", str(row)).returncode == 0

    await served.holds("chats", 1)


async def test_what_is_no_envelope_is_left_open_with_a_reason(run: Run, served: CompanyProbe) -> None:
    await served.publish("v1.dlq", b"no envelope")
    await served.holds("exhausted_events", 1)
    [row] = await served.rows("exhausted_events")

    assert "holds no envelope" in _refused(run("exhausted-replay", str(row["id"])))

    assert not (await _row(served, row["id"]))["resolved"]


@pytest.mark.rule("PRK-6")
async def test_a_discard_needs_a_reason_and_a_yes_and_changes_nothing_without(
    run: Run, served: CompanyProbe
) -> None:
    row = await _store(served)
    before = await _row(served, row)

    assert "--yes" in _refused(run("exhausted-discard", str(row), "--reason", "test data"))
    assert "--reason" in _refused(run("exhausted-discard", str(row), "--yes"))
    assert "--reason" in _refused(run("exhausted-discard", str(row), "--yes", "--reason", " "))

    assert await _row(served, row) == before


@pytest.mark.rule("PRK-6")
async def test_a_discarded_row_stays_with_who_when_and_why(run: Run, served: CompanyProbe) -> None:
    row = await _store(served)

    done = run("exhausted-discard", str(row), "--reason", "sent by\na test", "--yes", "--by", "Sari")

    assert (done.returncode, done.stdout) == (0, f"{served.company} {row} discarded\n")
    found = await _row(served, row)
    assert found["resolved"]
    assert found["resolved_at"] is not None
    assert found["notes"].startswith("discarded by Sari at 20")
    assert found["notes"].endswith("Z: sent by a test")
    assert _ids(run("exhausted", "--resolved")) == [row]
    assert run("exhausted").stdout == "none\n"
    assert "resolved already" in _refused(run("exhausted-discard", str(row), "--reason", "again", "--yes"))
    assert await served.letters() == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["exhausted", "--company", "Somebody"], "COMPANY_ID"),
        (["exhausted", "--older-than", "old"], "--older-than"),
        (["exhausted", "--limit", "0"], "--limit"),
        (["exhausted-show", "99"], "99"),
        (["exhausted-show", str(2**70)], "id"),
        (["exhausted-replay"], "--all"),
        (["exhausted-replay", "1", "--all"], "--all"),
        (["exhausted-replay", "1", "--error", "x"], "--all"),
        (["exhausted-replay", "--all", "--rate", "0"], "--rate"),
        (["exhausted-replay", "99"], "99"),
        (["exhausted-replay", "1", "--by", " "], "--by"),
        (["exhausted-discard", "--yes", "--reason", "x"], "ids"),
        (["exhausted-discard", "99", "--yes", "--reason", "x"], "99"),
    ],
)
async def test_bad_input_is_refused_with_one_line(run: Run, arguments: list[str], told: str) -> None:
    assert told in _refused(run(*arguments))


async def test_what_is_no_number_is_a_usage_error(run: Run) -> None:
    done = run("exhausted-show", "x")

    assert done.returncode == 2
    assert "'x' is not a valid integer" in done.stderr


async def test_ids_of_several_companies_need_the_company(
    run: Run, served: CompanyProbe, sharing: Any
) -> None:
    row = await _store(served)
    other = next(company for company in sharing.worker.companies if company != served.company)
    both = (served.company, other)

    assert "--company" in _refused(run("exhausted-show", str(row), companies=both))

    assert f"id: {row}" in run("exhausted-show", str(row), "--company", served.company, companies=both).stdout
    assert row in _ids(run("exhausted", companies=both))
    assert row not in _ids(run("exhausted", "--company", other, companies=both))


@pytest.mark.rule("PRK-3")
async def test_without_a_confirmation_the_row_stays_open(run: Run, served: CompanyProbe) -> None:
    """A server without the dead-letter stream, and one that is not there."""
    row = await _store(served)
    with NatsServer() as server:
        assert "not confirmed" in _refused(run("exhausted-replay", str(row), nats_url=server.url))
    gone = run("exhausted-replay", str(row), nats_url=f"nats://127.0.0.1:{free_port()}")
    assert "NATS_URL" in _refused(gone)

    found = await _row(served, row)
    assert (found["resolved"], found["notes"]) == (False, "")


def test_without_a_database_there_is_one_line(nats_url: str) -> None:
    dsn = f"postgresql://postgres@127.0.0.1:{free_port()}/postgres"
    done = command("exhausted", env=environment(["KopiNusa01"], nats_url, dsn))

    assert _refused(done).startswith("POSTGRES_DSN: ")


async def test_a_dead_update_holds_up_no_other_of_its_chat_and_is_listed(
    run: Run, served: CompanyProbe
) -> None:
    await served.publish("v1.chats.upsert", builders.chat())
    await served.publish("v1.chats.update", builders.chat_update(unread_count="many"))
    await served.publish("v1.chats.update", builders.chat_update(unread_count=7))

    await comes_to(7, lambda: served.value("SELECT unread_count FROM {schema}.chats"))
    await served.holds("exhausted_events", 1)
    listed = run("exhausted")
    assert served.tenant.subject("v1.chats.update") in listed.stdout
    assert "unread_count" in listed.stdout
