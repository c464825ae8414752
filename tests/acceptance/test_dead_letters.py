"""Dead letters of a running worker, with delays of a fraction of a second (DLQ-5)."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from testkit.worker import Worker
from tests import builders
from tests.acceptance.company_probe import DLQ_STREAM, CompanyProbe, comes_to, comes_true
from tests.acceptance.conftest import Launch

_DELAYS = {
    "NATS_DLQBASEDELAYMINUTES": "0.001",
    "NATS_DLQMAXDELAYMINUTES": "0.002",
    "NATS_REALTIME_NAKBASEDELAY": "10ms",
}


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return _DELAYS


def _envelope(probe: CompanyProbe, payload: Any = builders.ABSENT, **changes: Any) -> builders.Payload:
    """A dead letter of this company."""
    given = {
        "company": probe.company,
        "source_subject": probe.tenant.subject("v1.messages.update"),
        **changes,
    }
    if payload is builders.ABSENT:
        payload = builders.message_update()
    return builders.envelope(probe.of_us(payload), **given)


async def _counts(worker: Worker, probe: CompanyProbe, **expected: int) -> None:
    """Wait until the counters of dead letters say so; those that are not named are 0."""

    async def found() -> dict[str, int]:
        scrape = worker.scrape()
        names = {
            "submitted": "dlq_tasks_submitted_total",
            "timed": "dlq_processing_duration_seconds_count",
            "retried": "dlq_task_retries_total",
            "acked": "dlq_acks_success_total",
            "failed": "dlq_acks_failure_total",
            "dropped": "dlq_tasks_dropped_total",
        }
        return {short: int(scrape.value(name, company_id=probe.company)) for short, name in names.items()}

    zero = dict.fromkeys(("submitted", "timed", "retried", "acked", "failed", "dropped"), 0)
    await comes_to(zero | expected, found)


async def _exhausted(probe: CompanyProbe) -> dict[str, Any]:
    """The only row, once it is there and the dead letter is ended."""
    await probe.holds("exhausted_events", 1)
    await probe.settled(DLQ_STREAM)
    [row] = await probe.rows("exhausted_events")
    assert (row["resolved"], row["resolved_at"], row["notes"]) == (False, None, "")
    return row


@pytest.mark.rule("DLQ-5")
async def test_a_replay_succeeds_once_the_cause_is_gone(launch: Launch, probe: CompanyProbe) -> None:
    """The update waits as a dead letter for its message, which comes later."""
    seconds = {"NATS_DLQBASEDELAYMINUTES": "0.03", "NATS_DLQMAXDELAYMINUTES": "0.1"}
    worker = launch(probe.company, also=_DELAYS | seconds)
    await probe.publish("v1.messages.update", builders.message_update())
    retries = "dlq_task_retries_total"
    await comes_true(lambda: worker.scrape().value(retries, company_id=probe.company) >= 1)
    await probe.publish("v1.messages.upsert", builders.message(status=builders.ABSENT))
    await comes_to("read", lambda: probe.value("SELECT status FROM {schema}.messages"))
    await probe.settled(DLQ_STREAM)
    assert await probe.count("exhausted_events") == 0
    await comes_true(lambda: worker.scrape().value("dlq_acks_success_total", company_id=probe.company) == 1)
    scrape = worker.scrape()
    assert scrape.value("dlq_tasks_dropped_total", company_id=probe.company) == 0


@pytest.mark.rule("DLQ-13")
async def test_a_replayed_row_tells_where_it_comes_from(shared: Worker, served: CompanyProbe) -> None:
    """Stream and consumer of the dead letters, subject and id of the event; onboarded like a live one."""
    subject = served.tenant.subject("v1.messages.upsert")
    letter = _envelope(served, builders.message(), source_subject=subject)
    published = await served.publish("v1.dlq", letter, Original_Nats_Msg_Id="wamid-9")
    await served.holds("onboarding_log", 1)
    await served.settled(DLQ_STREAM)
    [row] = await served.rows("messages")
    metadata = row["last_metadata"]
    assert metadata["stream"] == "dlq_stream"
    assert metadata["consumer"] == f"v1_dlq_worker_consumer_{served.company}"
    assert metadata["stream_sequence"] == published.seq
    assert metadata["message_id"] == "wamid-9"
    assert metadata["message_subject"] == subject
    await _counts(shared, served, submitted=1, timed=1, acked=1)


@pytest.mark.rule("DLQ-7")
@pytest.mark.parametrize(("retry_count", "tries"), [(1, 5), (3, 3), (5, 1), (9, 1)])
async def test_an_envelope_is_exhausted_by_exactly_the_try_that_the_limit_says(
    shared: Worker, served: CompanyProbe, retry_count: int, tries: int
) -> None:
    """k = retry_count + d - 1 >= 5 (DLQ-7)."""
    published = await served.publish("v1.dlq", _envelope(served, retry_count=retry_count))
    row = await _exhausted(served)
    assert await served.deliveries(DLQ_STREAM) == tries
    assert row["retry_count"] == retry_count + tries - 1
    assert row["company_id"] == served.company
    assert row["source_subject"] == served.tenant.subject("v1.messages.update")
    assert row["last_error"] == "fatal: message to update not found"
    assert row["event_timestamp"] == datetime.datetime(2026, 11, 24, 7, 15, 30, 123456, datetime.UTC)
    assert row["original_payload"] == served.of_us(builders.message_update())
    assert row["dlq_payload"]["retry_count"] == retry_count
    await _counts(shared, served, submitted=tries, timed=tries, retried=tries - 1, failed=1, dropped=1)
    # It stays in the stream for operators, and is not delivered again.
    assert (await served.js.get_msg(DLQ_STREAM, published.seq)).subject == served.tenant.subject("v1.dlq")


@pytest.mark.rule("DLQ-7")
async def test_the_last_delivery_that_is_allowed_exhausts_an_envelope(
    launch: Launch, probe: CompanyProbe
) -> None:
    """D = NATS_DLQMAXDELIVER."""
    worker = launch(probe.company, also=_DELAYS, NATS_DLQMAXDELIVER="2")
    await probe.publish("v1.dlq", _envelope(probe))
    row = await _exhausted(probe)
    assert row["retry_count"] == 2
    await _counts(worker, probe, submitted=2, timed=2, retried=1, failed=1, dropped=1)


@pytest.mark.rule("DLQ-7")
async def test_a_fatal_event_ends_in_one_exhausted_row_with_the_reason(
    shared: Worker, served: CompanyProbe
) -> None:
    """Five tries in all, from the stream of events to the table."""
    await served.publish("v1.chats.upsert", b'{"chat_id": "c1", oops')
    row = await _exhausted(served)
    assert row["retry_count"] == 5
    assert row["original_payload"] == '{"chat_id": "c1", oops'
    assert row["source_subject"] == served.tenant.subject("v1.chats.upsert")
    assert row["last_error"].startswith("fatal: ")
    assert await served.letters() == 1
    await _counts(shared, served, submitted=5, timed=5, retried=4, failed=1, dropped=1)


@pytest.mark.rule("DLQ-11")
async def test_an_envelope_of_another_company_is_stored_and_never_replayed(
    shared: Worker, served: CompanyProbe, sharing: Any
) -> None:
    stranger = next(company for company in sharing.worker.companies if company != served.company)
    letter = _envelope(
        served,
        builders.chat(company_id=stranger),
        company=stranger,
        source_subject=f"v1.chats.upsert.{stranger}",
    )
    await served.publish("v1.dlq", letter)
    row = await _exhausted(served)
    assert "company" in row["last_error"]
    assert row["company_id"] == stranger
    assert await served.count("chats") == 0
    assert await served.value(f'SELECT count(*) FROM "daisi_{stranger.lower()}".chats') == 0
    await _counts(shared, served, submitted=1, timed=1, failed=1, dropped=1)


@pytest.mark.rule("DLQ-11")
async def test_an_envelope_without_a_company_is_ours(shared: Worker, served: CompanyProbe) -> None:
    subject = served.tenant.subject("v1.chats.upsert")
    await served.publish("v1.dlq", _envelope(served, builders.chat(), company="", source_subject=subject))
    await served.holds("chats", 1)
    await _counts(shared, served, submitted=1, timed=1, acked=1)


@pytest.mark.rule("DLQ-9")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[]",
        b'"text"',
        b'{"retry_count": "many"}',
        b'{"company": 7}',
        b"\xff\xfe",
        b"[" * 20_000,
    ],
)
async def test_what_is_no_envelope_is_stored_as_text_and_ended(
    shared: Worker, served: CompanyProbe, body: bytes
) -> None:
    await served.publish("v1.dlq", body)
    row = await _exhausted(served)
    assert row["source_subject"] == served.tenant.subject("v1.dlq")
    assert row["company_id"] == served.company
    assert "envelope" in row["last_error"]
    assert row["original_payload"] is None
    await _counts(shared, served, submitted=1, timed=1, failed=1, dropped=1)


@pytest.mark.rule("DLQ-10")
@pytest.mark.parametrize("subject", ["", "v999.chats.upsert.Somebody", "v1.dlq.Somebody"])
async def test_an_envelope_of_unknown_subject_is_stored_and_ended(
    shared: Worker, served: CompanyProbe, subject: str
) -> None:
    await served.publish("v1.dlq", _envelope(served, source_subject=subject))
    row = await _exhausted(served)
    assert row["source_subject"] in (subject, served.tenant.subject("v1.dlq"))
    assert "source_subject" in row["last_error"]
    await _counts(shared, served, submitted=1, timed=1, failed=1, dropped=1)


@pytest.mark.rule("PRK-1")
async def test_nul_in_an_envelope_does_not_keep_its_row_from_being_stored(
    shared: Worker, served: CompanyProbe
) -> None:
    letter = _envelope(served, builders.message_update(status="re\0ad"), error="bad\0error", retry_count=5)
    await served.publish("v1.dlq", letter)
    row = await _exhausted(served)
    assert row["original_payload"]["status"] == "read"
    await _counts(shared, served, submitted=1, timed=1, failed=1, dropped=1)


@pytest.mark.rule("DLQ-8")
async def test_a_row_that_cannot_be_saved_puts_the_envelope_off_until_it_can(
    shared: Worker, served: CompanyProbe
) -> None:
    await served.trip("exhausted_events", "true", "P0001")
    await served.publish("v1.dlq", _envelope(served, retry_count=5))
    failures = "dlq_acks_failure_total"
    await comes_true(lambda: shared.scrape().value(failures, company_id=served.company) >= 1)
    assert (await served.consumer(DLQ_STREAM)).num_ack_pending == 1
    await served.untrip("exhausted_events")
    await _exhausted(served)
    await comes_true(lambda: shared.scrape().value("dlq_tasks_dropped_total", company_id=served.company) == 1)


@pytest.mark.rule("DLQ-14")
async def test_thousands_that_wait_for_their_delay_do_not_stop_a_new_one(
    launch: Launch, probe: CompanyProbe
) -> None:
    worker = launch(probe.company)  # with the usual five minutes
    await probe.publish_many(
        "v1.dlq",
        [_envelope(probe, builders.message_update(message_id=f"M{number}")) for number in range(1000)],
    )
    await comes_true(
        lambda: worker.scrape().value("dlq_task_retries_total", company_id=probe.company) == 1000
    )
    subject = probe.tenant.subject("v1.chats.upsert")
    await probe.publish("v1.dlq", _envelope(probe, builders.chat(), source_subject=subject))
    await probe.holds("chats", 1)

    async def waiting() -> int | None:
        return (await probe.consumer(DLQ_STREAM)).num_ack_pending

    # The server hears of the new one's ack a moment after it is stored.
    await comes_to(1000, waiting)
