"""Our streams and consumers on the server of a test."""

from __future__ import annotations

from collections.abc import Iterable

from events.subjects import Tenant
from streams.jetstream.changes import TopologyChange
from streams.jetstream.specs import TopologyConfig
from streams.jetstream.stream_reader import Api
from streams.jetstream.topology import apply, plan


async def reconcile(api: Api, config: TopologyConfig, tenants: Iterable[Tenant]) -> list[TopologyChange]:
    """Plan and apply; what was planned."""
    changes = await plan(api, config, tenants)
    await apply(api, changes)
    return changes
