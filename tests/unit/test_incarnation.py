"""The incarnation of a stream: when it is known, when the server is asked, and what happens without an answer."""

from __future__ import annotations

from typing import Any

import pytest

from events.errors import BrokerError
from streams.jetstream.in_flight import InFlight
from streams.jetstream.incarnation import Incarnation, compare_streams
from streams.jetstream.store_clock import StoreClock
from streams.jetstream.stream_reader import ApiError

FIRST, SECOND = "2026-11-24T07:15:30.123456789Z", "2026-11-24T08:00:00Z"
FIRST_NS, SECOND_NS = 1_795_504_530_123_456_789, 1_795_507_200_000_000_000


class FakeApi:
    """Answers STREAM.INFO with `created`, or fails."""

    def __init__(self, created: str = FIRST) -> None:
        self.created = created
        self.failure: Exception | None = None
        self.asked: list[str] = []

    async def api(self, subject: str, body: object = None) -> dict[str, Any]:
        self.asked.append(subject)
        if self.failure is not None:
            raise self.failure
        return {"created": self.created}


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Arrivals:
    """The deliveries of a source, added by hand."""

    def __init__(self, max_wait: float = 0.0) -> None:
        self.api = FakeApi()
        self.clock = Clock()
        self.steps: list[float] = []
        self.incarnation = Incarnation(self.api, "s", self.clock, max_wait)
        self.in_flight = InFlight(
            publish=self._publish,
            ack_wait=30,
            incarnation=self.incarnation,
            store_clock=StoreClock("s", self.steps.append),
        )

    async def _publish(self, subject: str, payload: bytes) -> None:
        return

    async def batch(self, *arrivals: tuple[int, int, int]) -> list[int]:
        """Deliveries of these (sequence, consumer sequence, ns) arrive; returns their incarnations."""
        deliveries = [
            self.in_flight.add("v1.x", b"", None, f"$JS.ACK.s.c.1.{sequence}.{own}.{ns}.0")
            for sequence, own, ns in arrivals
        ]
        await self.in_flight.set_incarnations()
        return [delivery.metadata.incarnation for delivery in deliveries]


@pytest.fixture
def arrivals() -> Arrivals:
    return Arrivals()


async def test_every_delivery_has_the_incarnation_of_its_stream_which_is_asked_for_once(
    arrivals: Arrivals,
) -> None:
    assert await arrivals.batch((1, 1, 10), (2, 2, 20)) == [FIRST_NS, FIRST_NS]
    assert await arrivals.batch((3, 3, 30)) == [FIRST_NS]
    assert arrivals.api.asked == ["STREAM.INFO.s"]


async def test_nothing_is_asked_before_anything_arrives(arrivals: Arrivals) -> None:
    assert await arrivals.batch() == []
    assert arrivals.api.asked == []


async def test_a_sequence_that_is_given_out_again_is_asked_for_before_its_batch_goes_on(
    arrivals: Arrivals,
) -> None:
    assert await arrivals.batch((4, 4, 10), (5, 5, 20)) == [FIRST_NS] * 2
    arrivals.api.created = SECOND
    assert await arrivals.batch((6, 6, 30), (3, 7, 40)) == [FIRST_NS, SECOND_NS]


async def test_a_consumer_that_counts_from_one_again_is_a_reason_to_ask(arrivals: Arrivals) -> None:
    await arrivals.batch((4, 4, 10))
    arrivals.api.created = SECOND
    assert await arrivals.batch((9, 1, 20)) == [SECOND_NS]


async def test_what_came_before_a_doubt_keeps_what_it_was_told(arrivals: Arrivals) -> None:
    await arrivals.batch((1, 1, 10))
    before = arrivals.in_flight.add("v1.x", b"", None, "$JS.ACK.s.c.1.2.2.20.0")
    arrivals.incarnation.doubt()
    arrivals.api.created = SECOND
    assert await arrivals.batch((3, 3, 30)) == [SECOND_NS]
    assert before.metadata.incarnation == FIRST_NS


@pytest.mark.parametrize("failure", [ApiError(10059, "stream not found"), BrokerError("no answer")])
async def test_without_an_answer_events_are_ordered_by_time_and_the_log_says_so_once(
    arrivals: Arrivals, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    await arrivals.batch((1, 1, 10))
    arrivals.api.failure = failure
    arrivals.incarnation.doubt()
    assert await arrivals.batch((2, 2, 20)) == [0]
    arrivals.clock.now += 1
    assert await arrivals.batch((3, 3, 30)) == [0]
    assert len(caplog.records) == 1
    assert "STREAM.INFO.s" in caplog.text
    arrivals.api.failure = None
    arrivals.clock.now += 100
    assert await arrivals.batch((4, 4, 40)) == [FIRST_NS]


async def test_a_server_that_does_not_answer_is_not_asked_for_each_batch(arrivals: Arrivals) -> None:
    arrivals.api.failure = BrokerError("no answer")
    for number in range(1, 50):
        assert await arrivals.batch((number, number, number)) == [0]
    assert len(arrivals.api.asked) == 1


async def test_a_batch_waits_for_an_answer_that_comes_late() -> None:
    """A new leader needs a moment, and it may be the one whose clock is behind."""
    arrivals = Arrivals(max_wait=5.0)
    answer, failures = arrivals.api.api, [BrokerError("no answer"), ApiError(10008, "unavailable")]

    async def late(subject: str, body: object = None) -> dict[str, Any]:
        if failures:
            raise failures.pop()
        return await answer(subject, body)

    arrivals.api.api = late  # type: ignore[method-assign]
    assert await arrivals.batch((1, 1, 10)) == [FIRST_NS]


async def test_a_doubt_that_comes_while_the_server_is_asked_is_not_forgotten(arrivals: Arrivals) -> None:
    await arrivals.batch((1, 1, 10))
    arrivals.incarnation.doubt()
    answer = arrivals.api.api

    async def interrupted(subject: str, body: object = None) -> dict[str, Any]:
        arrivals.incarnation.doubt()
        return await answer(subject, body)

    arrivals.api.api = interrupted  # type: ignore[method-assign]
    await arrivals.batch((2, 2, 20))
    arrivals.api.api = answer  # type: ignore[method-assign]
    arrivals.api.created = SECOND
    assert await arrivals.batch((3, 3, 30)) == [SECOND_NS]


async def test_the_watch_asks_once_a_stream_and_tells_the_sources_of_it(arrivals: Arrivals) -> None:
    other = Arrivals()
    incarnations = [arrivals.incarnation, other.incarnation]
    for each in (arrivals, other):
        await each.batch((1, 1, 10))
    arrivals.api.asked.clear()
    await compare_streams(arrivals.api, incarnations)
    assert arrivals.api.asked == ["STREAM.INFO.s"]
    assert await arrivals.batch((2, 2, 20)) == [FIRST_NS]
    assert len(arrivals.api.asked) == 1

    arrivals.api.created = other.api.created = SECOND
    await compare_streams(arrivals.api, incarnations)
    assert await arrivals.batch((3, 3, 30)) == await other.batch((3, 3, 30)) == [SECOND_NS]


async def test_the_watch_ends_a_pause_once_the_server_answers(arrivals: Arrivals) -> None:
    arrivals.api.failure = ApiError(10059, "stream not found")
    assert await arrivals.batch((1, 1, 10)) == [0]
    await compare_streams(arrivals.api, [arrivals.incarnation])
    arrivals.api.failure = None
    await compare_streams(arrivals.api, [arrivals.incarnation])
    assert await arrivals.batch((2, 2, 20)) == [FIRST_NS]
