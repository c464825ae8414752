"""The generated traffic: the same for a seed, complete, and consistent in what it promises."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest

from events.errors import EventError
from events.models import History, decode
from events.subjects import EVENT_TYPES
from testkit.items import cleaned
from testkit.traffic import MAX_PAYLOAD, MESSAGE_ID_HEADER, NUMBER_HEADER, Publication, Traffic, merged

START = 1_795_500_000


def run(count: int, seed: int = 1, company: str = "KopiNusa01") -> list[Publication]:
    return list(Traffic(company, seed, start=START).events(count))


def test_the_same_seed_and_company_give_the_same_events() -> None:
    assert run(400) == run(400)


def test_another_seed_or_company_gives_other_events() -> None:
    assert run(50) != run(50, seed=2)
    assert run(50)[0].body != run(50, company="TokoJaya02")[0].body


@pytest.mark.parametrize("count", [0, 1, 2, 7, 150, 401])
def test_exactly_as_many_events_as_asked_for(count: int) -> None:
    assert len(run(count)) == count


def test_two_companies_take_turns_and_share_the_count() -> None:
    companies = [Traffic(name, 1, start=START) for name in ("KopiNusa01", "TokoJaya02")]
    subjects = Counter(one.subject.rpartition(".")[2] for one in merged(companies, 301))
    assert subjects == {"KopiNusa01": 151, "TokoJaya02": 150}


def test_without_a_count_it_goes_on_for_ever() -> None:
    companies = [Traffic("KopiNusa01", 1, start=START)]
    assert len(list(islice(merged(companies), 3000))) == 3000


def test_one_hundred_and_fifty_events_hold_every_event_type_and_every_kind_of_trouble() -> None:
    events = run(150)
    assert {one.event_type for one in events} == set(EVENT_TYPES)
    assert any(item.refused and len(one.items) > 1 for one in events for item in one.items), (
        "bad items in batches"
    )
    assert any(item.refused and len(one.items) == 1 for one in events for item in one.items), "refused events"
    assert any(
        item.type == "v1.chats.update" and item.payload.get("unread_count") == 1
        for one in events
        for item in one.items
        if not item.refused
    )
    ids = Counter(one.headers.get(MESSAGE_ID_HEADER) for one in events)
    assert max(count for name, count in ids.items() if name) > 1, "a repeat with the same id"
    bodies = Counter(one.body for one in events if one.body)
    assert sum(count > 1 for count in bodies.values()) > 1, "a repeat with another id"
    assert max(len(one.body) for one in events) > MAX_PAYLOAD * 0.99


def test_history_batches_have_twenty_to_a_hundred_items_and_some_are_the_last() -> None:
    batches = [one for one in run(3000) if ".history." in one.event_type and len(one.items) > 1]
    assert all(20 <= len(one.items) <= 100 for one in batches)
    assert any(b'"is_last_batch":true' in one.body for one in batches)


def test_every_publication_has_a_number_of_its_own_and_fits_the_server() -> None:
    events = run(1000)
    assert len({one.headers[NUMBER_HEADER] for one in events}) == 1000
    for one in events:
        headers = sum(len(name) + len(value) + 4 for name, value in one.headers.items()) + 12
        assert len(one.body) + headers <= MAX_PAYLOAD


def test_most_events_carry_a_message_id() -> None:
    with_id = sum(MESSAGE_ID_HEADER in one.headers for one in run(1000))
    assert 700 < with_id < 950


def test_no_update_that_comes_early_is_left_without_the_event_it_waits_for() -> None:
    for count in (20, 33, 150, 400):
        made: set[tuple[str, str]] = set()
        updated: set[tuple[str, str]] = set()
        for one in run(count):
            for item in one.items:
                if not item.refused:
                    target = updated if one.event_type.endswith(".update") else made
                    target.add((item.table, item.key))
        assert {key for key in updated if key[0] != "agents"} <= made


def test_some_updates_come_before_their_event() -> None:
    seen: set[str] = set()
    early = 0
    for one in run(400):
        item = one.items[0]
        if one.event_type == "v1.messages.update" and not item.refused:
            early += item.key not in seen
        seen.update(item.key for item in one.items)
    assert early


def test_what_is_refused_has_keys_that_nothing_stored_has() -> None:
    events = run(3000)
    good = {(item.table, item.key) for one in events for item in one.items if not item.refused}
    bad = {(item.table, item.key) for one in events for item in one.items if item.refused and item.key}
    updates_of_nothing = {item for item in bad if item[1]}
    assert updates_of_nothing
    assert not good & bad


def test_the_processor_refuses_by_itself_what_must_be_refused_and_nothing_else() -> None:
    """An update of what never comes is the exception: only the database knows."""
    for one in run(3000):
        try:
            event = decode(one.event_type, one.body, "KopiNusa01")
        except EventError:
            assert [item.refused for item in one.items] == [True], one.event_type
            continue
        if isinstance(event, History):
            refused = [isinstance(item.event, EventError) for item in event.items]
            assert refused == [item.refused for item in one.items]
        elif not one.event_type.endswith(".update"):
            assert not one.items[0].refused


def test_history_items_tell_their_own_time() -> None:
    for one in run(500):
        if one.event_type == "v1.history.messages" and len(one.items) > 1:
            payloads = json.loads(one.body)["messages"]
            for payload, item in zip(payloads, one.items, strict=True):
                assert (
                    item.refused
                    or item.payload["message_timestamp"] == payload["message_timestamp"] < START + 100
                )


def test_phones_are_compared_without_plus_spaces_and_brackets() -> None:
    assert cleaned("+62 812-111 (1)") == "62812-1111"
