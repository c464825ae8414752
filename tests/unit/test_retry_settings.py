"""Which settings of retries reach the events of which consumer, through the parts as the worker puts them together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from events.delivery import Batch
from events.subjects import ConsumerType
from streams.config.settings import Settings
from streams.container import Container
from tables.errors import QueryTimeout
from tables.mutations import Mutation, WriteRejection
from tests import builders
from tests.unit.fakes import TENANT, FakeDelivery, FakePublisher, FakeTables, batch, quicken, until

# No two alike, so that none can stand for another.
SETTINGS = {
    "NATS_REALTIME_MAXDELIVER": "7",
    "NATS_REALTIME_NAKBASEDELAY": "2s",
    "NATS_REALTIME_NAKMAXDELAY": "9s",
    "NATS_HISTORICAL_MAXDELIVER": "8",
    "NATS_HISTORICAL_NAKBASEDELAY": "3s",
    "NATS_HISTORICAL_NAKMAXDELAY": "13s",
    "NATS_DLQMAXDELIVER": "3",
    "NATS_DLQBASEDELAYMINUTES": "11",
    "NATS_DLQMAXDELAYMINUTES": "17",
}


@pytest.fixture
def writes() -> list[Sequence[Mutation]]:
    """What was to be written; all of it failed."""
    return []


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch, writes: list[Sequence[Mutation]]) -> Container:
    """The worker's parts around tables on which every write fails, and a dead-letter stream that takes all."""

    def too_slow(changes: Sequence[Mutation]) -> list[WriteRejection]:
        writes.append(changes)
        raise QueryTimeout("slow", "57014")

    quicken(monkeypatch)
    servers = {"COMPANY_ID": builders.COMPANY, "POSTGRES_DSN": "postgres://nobody@127.0.0.1:1/wa"}
    container = Container(Settings.from_env({**servers, **SETTINGS}))
    monkeypatch.setitem(container.tables, TENANT, FakeTables(judge=too_slow).of(TENANT))
    monkeypatch.setattr(container.broker, "publish", FakePublisher().publish)
    return container


@pytest.mark.rule("OUT-3")
@pytest.mark.parametrize(
    ("consumer_type", "event_type", "delays"),
    [
        ("realtime", "v1.chats.upsert", [2.0, 4.0, 8.0, 9.0, 9.0, 9.0]),
        ("historical", "v1.history.chats", [3.0, 6.0, 12.0, 13.0, 13.0, 13.0, 13.0]),
    ],
)
async def test_a_live_event_is_tried_again_by_the_settings_of_its_own_consumer(
    container: Container, consumer_type: ConsumerType, event_type: str, delays: list[float]
) -> None:
    async def channel(delivery: FakeDelivery) -> AsyncIterator[Batch]:
        yield batch(delivery, consumer_type=consumer_type)
        await until(lambda: delivery.settlements)

    async def settled(attempt: int) -> list[tuple[str, float]]:
        delivery = FakeDelivery(event_type, num_delivered=attempt)
        async for _ in container.routing.run(channel(delivery)):
            pass
        return delivery.settlements

    attempts = range(1, len(delays) + 2)
    assert [await settled(attempt) for attempt in attempts] == [
        *([("nak", delay)] for delay in delays),
        [("ack", 0.0)],  # a dead letter now
    ]


def dead_letter(attempt: int) -> FakeDelivery:
    letter = builders.envelope(builders.chat(), source_subject="v1.chats.upsert", retry_count=0)
    subject = f"v1.dlq.{builders.COMPANY}"
    return FakeDelivery(subject=subject, data=builders.body(letter), num_delivered=attempt)


@pytest.mark.rule("DLQ-6")
@pytest.mark.parametrize(("attempt", "minutes"), [(1, 11), (2, 17)])
async def test_a_dead_letter_is_put_off_by_the_settings_of_the_dlq(
    container: Container, attempt: int, minutes: float
) -> None:
    delivery = dead_letter(attempt)
    await container.replay.handle(TENANT, delivery)
    [(how, delay)] = delivery.settlements
    assert how == "nak"
    assert 0.8 * minutes <= delay / 60 <= 1.2 * minutes


@pytest.mark.rule("DLQ-6", "OUT-10")
@pytest.mark.parametrize(("attempt", "tried"), [(3, True), (6, True), (7, False)])
async def test_a_dead_letter_is_parked_by_the_settings_of_the_dlq(
    container: Container, writes: list[Sequence[Mutation]], attempt: int, *, tried: bool
) -> None:
    delivery = dead_letter(attempt)
    await container.replay.handle(TENANT, delivery)
    assert delivery.outcome == "term"
    assert bool(writes) == tried
