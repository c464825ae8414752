"""Makes one stream or one consumer at a time, at the start and when it is gone, and says once what is left as it is."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from events.errors import BrokerError
from streams.jetstream.changes import TopologyChange, TopologyError
from streams.jetstream.consumer_state import ConsumerStates
from streams.jetstream.specs import ConsumerSpec, TopologyConfig, streams
from streams.jetstream.stream_reader import Api
from streams.jetstream.topology import apply, plan_consumer, plan_stream

logger = logging.getLogger(__name__)


class ClusterApi(Api, Protocol):
    """The JetStream API of a cluster, as `streams.jetstream.broker.Broker` offers it."""

    async def count_nodes(self) -> int:
        """How many NATS nodes there are."""
        ...


class SourceReadiness(Protocol):
    """Told of sources whose stream or consumer is gone."""

    def unanswered(self, source: str, reason: str) -> None:
        """It cannot be made again, for this reason."""
        ...

    def answered(self, source: str) -> None:
        """It is there again."""
        ...


class Reconciler:
    """Brings single streams and consumers to what we need; see `streams.jetstream.topology`."""

    def __init__(
        self,
        *,
        api: ClusterApi,
        config: TopologyConfig,
        consumer_states: ConsumerStates,
        readiness: SourceReadiness,
    ) -> None:
        self._api = api
        self._config = config
        self._standings = consumer_states
        self._readiness = readiness
        self._told: set[tuple[str, str]] = set()
        # The server counts what it is asked to make at once against no limit.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def stream(self, name: str) -> None:
        """Make or extend this one of our streams. Raises `TopologyError` and `BrokerError`."""
        for spec in streams(self._config, await self._api.count_nodes()):
            if spec.name == name:
                await self._ensure("streams", partial(plan_stream, self._api, spec))

    async def consumer(self, spec: ConsumerSpec) -> None:
        """Make or correct this consumer. Raises `TopologyError` and `BrokerError`."""
        plan = partial(plan_consumer, self._api, spec, self._standings)
        await self._ensure(f"consumers of {spec.stream}", plan)

    async def _ensure(self, turn: str, plan: Callable[[], Awaitable[list[TopologyChange]]]) -> None:
        # Asked for beside the turns: what does not answer must not hold up the others.
        changes = await plan()
        if any(change.request for change in changes):
            async with self._turns[turn]:
                changes = await plan()
                await apply(self._api, [change for change in changes if change.request])
        self._tell([change for change in changes if not change.request])

    async def restore(self, spec: ConsumerSpec) -> None:
        """Make a consumer that is gone again, and its stream; a refusal is told on `/ready`, and not raised."""
        source = f"{spec.role} {spec.tenant.company}"
        try:
            await self.stream(spec.stream)
            await self.consumer(spec)
        except (TopologyError, BrokerError) as error:
            self._readiness.unanswered(source, str(error))
        else:
            self._readiness.answered(source)

    def _tell(self, warnings: Sequence[TopologyChange]) -> None:
        for change in warnings:
            if (told := (change.name, change.text)) not in self._told:
                self._told.add(told)
                logger.warning("%s %s: %s", change.kind, change.name, change.text)
