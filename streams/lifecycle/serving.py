"""Starting a source once its consumer is there."""

from __future__ import annotations

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


class Serving:
    """Makes consumers, listens for what those with a limit of their own give up, and starts sources.

    `run` starts a service as part of what drains all sources at once, `drop` takes one out of it that did not start;
    `started` lists the sources that were started, also while they begin.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        reconciler: Reconciler,
        sources: Mapping[ConsumerSpec, PullSource],
        given_up: Callable[[ConsumerSpec, Delivery], Awaitable[None]],
        run: Callable[[Service], Awaitable[object]],
        drop: Callable[[Service], Awaitable[object]],
    ) -> None:
        self._broker = broker
        self._reconciler = reconciler
        self._sources = sources
        self._given_up = given_up
        self._run = run
        self._drop = drop
        self.started: list[PullSource] = []

    async def consumer(self, spec: ConsumerSpec) -> None:
        """Make or correct a consumer. Raises `TopologyError` and `BrokerFailed`."""
        await self._reconciler.consumer(spec)
        if await has_delivery_limit(self._broker, spec):
            await self._listen(spec)

    async def _listen(self, spec: ConsumerSpec) -> None:
        watch = MaxDeliveriesListener(
            broker=self._broker,
            stream=spec.stream,
            durable=spec.durable,
            on_max_deliveries=partial(self._given_up, spec),
        )
        try:
            await self._run(watch)
        except Exception:
            # The next try makes another one.
            await self._drop(watch)
            raise

    async def serve(self, spec: ConsumerSpec) -> None:
        """Start the consumer's source."""
        # First: a stop that comes meanwhile has to drain it.
        self.started.append(self._sources[spec])
        await self._run(self._sources[spec])
