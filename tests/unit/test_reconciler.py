"""Single streams and consumers: asked for one at a time, warned of once, restored without raising."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from events.errors import BrokerError
from events.subjects import Tenant
from streams.jetstream.broker import Broker
from streams.jetstream.changes import TopologyError
from streams.jetstream.consumer_state import ConsumerStates
from streams.jetstream.reconciler import Reconciler
from streams.jetstream.specs import consumers
from streams.jetstream.stream_reader import ApiError
from tests.reconcile import default_settings

SETTINGS = default_settings()
SPECS = consumers(SETTINGS, Tenant("Kopi"))


class Server:
    """Has nothing at first, makes what it is asked for unless it `refuses`, and counts what it makes at one time.

    Of what is `silent` it says nothing.
    """

    def __init__(self) -> None:
        self.there: dict[str, Any] = {}
        self.refuses: ApiError | None = None
        self.silent: set[str] = set()
        self.busy = self.most = 0

    async def count_nodes(self) -> int:
        return 1

    async def api(self, subject: str, body: object = None) -> dict[str, Any]:
        kind, action, name = subject.split(".", 2)
        if name in self.silent:
            await asyncio.Event().wait()
        self.busy += action != "INFO"
        self.most = max(self.most, self.busy)
        await asyncio.sleep(0)
        self.busy -= action != "INFO"
        if action == "INFO":
            if name not in self.there:
                raise ApiError(10059 if kind == "STREAM" else 10014, "not found")
            return {"config": self.there[name], "state": {"consumer_count": 0}}
        if self.refuses is not None:
            raise self.refuses
        assert isinstance(body, dict)
        self.there[name] = body.get("config", body)
        return {}


def reconciler(server: Server, consumer_states: ConsumerStates | None = None) -> Reconciler:
    return Reconciler(cast(Broker, server), SETTINGS, consumer_states or ConsumerStates())


async def test_streams_and_consumers_are_made_one_at_a_time() -> None:
    server = Server()
    streams = reconciler(server)
    await asyncio.gather(*(streams.stream(spec.stream) for spec in SPECS))
    assert (len(server.there), server.most) == (3, 1)
    others = [consumers(SETTINGS, Tenant(name))[0] for name in ("A", "B", "C")]
    await asyncio.gather(*(streams.consumer(spec) for spec in others))
    assert (len(server.there), server.most) == (6, 1)


@pytest.mark.parametrize("kind", ["stream", "consumer"])
async def test_what_gives_no_answer_holds_up_no_other(kind: str) -> None:
    server = Server()
    made = reconciler(server)
    silent, other = (consumers(SETTINGS, Tenant(name))[0] for name in ("A", "B"))
    server.silent = {silent.stream, f"{silent.stream}.{silent.durable}"}
    first = asyncio.create_task(made.stream(silent.stream) if kind == "stream" else made.consumer(silent))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await (made.stream(SETTINGS.dlq_stream) if kind == "stream" else made.consumer(other))
    first.cancel()
    await asyncio.wait({first})
    assert len(server.there) == 1


async def test_what_is_left_as_it_is_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    streams = reconciler(server)
    await streams.stream(SETTINGS.dlq_stream)
    server.there[SETTINGS.dlq_stream] = {**server.there[SETTINGS.dlq_stream], "persist_mode": "async"}
    for _ in range(3):
        await streams.stream(SETTINGS.dlq_stream)
    assert len([record for record in caplog.records if "persist_mode" in record.message]) == 1


async def test_a_consumer_is_restored_with_its_stream_once_the_server_takes_them() -> None:
    server = Server()
    server.refuses = ApiError(10026, "maximum consumers limit reached")
    with pytest.raises(TopologyError, match="10026"):
        await reconciler(server).restore(SPECS[0])
    server.refuses = None
    await reconciler(server).restore(SPECS[0])
    assert set(server.there) == {SETTINGS.realtime_stream, f"{SETTINGS.realtime_stream}.wa_realtime_Kopi"}


@pytest.mark.parametrize(
    "failure", [BrokerError("NATS did not answer: TimeoutError"), ApiError(10008, "away")]
)
async def test_a_consumer_is_not_made_from_the_start_because_nobody_says_where_it_stood(
    failure: Exception,
) -> None:
    spec = SPECS[0]
    consumer_states = ConsumerStates()
    consumer_states.note(
        spec.stream,
        spec.durable,
        {"config": {}, "ack_floor": {"stream_seq": 7}, "num_pending": 0, "num_ack_pending": 0},
    )

    class Silent(Server):
        async def api(self, subject: str, body: object = None) -> dict[str, Any]:
            if subject.startswith("STREAM.MSG.GET."):
                raise failure
            return await super().api(subject, body)

    server = Silent()
    with pytest.raises((TopologyError, BrokerError)):
        await reconciler(server, consumer_states).restore(spec)
    assert not any(spec.durable in name for name in server.there)
