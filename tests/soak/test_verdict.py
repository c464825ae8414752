"""The verdict on memory, on made-up figures."""

from __future__ import annotations

import pytest

from tests.soak.traffic import HISTORY_EVERY, Traffic
from tests.soak.verdict import Allowance, Outage, Step, growth, judged, problems

ALLOWED = Allowance(growth=5.0, outage=10.0)
CALM = Outage(before=98.0, during=99.0, catching_up=101.0, after=97.5)
WARM_UP = (91.0, 97.0)


def steps(*resident: float) -> list[Step]:
    """Readings after 50,000 events each."""
    return [
        Step(50_000 * number, value, value + 1, 100 * number)
        for number, value in enumerate(resident, start=1)
    ]


@pytest.mark.parametrize(
    "later",
    [
        pytest.param((97.0, 97.0, 97.0, 97.0), id="flat"),
        pytest.param((98.9, 96.8, 98.7, 97.1), id="up and down"),
        pytest.param((97.0, 96.5, 97.2, 100.5), id="one reading out of line"),
        pytest.param((95.0, 92.0, 90.0, 89.0), id="falling"),
    ],
)
def test_memory_that_does_not_grow_after_the_first_third_is_held(later: tuple[float, ...]) -> None:
    assert problems(steps(*WARM_UP, *later), CALM, ALLOWED) == []


def test_memory_that_grows_with_the_events_is_not_held() -> None:
    [problem] = problems(steps(91.0, 97.0, 99.0, 101.0, 103.0, 105.0), CALM, ALLOWED)
    assert problem == (
        "memory grows with the events: 8.0 MB in the last 200,000, 40 bytes an event; allowed are 5 MB"
    )


def test_a_last_reading_that_happens_to_be_low_hides_no_growth() -> None:
    assert problems(steps(91.0, 97.0, 100.0, 103.0, 106.0, 98.0), CALM, Allowance(growth=3.0, outage=10.0))


def test_growth_while_the_worker_warms_up_is_not_judged() -> None:
    later = judged(steps(60.0, 97.0, 97.0, 97.0, 97.0, 97.0))
    assert [step.events for step in later] == [100_000, 150_000, 200_000, 250_000, 300_000]
    assert growth(later) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("outage", "when"),
    [
        (Outage(98.0, 120.0, 98.0, 98.0), "during the outage"),
        (Outage(98.0, 98.0, 120.0, 98.0), "while catching up after the outage"),
        (Outage(98.0, 98.0, 98.0, 120.0), "after the outage"),
    ],
)
def test_memory_that_an_outage_takes_is_not_held(outage: Outage, when: str) -> None:
    [problem] = problems(steps(*WARM_UP, *[97.0] * 4), outage, ALLOWED)
    assert problem == f"memory {when}: 22.0 MB more than before; allowed are 10 MB"


def test_traffic_is_the_same_for_the_same_seed_and_has_new_phones_and_history() -> None:
    first, again, other = (
        [event.publication for event in Traffic("KopiNusa01", seed).events(2 * HISTORY_EVERY)]
        for seed in (1, 1, 2)
    )
    subjects = [[one.subject for one in drawn] for drawn in (first, again, other)]
    assert subjects[0] == subjects[1] != subjects[2]
    assert subjects[0].count("v1.history.messages.KopiNusa01") == 2
    phones = {item.onboards for one in first if one.event_type == "v1.messages.upsert" for item in one.items}
    assert len(phones) > 200
