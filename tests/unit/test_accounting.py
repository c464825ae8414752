"""The accounting finds what is missing, doubled, older or wrong, on made-up evidence."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Callable

import pytest

from demo.live_line import LiveLine
from demo.run import show
from testkit.accounting import Accounting, Report
from testkit.evidence import Backlog, Evidence, Given, Row, stored_version
from testkit.items import Item, Payload, Table, good, refused
from testkit.oracle import ExpectedRow, Published, Version, expected, facts
from testkit.traffic import Publication, Traffic
from testkit.worker import Scrape

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
    wanted = expected(facts(published))
    evidence = Evidence(
        rows={
            table: {key: [_row(table, row)] for key, row in rows.items()}
            for table, rows in wanted.rows.items()
        },
        steps={key: row.open_steps for key, row in wanted.rows["chats"].items()},
        onboarded={key: [_log(row)] for key, row in wanted.rows["contacts"].items() if row.first},
    )
    evidence.message_keys = {
        key: rows[0].columns["message_date"] for key, rows in evidence.rows["messages"].items()
    }
    for one in published:
        if broken := [item for item in one.publication.items if item.refused]:
            evidence.letters.append(Given(one.version, _letter_body(one, broken)))
    _wait(evidence, len(evidence.letters))
    return evidence


def _wait(evidence: Evidence, more: int) -> None:
    """So many more dead letters wait in the consumer."""
    evidence.backlog = evidence.backlog._replace(waiting=evidence.backlog.waiting + more)


def _letter_body(one: Published, broken: list[Item]) -> bytes:
    if len(one.publication.items) == 1:
        return one.publication.body
    items = [item.payload for item in broken]
    return json.dumps({one.publication.event_type.rpartition(".")[2]: items}).encode()


def _row(table: Table, wanted: ExpectedRow) -> Row:
    columns = {column: choices[-1] for column, choices in wanted.fixed.items()} | wanted.values()
    if table == "messages":
        columns["message_timestamp"], day = min(wanted.days)
        columns["message_date"] = datetime.date(1970, 1, 1) + datetime.timedelta(days=day)
    if table == "contacts":
        columns["tags"] = ",".join(wanted.tags)
    newest = wanted.last or wanted.first
    assert newest is not None
    versions = {column: _text(version) for column, (_, version) in wanted.newest.items() if version}
    return Row(columns | {"last_metadata": {"version": _text(newest.version), "versions": versions}})


def _log(wanted: ExpectedRow) -> Row:
    first = wanted.first
    assert first is not None
    metadata = {"version": _text(first.version)}
    return Row({"message_id": first.item.key, "timestamp": first.sent_at, "last_metadata": metadata})


def _text(version: Version) -> str:
    return f"{version.ns}-{version.sequence}"


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
    _wait(evidence, -1)


def _letter_no_longer_waits(evidence: Evidence) -> None:
    _wait(evidence, -1)


def _letter_for_a_stored_event(evidence: Evidence) -> None:
    stored = next(iter(evidence.rows["agents"].values()))[0]
    assert stored.version is not None
    evidence.letters.append(Given(stored.version, b"{"))
    _wait(evidence, 1)


def _letter_twice(evidence: Evidence) -> None:
    evidence.letters.append(evidence.letters[0])


def _letter_with_another_payload(evidence: Evidence) -> None:
    place = next(place for place, one in enumerate(evidence.letters) if b'"flow"' in one.body)
    evidence.letters[place] = evidence.letters[place]._replace(body=b"{}")


def _letter_of_no_event(evidence: Evidence) -> None:
    evidence.exhausted.append(Given(Version(1, 1), b"{}"))


def _stray_row(evidence: Evidence) -> None:
    evidence.rows["messages"]["nobody's"] = [Row({})]


def _lose_contact(evidence: Evidence) -> None:
    contacts = evidence.rows["contacts"]
    del contacts[next(key for key in evidence.onboarded if contacts[key][0].columns["push_name"] == "")]


def _onboard_twice(evidence: Evidence) -> None:
    logs = next(iter(evidence.onboarded.values()))
    logs.append(logs[0])


def _lose_log(evidence: Evidence) -> None:
    evidence.onboarded.popitem()


def _wrong_first_message(evidence: Evidence) -> None:
    next(iter(evidence.onboarded.values()))[0].columns["message_id"] = "another"


def _wrong_column_version(evidence: Evidence) -> None:
    next(iter(evidence.rows["messages"].values()))[0].columns["last_metadata"]["versions"]["status"] = "1-1"


def _wrong_day(evidence: Evidence) -> None:
    next(iter(evidence.rows["messages"].values()))[0].columns["message_timestamp"] += 1


def _lose_key(evidence: Evidence) -> None:
    evidence.message_keys.popitem()


def _lose_step(evidence: Evidence) -> None:
    next(steps for steps in evidence.steps.values() if steps).pop()


def _wrong_tags(evidence: Evidence) -> None:
    next(iter(evidence.rows["contacts"].values()))[0].columns["tags"] += ",another"


def _wrong_chat(evidence: Evidence) -> None:
    next(iter(evidence.rows["messages"].values()))[0].columns["chat_id"] = "another"


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
        (_letter_twice, "carried by 2 dead letters"),
        (_letter_with_another_payload, "dead letters with another payload"),
        (_letter_of_no_event, "exhausted rows of no event"),
        (_stray_row, "belongs to no event"),
        (_lose_contact, "0 rows of contacts instead of one"),
        (_onboard_twice, "2 rows of onboarding_log"),
        (_lose_log, "0 rows of onboarding_log"),
        (_wrong_first_message, "onboarding_log does not name it"),
        (_wrong_column_version, "messages.status has another version"),
        (_wrong_day, "messages has another time or day"),
        (_lose_key, "message_keys has another day"),
        (_lose_step, "chat_steps are not the open ones"),
        (_wrong_tags, "contacts.tags"),
        (_wrong_chat, "messages.chat_id is of no event"),
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
    assert any(says in problem.text for problem in report.problems)
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
    _wait(evidence, -1)
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
    broken = refused("v1.history.chats", payload={"chat_id": good.key, "agent_id": ""})
    publication = batch.publication._replace(items=(*batch.publication.items, broken))
    ours = [*published[:place], batch._replace(publication=publication), *published[place + 1 :]]
    evidence = perfect(ours)
    evidence.exhausted, evidence.letters, evidence.backlog = evidence.letters, [], Backlog()
    assert account(ours, evidence).problems == []


def test_a_refused_event_that_was_stored_is_a_problem(published: list[Published]) -> None:
    evidence = perfect(published)
    item = next(item for one in published for item in one.publication.items if item.refused and item.key)
    evidence.rows[item.table][item.key] = [Row({})]
    assert any("can never be stored" in one.text for one in account(published, evidence).problems)


def test_the_rest_of_a_history_batch_and_all_of_it_may_be_exhausted_side_by_side(
    published: list[Published],
) -> None:
    batch = next(
        one
        for one in published
        if 0 < sum(item.refused for item in one.publication.items) < len(one.publication.items)
    )
    evidence = perfect(published)
    [rest] = [one for one in evidence.letters if one.version == batch.version]
    evidence.letters.remove(rest)
    _wait(evidence, -1)
    evidence.exhausted += [rest, Given(batch.version, batch.publication.body)]
    assert account(published, evidence).problems == []


def _chats(*said: tuple[int, str, Payload]) -> ExpectedRow:
    """What a chat must hold after these events: nanosecond, type and payload."""
    events = []
    for ns, event_type, payload in said:
        known = {"chat_id": "c", "agent_id": "a", "jid": "j", "phone_number": "1", **payload}
        items = (good(event_type, known),)
        events.append(Published(Publication(ns, event_type, b"", {}, event_type, items), Version(ns, ns)))
    return expected(facts(events)).rows["chats"]["c"]


def test_the_newest_value_counts_whatever_the_order() -> None:
    late = (2, "v1.chats.upsert", {"push_name": "new", "conversation_timestamp": 5})
    early = (1, "v1.chats.upsert", {"push_name": "old", "conversation_timestamp": 9})
    values = _chats(late, early).values()
    assert (values["push_name"], values["conversation_timestamp"]) == ("new", 9)


def test_unread_steps_count_from_the_newest_absolute_value() -> None:
    steps: list[tuple[int, str, Payload]] = [
        (ns, "v1.chats.update", {"unread_count": 1}) for ns in (1, 3, 4, 4)
    ]
    absolute = (2, "v1.chats.upsert", {"unread_count": 5})
    assert _chats(*steps, absolute).values()["unread_count"] == 7


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.wa_events_stream.consumer.1.42.7.1795500123456789012.0",
        "$JS.ACK.hub.account.wa_events_stream.consumer.1.42.7.1795500123456789012.0.token",
    ],
)
def test_store_times_keep_their_nanoseconds(reply: str) -> None:
    assert stored_version(reply) == Version(1795500123456789012, 42)


def test_the_progress_comes_from_the_metrics_page() -> None:
    page = """# HELP message_event_service_events_processed_total Events
message_event_service_events_processed_total{company_id="A",event_type="x"} 4.0
message_event_service_events_processed_total{company_id="B",event_type="x"} 3.0
message_event_service_event_processing_actions_total{action="nack_retryable",error_type="not_found"} 2.0
message_event_service_event_processing_actions_total{action="dlq_published_ack_success"} 1.0
dlq_tasks_dropped_total{company_id="A"} 5.0
onboarding_tasks_processed_total{company_id="A",status="success_created"} 6.0
dlq_queue_length 0.0
"""
    out = io.StringIO()
    show(LiveLine(out), 9, Scrape(page), Backlog(pending=3))
    line = out.getvalue().rstrip()
    assert line.startswith("published 9 (")
    assert "  stored 7 (" in line
    assert line.endswith("  retried 2  dead-lettered 1  exhausted 5  new contacts 6  lag 3")
