"""Creating and updating single streams and consumers, at the start and when they are gone."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from streams.config.settings import Settings
from streams.jetstream.broker import Broker
from streams.jetstream.changes import TopologyChange
from streams.jetstream.consumer_changes import plan_consumer
from streams.jetstream.consumer_state import ConsumerStates
from streams.jetstream.specs import ConsumerSpec, streams
from streams.jetstream.topology import apply, plan_stream

logger = logging.getLogger(__name__)


class Reconciler:
    """Creates or updates one stream or consumer at a time; logs each warning once."""

    def __init__(self, broker: Broker, settings: Settings, consumer_states: ConsumerStates) -> None:
        self._broker = broker
        self._settings = settings
        self._consumer_states = consumer_states
        self._logged: set[tuple[str, str]] = set()
        # The server checks limits against what exists, not against what it is creating at the same time.
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def stream(self, name: str) -> None:
        """Create or extend this one of our streams. Raises `TopologyError` and `BrokerError`."""
        for spec in streams(self._settings, await self._broker.count_nodes()):
            if spec.name == name:
                await self._ensure("streams", partial(plan_stream, self._broker, spec))

    async def consumer(self, spec: ConsumerSpec) -> None:
        """Create or update this consumer. Raises `TopologyError` and `BrokerError`."""
        plan = partial(plan_consumer, self._broker, spec, self._consumer_states)
        await self._ensure(f"consumers of {spec.stream}", plan)

    async def _ensure(self, lock: str, plan: Callable[[], Awaitable[list[TopologyChange]]]) -> None:
        # First without the lock: a stream that does not answer must not block the others.
        changes = await plan()
        if any(change.request for change in changes):
            async with self._locks[lock]:
                changes = await plan()
                await apply(self._broker, [change for change in changes if change.request])
        self._log([change for change in changes if not change.request])

    async def restore(self, spec: ConsumerSpec) -> None:
        """Create a deleted consumer again, and its stream. Raises `TopologyError` and `BrokerError`."""
        await self.stream(spec.stream)
        await self.consumer(spec)

    def _log(self, warnings: Sequence[TopologyChange]) -> None:
        for change in warnings:
            if (key := (change.name, change.text)) not in self._logged:
                self._logged.add(key)
                logger.warning("%s %s: %s", change.kind, change.name, change.text)
