"""What is started for a consumer, and what is left of a try that failed."""

from __future__ import annotations

from typing import Any, cast

import pytest

from events.delivery import Delivery
from events.errors import BrokerError
from events.subjects import Tenant
from streams.jetstream.broker import Broker
from streams.jetstream.reconciler import Reconciler
from streams.jetstream.specs import ConsumerSpec, consumers
from streams.lifecycle.sources import Sources
from tests.reconcile import default_settings

SPEC = consumers(default_settings(), Tenant("Kopi"))[0]


class Server:
    """Has the consumer, with a limit of deliveries."""

    async def api(self, subject: str, body: object = None) -> dict[str, Any]:
        return {"config": {"max_deliver": 5}}

    @property
    def messaging(self) -> Server:
        return self

    async def wait_connected(self) -> None:
        """It is connected."""

    async def subscribe(self, subject: str, *_: object, **__: object) -> None:
        raise BrokerError("NATS denies a right")

    async def consumer(self, spec: ConsumerSpec) -> None:
        """Nothing to make."""


async def test_a_listener_that_could_not_start_is_left_nowhere() -> None:
    async def on_max_deliveries(spec: ConsumerSpec, delivery: Delivery) -> None:
        raise AssertionError

    sources = Sources(
        broker=cast(Broker, Server()),
        reconciler=cast(Reconciler, Server()),
        sources={},
        on_max_deliveries=on_max_deliveries,
    )
    async with sources:
        for _ in range(3):
            with pytest.raises(BrokerError):
                await sources.make_consumer(SPEC)
        assert not sources._children
