"""Whatever a body looks like: it is stored, or it is a readable dead letter, or a row of exhausted_events."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import envelope
from events.sanitize import sanitize
from events.subjects import HISTORICAL
from tables.queries import quoted
from tests import builders
from tests.properties.bodies import CORPUS, bodies
from tests.properties.conftest import SOAK, Simulation, cases, takes_long
from tests.properties.replicas import Message, Replica

# Bodies of one case share a batch, as in a worker.
BODIES: Final = 100 if SOAK else 25
# `make soak` asks for at least 20,000 bodies of each type.
CASES: Final = 240 if SOAK else 16
STORED_NS: Final = 1_795_500_200_000_000_000
_sequences = itertools.count(1)

pytestmark = takes_long


@pytest.mark.rule("OUT-1")
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.parametrize("kind", CORPUS)
def test_every_body_ends_stored_dead_lettered_or_exhausted(simulation: Simulation, kind: str) -> None:
    """No body is an unexpected exception, none stays unsettled, and each dead letter can be read back."""
    ends: Counter[str] = Counter()
    body = bodies(kind)
    sizes = st.sampled_from((1, *[BODIES] * 30))
    simulation.play(_seed(simulation.replicas[0]))

    @cases(normal=CASES, soak=CASES)
    @given(sizes.flatmap(lambda size: st.lists(body, min_size=size, max_size=size)))
    def check(drawn: list[bytes]) -> None:
        simulation.play(_play(simulation.replicas[0], kind, drawn, ends))

    check()
    assert ends["panic"] == 0
    assert ends.total() >= (20_000 if SOAK else 300)
    assert ends.keys() >= {"stored", "exhausted"}


async def _seed(replica: Replica) -> None:
    """The rows that updates look for."""
    kinds = ("v1.messages.upsert", "v1.chats.upsert", "v1.contacts.upsert")
    await replica.take([_message(kind, builders.body(CORPUS[kind][0])) for kind in kinds])


def _message(kind: str, body: bytes) -> Message:
    stream = "wa_history_events_stream" if kind in HISTORICAL else "wa_events_stream"
    sequence = next(_sequences)
    return Message(stream, f"{kind}.{builders.COMPANY}", body, STORED_NS + sequence, sequence)


async def _play(replica: Replica, kind: str, drawn: list[bytes], ends: Counter[str]) -> None:
    """Handle a batch at its last try, then its dead letters at theirs."""
    stream = replica.stream
    stream.letters.clear()
    stream.forgetful = False
    replica.meter.errors.clear()
    messages = [_message(kind, body) for body in drawn]
    since = await _exhausted(replica)
    await replica.take(messages, last_try=True)
    assert replica.meter.errors["panic"] == 0
    dead_letters = stream.waiting()
    # A body that is JSON is cleaned on its way, and loses the space around it.
    texts = {
        form for body in drawn for form in (bytes(body), sanitize(body), sanitize(body).strip(b" \t\r\n"))
    }
    for letter in dead_letters:
        _check_envelope(kind, letter, texts)
    await replica.replay(dead_letters, attempt=9)
    assert all(message.outcome in ("ack", "term") for message in (*messages, *dead_letters))
    replayed = sum(letter.outcome == "ack" for letter in dead_letters)
    rows = await _exhausted(replica, since)
    straight = sum(message.outcome == "term" for message in messages)
    assert rows == straight + len(dead_letters) - replayed
    ends.update(
        {"stored": len(messages) - len(dead_letters) - straight, "replayed": replayed, "exhausted": rows}
    )


def _check_envelope(kind: str, message: Message, texts: set[bytes]) -> None:
    """It is JSON of the promised fields, without NUL, and gives the event back."""
    fields = json.loads(message.data)
    assert fields["source_subject"] == f"{kind}.{builders.COMPANY}"
    assert fields["error"].partition(": ")[0] in ("fatal", "retryable")
    letter = envelope.decode(message.data)
    original = envelope.original(letter)
    if kind not in HISTORICAL:
        # A body that is nothing but a JSON string, or null, has lost its quotes.
        assert original in texts or not original or json.dumps(original.decode()).encode() in texts
    msgspec.json.decode(letter.payload or b"null", type=msgspec.Raw)


async def _exhausted(replica: Replica, since: int | None = None) -> int:
    """The last id of exhausted_events, or how many rows are behind it."""
    what = "COALESCE(max(id), 0)" if since is None else "count(*)"
    async with replica.database.connection() as connection:
        return int(
            await connection.fetchval(
                f"SELECT {what} FROM {quoted(replica.tenant.schema)}.exhausted_events WHERE id > $1",
                since or 0,
            )
        )
