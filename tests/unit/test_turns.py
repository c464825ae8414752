"""Work for a thousand companies is spread over time; fifty have their turn each time."""

from __future__ import annotations

from streams.lifecycle.turns import BURST, RATE, Turns

FIFTY = [f"Toko{number:02d}" for number in range(BURST)]
THOUSAND = [f"Toko{number:03d}" for number in range(1000)]


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_up_to_fifty_have_their_turn_every_five_seconds_in_their_order() -> None:
    clock = Clock()
    turns: Turns[str] = Turns(clock)
    for _ in range(10):
        assert turns.take(FIFTY) == FIFTY
        clock.now += 5


def test_a_thousand_have_their_turn_within_100_seconds_and_never_more_than_fifty_at_once() -> None:
    clock = Clock()
    turns: Turns[str] = Turns(clock)
    for _ in range(3):
        taken: list[str] = []
        for _ in range(20):
            some = turns.take(THOUSAND)
            assert len(some) == BURST
            taken += some
            clock.now += 5
        assert sorted(taken) == THOUSAND


def test_who_asks_more_often_gets_no_more() -> None:
    """Each company that joins wakes every task up."""
    clock = Clock()
    turns: Turns[str] = Turns(clock)
    taken = 0
    for _ in range(1000):
        clock.now += 0.01
        taken += len(turns.take(THOUSAND))
    assert taken <= BURST + RATE * 10


def test_who_has_just_joined_comes_first() -> None:
    clock = Clock()
    turns: Turns[str] = Turns(clock)
    for _ in range(20):
        turns.take(THOUSAND)
        clock.now += 5
    assert "New" in turns.take([*THOUSAND, "New"])


def test_who_is_served_no_more_is_forgotten() -> None:
    turns: Turns[str] = Turns(Clock())
    turns.take(FIFTY)
    turns.take(FIFTY[:3])
    turns.take([])
    assert len(turns._turns) <= 3


def test_nobody_waiting_takes_no_room() -> None:
    clock = Clock()
    turns: Turns[str] = Turns(clock)
    assert turns.take([]) == []
    assert turns.take(FIFTY) == FIFTY
