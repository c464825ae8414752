"""Every documented action and error type, provoked on a running worker (OUT-14, OUT-1).

`panic` needs a fault of ours, which a correct worker has not: see `tests/unit/test_routing_agent.py`.
`nak_dlq_marshal_fail` cannot be reached, for every event has an envelope (DLQ-1): what would happen is in
`tests/unit/test_dead_letters.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import nats
import pytest
from nats.js.api import DiscardPolicy, StreamConfig

from testkit.servers import NatsServer
from testkit.worker import Worker, environment
from tests import builders
from tests.acceptance.company_probe import HISTORY_STREAM, CompanyProbe, comes_to, comes_true, stream_of
from tests.acceptance.conftest import Launch, visited
from tests.programs import command
from tests.series import series

_ACTIONS = "message_event_service_event_processing_actions_total"
_MESSAGES = "v1.messages.upsert"
# Retries within a tenth of a second; dead letters stay where they are for the length of a test.
_QUICK = {"NATS_REALTIME_NAKBASEDELAY": "10ms", "NATS_HISTORICAL_NAKBASEDELAY": "10ms"}


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return _QUICK


async def _ends(
    worker: Worker, probe: CompanyProbe, event_type: str, expected: dict[tuple[str, str], int]
) -> None:
    """Wait until the deliveries of a type ended exactly so: (action, error_type) -> how many."""

    async def found() -> dict[tuple[str, str], int]:
        scrape = worker.scrape()
        counted = {}
        for (name, pairs), value in series(scrape).items():
            labels = dict(pairs)
            ours = labels.get("company_id") == probe.company and labels.get("event_type") == event_type
            if name == _ACTIONS and ours and value:
                counted[labels["action"], labels["error_type"]] = int(value)
        return counted

    await comes_to(expected, found)
    failed = sum(count for (action, _), count in expected.items() if action != "ack_success")
    # Repeating a failed publish is no failure of its own.
    failed -= sum(count for (action, _), count in expected.items() if action.startswith("nak_dlq_"))
    scrape = worker.scrape()
    labels = {"event_type": event_type, "company_id": probe.company}
    prefix = "message_event_service_events"
    assert scrape.value(f"{prefix}_failed_total", **labels) == failed
    assert scrape.value(f"{prefix}_processed_total", **labels) == expected.get(("ack_success", "none"), 0)


async def _fail_times(probe: CompanyProbe, times: int, sqlstate: str) -> None:
    """Let the next writes of one chat fail so many times; other chats are stored."""
    await probe.execute("CREATE SEQUENCE {schema}.tries")
    tries = f"nextval('{probe.tenant.schema}.tries') <= {times}"
    await probe.trip("chats", f"NEW.chat_id = '{builders.CHAT}' AND {tries}", sqlstate)


@pytest.mark.rule("OUT-2")
async def test_a_stored_event_is_ack_success_with_error_type_none(
    shared: Worker, served: CompanyProbe
) -> None:
    await served.publish("v1.chats.upsert", builders.chat())
    await _ends(shared, served, "v1.chats.upsert", {("ack_success", "none"): 1})


@pytest.mark.rule("OUT-15")
async def test_malformed_json_is_an_unmarshal_dead_letter_at_once(
    shared: Worker, served: CompanyProbe
) -> None:
    await served.publish(_MESSAGES, b'{"message_id": ')
    await _ends(shared, served, _MESSAGES, {("dlq_published_ack_success", "unmarshal"): 1})
    letter = await served.letter()
    assert (letter["error_type"], letter["retry_count"], letter["max_retry"]) == ("fatal", 1, 5)
    assert letter["original_payload"] == '{"message_id": '


@pytest.mark.rule("OUT-16", "OUT-4")
async def test_an_invalid_field_is_a_validation_dead_letter_at_once(
    shared: Worker, served: CompanyProbe
) -> None:
    await served.publish(_MESSAGES, builders.message(flow="SIDEWAYS", chat_id=""))
    await _ends(shared, served, _MESSAGES, {("dlq_published_ack_success", "validation"): 1})
    error = (await served.letter())["error"]
    assert error.startswith("fatal: ")
    assert "flow" in error
    assert "chat_id" in error


@pytest.mark.rule("OUT-16")
async def test_a_company_that_is_not_the_subjects_is_a_validation_dead_letter(
    shared: Worker, served: CompanyProbe
) -> None:
    await served.publish("v1.contacts.upsert", builders.contact(company_id="Somebody"))
    await _ends(shared, served, "v1.contacts.upsert", {("dlq_published_ack_success", "validation"): 1})
    assert "company_id" in (await served.letter())["error"]


@pytest.mark.rule("DBE-3")
async def test_data_that_the_database_refuses_is_a_database_dead_letter_at_once(
    shared: Worker, served: CompanyProbe
) -> None:
    """Class 22: a number beyond what jsonb holds."""
    body = builders.body(served.of_us(builders.message(message_obj={"n": 0}))).replace(
        b": 0}", b": 1e400000}"
    )
    await served.publish(_MESSAGES, body)
    await _ends(shared, served, _MESSAGES, {("dlq_published_ack_success", "database"): 1})
    assert (await served.letter())["error_type"] == "fatal"


@pytest.mark.rule("DBE-3")
@pytest.mark.parametrize("sqlstate", ["23505", "23503", "23502", "23514", "22001", "22P02"])
async def test_these_sqlstates_are_fatal(shared: Worker, served: CompanyProbe, sqlstate: str) -> None:
    await served.trip("chats", "NEW.chat_id = 'bad'", sqlstate)
    await served.publish("v1.chats.upsert", builders.chat(chat_id="bad"))
    await served.publish("v1.chats.upsert", builders.chat(chat_id="good"))
    await _ends(
        shared,
        served,
        "v1.chats.upsert",
        {("dlq_published_ack_success", "database"): 1, ("ack_success", "none"): 1},
    )
    letter = await served.letter()
    assert letter["error_type"] == "fatal"
    assert sqlstate in letter["error"]


@pytest.mark.rule("OUT-3")
async def test_another_database_error_is_retried_with_delays_then_a_retryable_dead_letter(
    shared: Worker, served: CompanyProbe
) -> None:
    """M = 5: four delayed naks, the fifth delivery is the dead letter; its neighbours are stored meanwhile."""
    await served.trip("messages", "NEW.message_id = 'bad'", "P0001")
    await served.publish(_MESSAGES, builders.message(message_id="bad"))
    await served.publish(_MESSAGES, builders.message(message_id="good"))
    await _ends(
        shared,
        served,
        _MESSAGES,
        {
            ("nack_retryable", "database"): 4,
            ("dlq_published_ack_success", "database"): 1,
            ("ack_success", "none"): 1,
        },
    )
    letter = await served.letter()
    assert (letter["error_type"], letter["retry_count"], letter["max_retry"]) == ("retryable", 5, 5)
    assert letter["error"].startswith("retryable: ")


@pytest.mark.rule("OUT-3")
async def test_a_database_error_that_passes_is_retried_and_stored(
    shared: Worker, served: CompanyProbe
) -> None:
    await _fail_times(served, 2, "P0001")
    await served.publish("v1.chats.upsert", builders.chat())
    await served.holds("chats", 1)
    await _ends(
        shared, served, "v1.chats.upsert", {("nack_retryable", "database"): 2, ("ack_success", "none"): 1}
    )


@pytest.mark.rule("OUT-3")
async def test_a_history_batch_is_given_up_at_its_third_delivery(
    shared: Worker, served: CompanyProbe
) -> None:
    await served.trip("chats", f"NEW.chat_id = '{builders.CHAT}'", "P0001")
    await served.publish("v1.history.chats", builders.history_chats())
    await _ends(
        shared,
        served,
        "v1.history.chats",
        {("nack_retryable", "database"): 2, ("dlq_published_ack_success", "database"): 1},
    )
    letter = await served.letter()
    assert (letter["retry_count"], letter["max_retry"]) == (3, 3)


@pytest.mark.rule("DBE-4")
async def test_a_time_out_of_one_event_is_retryable(shared: Worker, served: CompanyProbe) -> None:
    """55P03 is what a lock time-out raises; raised by hand it does not take half a minute."""
    await served.trip("chats", "NEW.chat_id = 'slow'", "55P03")
    await served.publish("v1.chats.upsert", builders.chat(chat_id="slow"))
    await _ends(
        shared,
        served,
        "v1.chats.upsert",
        {("nack_retryable", "timeout"): 4, ("dlq_published_ack_success", "timeout"): 1},
    )
    assert (await served.letter())["error_type"] == "retryable"


@pytest.mark.rule("OUT-11")
async def test_a_row_to_update_that_is_not_there_is_waited_for_then_a_dead_letter(
    shared: Worker, served: CompanyProbe
) -> None:
    """Its envelope starts at retry_count 1."""
    await served.publish("v1.messages.update", builders.message_update())
    await _ends(
        shared,
        served,
        "v1.messages.update",
        {("nack_retryable", "not_found"): 4, ("dlq_published_ack_success", "not_found"): 1},
    )
    letter = await served.letter()
    assert (letter["error_type"], letter["retry_count"]) == ("fatal", 1)


@pytest.mark.rule("OUT-12")
async def test_a_broken_connection_is_nobodys_failure(shared: Worker, served: CompanyProbe) -> None:
    """Class 57: the batch is kept and stored, and nothing is counted as failed."""
    await served.trip("chats", "true", "57P01")
    await served.publish("v1.chats.upsert", builders.chat())
    await comes_true(lambda: "postgres" in shared.ready()["details"])
    await served.untrip("chats")
    await served.holds("chats", 1)
    await _ends(shared, served, "v1.chats.upsert", {("ack_success", "none"): 1})


@pytest.mark.rule("OUT-12")
@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "08006", "53300", "25006"])
async def test_these_sqlstates_are_waited_out(shared: Worker, served: CompanyProbe, sqlstate: str) -> None:
    await _fail_times(served, 3, sqlstate)
    await served.publish("v1.chats.upsert", builders.chat())
    await served.holds("chats", 1)
    await _ends(shared, served, "v1.chats.upsert", {("ack_success", "none"): 1})
    assert await served.deliveries() == 1


@pytest.mark.rule("OUT-9")
async def test_an_event_whose_envelope_does_not_fit_is_nack_fatal_and_an_exhausted_row(
    shared: Worker, served: CompanyProbe
) -> None:
    limit = served.nc.max_payload
    event = served.of_us(builders.message(flow="SIDEWAYS", message_text=""))
    event["message_text"] = "x" * (limit - len(builders.body(event)) - 100)
    await served.publish(_MESSAGES, event)
    await _ends(shared, served, _MESSAGES, {("nack_fatal", "validation"): 1})
    [row] = await served.rows("exhausted_events")
    assert "flow" in row["last_error"]
    assert row["original_payload"] == event
    assert row["source_subject"] == served.tenant.subject(_MESSAGES)
    assert shared.scrape().value("dlq_tasks_dropped_total", company_id=served.company) == 1
    assert await served.letters() == 0


@pytest.mark.rule("OUT-10")
async def test_an_event_that_seems_to_kill_its_worker_is_an_unknown_dead_letter(
    launch: Launch, probe: CompanyProbe, nats_url: str, postgres_dsn: str
) -> None:
    """After more than 2M deliveries without an outcome it is given up unhandled."""
    env = environment([probe.company], nats_url, postgres_dsn)
    assert command("topology", "--apply", env=env).returncode == 0
    await probe.publish("v1.chats.upsert", builders.chat())
    durable = f"wa_realtime_{probe.company}"
    pulled = await probe.js.pull_subscribe_bind(durable, stream=stream_of("v1.chats.upsert"))
    for _ in range(2):
        [message] = await pulled.fetch(1)
        await message.nak()
    await probe.nc.flush()
    worker = launch(probe.company, NATS_REALTIME_MAXDELIVER="1")
    await _ends(worker, probe, "v1.chats.upsert", {("dlq_published_ack_success", "unknown"): 1})
    # Its replay does not kill this worker.
    await probe.holds("chats", 1)


@pytest.fixture
async def strained(company: str, postgres_dsn: str) -> AsyncIterator[CompanyProbe]:
    """The test's company on a NATS of its own, whose dead-letter stream can be filled up."""
    with NatsServer() as server:
        client = await nats.connect(server.url)
        async with visited(company, client, postgres_dsn) as probe:
            yield probe
        await client.close()


