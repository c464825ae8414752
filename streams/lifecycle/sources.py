"""The sources of a worker: each is started once its consumer is there, and all are drained together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from mode import Service

from events.delivery import Delivery
from streams.jetstream.broker import Broker
from streams.jetstream.consumer_state import has_delivery_limit
from streams.jetstream.max_deliveries import MaxDeliveriesListener
from streams.jetstream.pull_source import PullSource
from streams.jetstream.reconciler import Reconciler
from streams.jetstream.specs import ConsumerSpec


class Sources(Service):
    """Makes consumers, starts sources, and listens for messages that reach the limit of a consumer.

    `active` lists the sources that were started, also while they begin.
    """

    def __init__(
        self,
        broker: Broker,
        reconciler: Reconciler,
        sources: Mapping[ConsumerSpec, PullSource],
        on_max_deliveries: Callable[[ConsumerSpec, Delivery], Awaitable[None]],
    ) -> None:
        super().__init__()
        self._broker = broker
        self._reconciler = reconciler
        self._sources = sources
        self._on_max_deliveries = on_max_deliveries
        self.active: list[PullSource] = []

    async def make_consumer(self, spec: ConsumerSpec) -> None:
        """Make or correct a consumer. Raises `TopologyError` and `BrokerError`."""
        await self._reconciler.consumer(spec)
        if await has_delivery_limit(self._broker, spec):
            await self._listen(spec)

    async def _listen(self, spec: ConsumerSpec) -> None:
        listener = MaxDeliveriesListener(
            broker=self._broker,
            stream=spec.stream,
            durable=spec.durable,
            on_max_deliveries=partial(self._on_max_deliveries, spec),
        )
        try:
            await self.add_runtime_dependency(listener)
        except Exception:
            # The next attempt makes another one.
            await self.remove_dependency(listener)
            raise

    async def start_source(self, spec: ConsumerSpec) -> None:
        """Start the consumer's source."""
        # First: a stop that comes meanwhile has to drain it.
        self.active.append(self._sources[spec])
        await self.add_runtime_dependency(self._sources[spec])

    async def drain(self) -> None:
        """Drain all sources at once: one after the other they would need the sum of their times."""
        await asyncio.gather(*(source.stop() for source in self.active if source.started))
