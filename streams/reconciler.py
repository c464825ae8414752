"""Makes one stream or one consumer at a time, at the start and when it is gone, and says once what is left as it is."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

from streams.changes import Change, TopologyError
from streams.errors import BrokerFailed
from streams.specs import ConsumerSpec, TopologyConfig, streams
from streams.standing import Standings
from streams.topology import ensure_consumer, ensure_stream

logger = logging.getLogger(__name__)


class ClusterApi(Protocol):
    """The JetStream API of a cluster, as `streams.broker.Broker` offers it."""

    @property
    def nodes(self) -> int:
        """How many NATS nodes there are."""
        ...

    async def api(self, subject: str, body: object = None) -> dict[str, Any]:
        """The answer to a request. Raises `ApiError` and `BrokerFailed`."""
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
    """Brings single streams and consumers to what we need; see `streams.topology`."""

    def __init__(
        self, *, api: ClusterApi, config: TopologyConfig, standings: Standings, readiness: SourceReadiness
    ) -> None:
        self._api = api
        self._config = config
        self._standings = standings
        self._readiness = readiness
        self._told: set[tuple[str, str]] = set()
        # The server counts what it is asked for at once against no limit.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def stream(self, name: str) -> None:
        """Make or extend this one of our streams. Raises `TopologyError` and `BrokerFailed`."""
        for spec in streams(self._config, self._api.nodes):
            if spec.name == name:
                async with self._turns["streams"]:
                    self._tell(await ensure_stream(self._api, spec))

    async def consumer(self, spec: ConsumerSpec) -> None:
        """Make or correct this consumer. Raises `TopologyError` and `BrokerFailed`."""
        async with self._turns[f"consumers of {spec.stream}"]:
            self._tell(await ensure_consumer(self._api, spec, self._standings))

    async def restore(self, spec: ConsumerSpec) -> None:
        """Make a consumer that is gone again, and its stream; a refusal is told on `/ready`, and not raised."""
        source = f"{spec.role} {spec.tenant.company}"
        try:
            await self.stream(spec.stream)
            await self.consumer(spec)
        except (TopologyError, BrokerFailed) as error:
            self._readiness.unanswered(source, str(error))
        else:
            self._readiness.answered(source)

    def _tell(self, warnings: Sequence[Change]) -> None:
        for change in warnings:
            if (told := (change.name, change.text)) not in self._told:
                self._told.add(told)
                logger.warning("%s %s: %s", change.kind, change.name, change.text)