@pytest.mark.rule("OUT-5")
async def test_a_dead_letter_that_cannot_be_published_is_kept_and_nothing_is_lost(
    launch: Launch, strained: CompanyProbe
) -> None:
    """`nak_dlq_publish_fail` with `nats`; other events go on meanwhile."""
    url = strained.nc.connected_url
    assert url is not None
    worker = launch(strained.company, nats_url=url.geturl())
    config = (await strained.js.stream_info("dlq_stream")).config
    await strained.js.update_stream(
        StreamConfig(**{**vars(config), "max_bytes": 1, "discard": DiscardPolicy.NEW})
    )
    await strained.publish("v1.chats.upsert", builders.chat(jid=""))
    await _ends(worker, strained, "v1.chats.upsert", {("nak_dlq_publish_fail", "nats"): 1})
    await strained.publish("v1.chats.upsert", builders.chat())
    await strained.holds("chats", 1)

    async def unacknowledged() -> int | None:
        return (await strained.consumer()).num_ack_pending

    # The server hears of the ack of the stored one a moment after it is stored.
    await comes_to(1, unacknowledged)

    await strained.js.update_stream(StreamConfig(**{**vars(config), "max_bytes": -1}))
    await strained.settled()
    await _ends(
        worker,
        strained,
        "v1.chats.upsert",
        {
            ("nak_dlq_publish_fail", "nats"): 1,
            ("dlq_published_ack_success", "validation"): 1,
            ("ack_success", "none"): 1,
        },
    )
    assert await strained.letters() == 1


@pytest.mark.rule("HIS-1")
async def test_one_bad_item_of_a_history_batch_does_not_hold_back_the_good_ones(
    shared: Worker, served: CompanyProbe
) -> None:
    batch = builders.history_messages(
        builders.message(message_id="H1", status="sent"),
        builders.message(message_id="H2", flow="SIDEWAYS"),
        builders.message(message_id="H1", status="read"),
        builders.message(message_id="H3", company_id="Somebody"),
    )
    await served.publish("v1.history.messages", batch)
    await served.settled(HISTORY_STREAM)
    [row] = await served.rows("messages")
    assert (row["message_id"], row["status"]) == ("H1", "read")
    letter = await served.letter()
    assert [item["message_id"] for item in letter["original_payload"]["messages"]] == ["H2", "H3"]
    for named in ("messages[1]", "flow", "messages[3]", "company_id"):
        assert named in letter["error"]
    assert await served.letters() == 1
    await _ends(shared, served, "v1.history.messages", {("dlq_published_ack_success", "validation"): 1})
