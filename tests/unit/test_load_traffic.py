"""The traffic of the load generator: the mix that was asked for, valid and invalid as asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from demo.load import LoadTraffic
from demo.load_options import DEFAULT_MIX, Mix, mix, parse
from events.errors import EventError
from events.history import History
from events.payloads import decode
from events.subjects import EVENT_TYPES
from testkit.traffic import Publication

NOW = 1_795_500_000.0


def run(
    count: int,
    weights: Mix = DEFAULT_MIX,
    *,
    run: str = "run1",
    seed: int = 1,
    invalid: float = 0.0,
    agents: int = 3,
) -> list[Publication]:
    given = parse(["--companies", "KopiNusa01"])
    options = replace(given, seed=seed, mix=weights, invalid=invalid, agents=agents)
    traffic = LoadTraffic("KopiNusa01", run, options)
    return [traffic.event(NOW + number) for number in range(count)]


def storable(event: Publication) -> bool:
    try:
        decoded = decode(event.event_type, event.body, "KopiNusa01")
    except EventError:
        return False
    items = decoded.unpack() if isinstance(decoded, History) else []
    return not any(isinstance(item.event, EventError) for item in items)


def test_the_default_mix_names_every_event_type() -> None:
    assert set(DEFAULT_MIX) == set(EVENT_TYPES)
    assert sum(DEFAULT_MIX.values()) == 100


def test_event_types_come_as_often_as_their_weights_say() -> None:
    weights = mix("messages.upsert=6, v1.messages.update=3,chats.upsert=1,contacts.upsert=0")
    seen = Counter(event.event_type for event in run(4000, weights))
    assert set(seen) == {"v1.messages.upsert", "v1.messages.update", "v1.chats.upsert"}
    assert seen["v1.messages.upsert"] / 4000 == pytest.approx(0.6, abs=0.04)
    assert seen["v1.messages.update"] / 4000 == pytest.approx(0.3, abs=0.04)


def test_without_an_invalid_share_every_event_and_every_history_item_can_be_stored() -> None:
    assert all(storable(event) for event in run(2000))


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_every_event_type_can_be_invalid_and_keeps_its_type(event_type: str) -> None:
    events = run(60, {event_type: 1}, invalid=1.0)
    assert {event.event_type for event in events} == {event_type}
    assert not any(storable(event) for event in events)


def test_the_invalid_share_is_kept() -> None:
    events = run(4000, invalid=0.25)
    assert sum(not storable(event) for event in events) / 4000 == pytest.approx(0.25, abs=0.03)


def test_every_event_names_its_company_and_has_an_id_of_its_own() -> None:
    events = run(500)
    assert {event.headers["CompanyID"] for event in events} == {"KopiNusa01"}
    assert all(event.subject == f"{event.event_type}.KopiNusa01" for event in events)
    assert len({event.headers["Nats-Msg-Id"] for event in events}) == 500


def test_another_run_of_the_same_seed_sends_the_same_events_under_other_ids() -> None:
    """So the stream does not take it for a repeat of the first, and drop it."""
    first, second = run(200), run(200, run="run2")
    assert [event.body for event in first] == [event.body for event in second]
    assert {event.headers["Nats-Msg-Id"] for event in first}.isdisjoint(
        event.headers["Nats-Msg-Id"] for event in second
    )


def test_another_seed_is_about_other_rows() -> None:
    assert {event.body for event in run(200)}.isdisjoint(event.body for event in run(200, seed=2))


def test_the_time_of_an_event_is_that_of_its_sending() -> None:
    events = run(3, {"v1.messages.upsert": 1})
    assert [event.items[0].payload["message_timestamp"] for event in events] == [NOW, NOW + 1, NOW + 2]


def test_as_many_agents_as_asked_for_take_part() -> None:
    events = run(400, {"v1.messages.upsert": 1}, agents=7)
    assert len({event.items[0].payload["agent_id"] for event in events}) == 7


def test_an_update_is_always_about_a_row_that_was_sent_before() -> None:
    known: set[str] = set()
    updated = 0
    for event in run(1000, {"v1.messages.upsert": 1, "v1.messages.update": 3}):
        if event.event_type == "v1.messages.update":
            updated += 1
            assert event.items[0].key in known
        known.add(event.items[0].key)
    assert updated > 600
