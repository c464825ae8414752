"""Our streams and consumers on the server of a test, and how far the consumers are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from events.subjects import Tenant
from streams.config.settings import Settings
from streams.jetstream.changes import TopologyChange
from streams.jetstream.consumer_state import ConsumerStates
from streams.jetstream.specs import consumers
from streams.jetstream.stream_reader import Api
from streams.jetstream.topology import apply, plan


def default_settings(**changed: Any) -> Settings:
    """The settings of a worker for one company, as they are unless somebody changes them."""
    needed = {"POSTGRES_DSN": "postgres://db/wa", "COMPANY_ID": "KopiNusa"}
    return replace(Settings.from_env(needed), **changed)


class Lag(NamedTuple):
    """Messages that are not delivered yet, and those that are delivered but not settled."""

    pending: int
    ack_pending: int


async def read_lag(api: Api, stream: str, durable: str) -> Lag:
    """How far a consumer is."""
    state = await ConsumerStates().read(api, stream, durable)
    return Lag(state.num_pending, state.num_ack_pending)


async def reconcile(api: Api, settings: Settings, tenants: Iterable[Tenant | None]) -> list[TopologyChange]:
    """Plan and apply; what was planned. None among the tenants: the shared consumers of a fleet."""
    specs = [spec for tenant in tenants for spec in consumers(settings, tenant)]
    changes = await plan(api, settings, specs)
    await apply(api, changes)
    return changes
