"""The accounting finds what is missing, doubled, older or wrong, on made-up evidence."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from demo.progress import read_metrics
from testkit.accounting import Accounting, Report
from testkit.final_places import Backlog, Evidence, Given, Row
from testkit.items import Item, refused
from testkit.oracle import Expected, Model, Published, Version
from testkit.publisher import stored_version
from testkit.traffic import Traffic

COMPANY = "KopiNusa01"
START = 1_795_500_000


def stream() -> list[Published]:
    """Events as a server would store them, 10 ms apart."""
    events = Traffic(COMPANY, 1, start=START).events(400)
    return [
        Published(one, Version((START + 60) * 1_000_000_000 + number * 10_000_000, number))
        for number, one in enumerate(events, start=1)
    ]


def perfect(published: list[Published]) -> Evidence:
    """What a faultless processor leaves behind."""
    evidence, model = Evidence(), Model()
    for one in published:
        for item in one.publication.items:
            if not item.refused:
                model.add(one.version_of(item), item)
        if refused := [item for item in one.publication.items if item.refused]:
            evidence.letters.append(Given(one.version, _letter_body(one, refused)))
    evidence.rows = {
        table: {key: [_row(expected)] for key, expected in rows.items()} for table, rows in model.rows.items()
    }
    for contact, first in model.first_messages.items():
        row = evidence.rows["contacts"].setdefault(contact, [Row({})])[0]
        row.columns["first_message_id"] = first.message_id
        evidence.onboarded[contact] = [first.message_id]
    evidence.backlog.waiting = len(evidence.letters)
    return evidence


def _letter_body(one: Published, refused: list[Item]) -> bytes:
    if not refused[0].text:
        return one.publication.body
    items = [json.loads(item.text) for item in refused]
    return json.dumps({one.publication.event_type.rpartition(".")[2]: items}).encode()


def _row(expected: Expected) -> Row:
    version = f"{expected.newest.ns}-{expected.newest.sequence}"
    return Row({**expected.values(), "last_metadata": {"version": version}})


def account(published: list[Published], evidence: Evidence) -> Report:
    report = Report()
    Accounting(COMPANY, published, evidence).add_to(report)
    return report


@pytest.fixture(scope="module")
def published() -> list[Published]:
    return stream()


def test_a_faultless_run_is_accounted_for(published: list[Published]) -> None:
    report = account(published, perfect(published))
    assert report.problems == []
    total = sum(sum(counts[place] for place in ("stored", "waiting")) for counts in report.counts.values())
    assert total == sum(len(one.publication.items) for one in published)
    assert "exactly one final place" in report.text()


def _lose_message(evidence: Evidence) -> None:
    evidence.rows["messages"].popitem()


def _older_row(evidence: Evidence) -> None:
    row = next(iter(evidence.rows["chats"].values()))[0]
    row.columns["last_metadata"] = {"version": "1-1"}


def _wrong_status(evidence: Evidence) -> None:
    next(iter(evidence.rows["messages"].values()))[0].columns["status"] = "nonsense"


def _step_counted_twice(evidence: Evidence) -> None:
    next(iter(evidence.rows["chats"].values()))[0].columns["unread_count"] += 1


def _message_twice(evidence: Evidence) -> None:
    next(iter(evidence.rows["messages"].values())).append(Row({}))


def _lose_letter(evidence: Evidence) -> None:
    evidence.letters.pop()
    evidence.backlog.waiting -= 1


def _letter_no_longer_waits(evidence: Evidence) -> None:
    evidence.backlog.waiting -= 1


def _letter_for_a_stored_event(evidence: Evidence) -> None:
    stored = next(iter(evidence.rows["agents"].values()))[0]
    evidence.letters.append(Given(stored.newest, b"{}"))
    evidence.backlog.waiting += 1


def _stray_row(evidence: Evidence) -> None:
    evidence.rows["messages"]["nobody's"] = [Row({})]


def _lose_contact(evidence: Evidence) -> None:
    del evidence.rows["contacts"][next(iter(evidence.onboarded))]


def _onboard_twice(evidence: Evidence) -> None:
    next(iter(evidence.onboarded.values())).append("again")


def _lose_log(evidence: Evidence) -> None:
    evidence.onboarded.popitem()


def _wrong_first_message(evidence: Evidence) -> None:
    evidence.onboarded[next(iter(evidence.onboarded))] = ["another"]


def _pending(evidence: Evidence) -> None:
    evidence.backlog = Backlog(pending=1, waiting=evidence.backlog.waiting)


def _unacknowledged(evidence: Evidence) -> None:
    evidence.backlog = Backlog(unacknowledged=1, waiting=evidence.backlog.waiting)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_lose_message, "neither a row"),
        (_older_row, "neither a row"),
        (_wrong_status, "messages.status is not the newest value"),
        (_step_counted_twice, "chats.unread_count is not the newest value"),
        (_message_twice, "2 rows of messages instead of one"),
        (_lose_letter, "neither a row"),
        (_letter_no_longer_waits, "dead letters wait in the consumer"),
        (_letter_for_a_stored_event, "in two places perhaps: v1.connection.update"),
        (_stray_row, "belongs to no event"),
        (_lose_contact, "0 contacts instead of one"),
        (_onboard_twice, "2 rows of onboarding_log"),
        (_lose_log, "0 rows of onboarding_log"),
        (_wrong_first_message, "onboarding_log does not name it"),
        (_pending, "1 events pending"),
        (_unacknowledged, "1 unacknowledged"),
    ],
)
def test_harm_done_to_the_evidence_is_found(
    published: list[Published], harm: Callable[[Evidence], None], says: str
) -> None:
    evidence = perfect(published)
    harm(evidence)
    report = account(published, evidence)
    assert any(says in problem for problem in report.problems)
    assert not report.ok


def test_a_problem_names_subject_and_sequence_and_never_the_payload(published: list[Published]) -> None:
    evidence = perfect(published)
    evidence.rows["messages"].clear()
    text = account(published, evidence).text()
    first = next(one for one in published if one.publication.event_type == "v1.messages.upsert")
    assert f"v1.messages.upsert.{COMPANY} sequence {first.version.sequence}: " in text
    assert first.publication.items[0].key not in text
    assert " more\n" in f"{text}\n"


def test_an_event_in_exhausted_events_is_accounted_for(published: list[Published]) -> None:
    evidence = perfect(published)
    evidence.exhausted.append(evidence.letters.pop())
    evidence.backlog.waiting -= 1
    report = account(published, evidence)
    assert report.ok
    assert sum(counts["exhausted"] for counts in report.counts.values()) >= 1


def test_a_broken_history_item_given_up_says_nothing_of_a_good_one_of_the_same_chat(
    published: list[Published],
) -> None:
    place, batch = next(
        (place, one)
        for place, one in enumerate(published)
        if one.publication.event_type == "v1.history.chats"
    )
    good = next(item for item in batch.publication.items if not item.refused)
    broken = refused("v1.history.chats", text=json.dumps({"chat_id": good.key, "agent_id": ""}))
    publication = batch.publication._replace(items=(*batch.publication.items, broken))
    ours = [*published[:place], batch._replace(publication=publication), *published[place + 1 :]]
    evidence = perfect(ours)
    evidence.exhausted, evidence.letters, evidence.backlog.waiting = evidence.letters, [], 0
    assert account(ours, evidence).problems == []


def test_a_refused_event_that_was_stored_is_a_problem(published: list[Published]) -> None:
    evidence = perfect(published)
    item = next(item for one in published for item in one.publication.items if item.refused and item.key)
    evidence.rows[item.table][item.key] = [Row({})]
    assert any("can never be stored" in problem for problem in account(published, evidence).problems)


def test_the_newest_value_counts_whatever_the_order() -> None:
    early, late = Version(1, 1), Version(2, 2)
    expected = Expected()
    expected.add(late, Item("chats", "c", {"push_name": "new", "conversation_timestamp": 5}))
    expected.add(early, Item("chats", "c", {"push_name": "old", "conversation_timestamp": 9}))
    assert expected.values() == {"push_name": "new", "conversation_timestamp": 9}


def test_unread_steps_count_from_the_newest_absolute_value() -> None:
    expected = Expected()
    for ns in (1, 3, 4, 4):
        expected.add(Version(ns, ns), Item("chats", "c", {}, step=True))
    expected.add(Version(2, 2), Item("chats", "c", {"unread_count": 5}))
    assert expected.values()["unread_count"] == 7


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.wa_events_stream.consumer.1.42.7.1795500123456789012.0",
        "$JS.ACK.hub.account.wa_events_stream.consumer.1.42.7.1795500123456789012.0.token",
    ],
)
def test_store_times_keep_their_nanoseconds(reply: str) -> None:
    assert stored_version(reply) == Version(1795500123456789012, 42)


def test_the_progress_counts_come_from_the_metrics_page() -> None:
    page = """# HELP message_event_service_events_processed_total Events
message_event_service_events_processed_total{company_id="A",event_type="x"} 4.0
message_event_service_events_processed_total{company_id="B",event_type="x"} 3.0
message_event_service_event_processing_actions_total{action="nack_retryable",error_type="not_found"} 2.0
message_event_service_event_processing_actions_total{action="dlq_published_ack_success"} 1.0
dlq_tasks_dropped_total{company_id="A"} 5.0
onboarding_tasks_processed_total{company_id="A",status="success_created"} 6.0
dlq_queue_length 0.0
"""
    counts = read_metrics(page)
    assert (counts.stored, counts.retried, counts.dead_lettered) == (7, 2, 1)
    assert (counts.exhausted, counts.onboarded) == (5, 6)
