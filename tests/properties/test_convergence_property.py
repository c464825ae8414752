"""Whatever the order, the repeats, the batches, the replicas and the dead letters: the rows are those of the oracle."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from events.subjects import HISTORICAL
from tables.queries import quoted
from tables.schema.partitions import attached
from testkit.evidence import gather_rows
from tests.properties.conftest import Simulation, cases, takes_long
from tests.properties.outcome import Adopted, leave, problems
from tests.properties.replicas import Message, Replica
from tests.properties.worlds import COMPANY, FAMILIES, ROUNDS, Builder, Built, World, worlds

pytestmark = takes_long

# Worlds of one case are played side by side: a round trip for all costs hardly more than one for each.
WORLDS = 24
_TABLES = (
    *("messages", "message_keys", "chats", "chat_steps", "contacts", "agents"),
    *("onboarding_log", "exhausted_events"),
)
# Long enough for an event to reach its dead letter, and that to be exhausted.
DRAIN = 12


@pytest.mark.rule("VER-9")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_delivery_ends_in_the_rows_of_the_model(simulation: Simulation, family: str) -> None:
    """Two replicas at the same time, repeats, dead letters replayed later, history in between."""

    @cases(normal=30, soak=600)
    @given(_groups(family), st.booleans())
    def check(drawn: list[World], forgetful: bool) -> None:
        simulation.replicas[0].stream.forgetful = forgetful
        simulation.play(_play(simulation.replicas, [Builder(world) for world in drawn]))

    check()


def _groups(family: str) -> st.SearchStrategy[list[World]]:
    world = worlds(family, most=9)
    sizes = st.sampled_from((1, *[WORLDS] * 9))  # the first is what a failure shrinks to
    return sizes.flatmap(lambda size: st.lists(world, min_size=size, max_size=size))


async def _play(replicas: Sequence[Replica], built: Sequence[Builder]) -> None:
    stream = replicas[0].stream
    stream.letters.clear()
    adopted = [row for world in built for row in world.adopted]
    await _prepare(replicas, adopted)
    events = [(event, _message(event)) for world in built for event in world.events]
    for turn in range(ROUNDS):
        waiting = stream.waiting()
        await asyncio.gather(
            *(_turn(replica, number, turn, events) for number, replica in enumerate(replicas)),
            *(replica.replay(waiting[number::2]) for number, replica in enumerate(replicas)),
        )
    await _drain(replicas, [message for _, message in events])
    async with replicas[0].database.connection() as connection:
        evidence = await gather_rows(connection, COMPANY)
    for world in built:
        note("\n".join(str(event) for event in world.events) + f"\n{world.adopted}")
    found = problems(COMPANY, [event.event for event, _ in events], adopted, evidence)
    assert not found, found


def _message(built: Built) -> Message:
    publication, version = built.event
    return Message(
        "wa_history_events_stream" if publication.event_type in HISTORICAL else "wa_events_stream",
        publication.subject,
        publication.body,
        version.ns,
        version.sequence,
        made=version.incarnation * 1000,
        half_known=built.half_known,
    )


async def _turn(replica: Replica, number: int, turn: int, events: Iterable[tuple[Built, Message]]) -> None:
    """One round of one replica: what it is given as batches, and what has become a dead letter."""
    mine = [
        (message, arrival.letter)
        for built, message in events
        for arrival in built.arrivals
        if arrival.round == turn and arrival.replica == number
    ]
    await asyncio.gather(
        replica.take([message for message, letter in mine if not letter]),
        replica.on_max_deliveries([message for message, letter in mine if letter]),
    )


async def _drain(replicas: Sequence[Replica], messages: Sequence[Message]) -> None:
    """Deliver what is left again and again, until every message and every dead letter has come to its end."""
    stream = replicas[0].stream
    for turn in range(DRAIN):
        replica = replicas[turn % len(replicas)]
        left = [message for message in messages if not message.outcome]
        if not left and not stream.waiting():
            return
        await replica.take(left)
        await replica.replay(stream.waiting())
    raise AssertionError("some events never come to their end")


async def _prepare(replicas: Sequence[Replica], adopted: Sequence[Adopted]) -> None:
    """Leave nothing of earlier cases, and the rows of the existing service."""
    tenant = replicas[0].tenant
    for replica in replicas:
        replica.tables.messages.keys_complete = not adopted
    # One knows the partitions, the others look for messages in all of them.
    replicas[0].tables.messages.partitions = await attached(replicas[0].database, tenant.schema)
    async with replicas[0].database.transaction() as connection:
        for table in _TABLES:
            await connection.execute(f"DELETE FROM {quoted(tenant.schema)}.{table}")
        await leave(connection, tenant, adopted)
