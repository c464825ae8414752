"""What is started for a consumer, and what is left of a try that failed."""

from __future__ import annotations

from typing import Any, cast

import pytest
from mode import Service

from events.delivery import Delivery
from events.errors import BrokerError
from events.subjects import Tenant
from streams.jetstream.broker import Broker
from streams.jetstream.reconciler import Reconciler
from streams.jetstream.specs import ConsumerSpec, TopologyConfig, consumers
from streams.lifecycle.serving import Serving

SPEC = consumers(TopologyConfig(), Tenant("Kopi"))[0]


class Server:
    """Has the consumer, with a limit of deliveries."""

    async def api(self, subject: str, body: object = None) -> dict[str, Any]:
        return {"config": {"max_deliver": 5}}

    async def consumer(self, spec: ConsumerSpec) -> None:
        """Nothing to make."""


async def test_a_service_that_could_not_start_is_left_nowhere() -> None:
    running: list[Service] = []

    async def run(service: Service) -> None:
        running.append(service)
        raise BrokerError("NATS denies a right")

    async def drop(service: Service) -> None:
        running.remove(service)

    async def given_up(spec: ConsumerSpec, delivery: Delivery) -> None:
        raise AssertionError

    serving = Serving(
        broker=cast(Broker, Server()),
        reconciler=cast(Reconciler, Server()),
        sources={},
        given_up=given_up,
        run=run,
        drop=drop,
    )
    for _ in range(3):
        with pytest.raises(BrokerError):
            await serving.consumer(SPEC)
    assert not running
