"""How a server is brought to the streams and consumers we need without losing anything.

`plan` compares and decides, `apply` does it: what is missing is made, subjects are added, our own consumers'
numbers are updated in place. Nothing is deleted, and other people's stream settings are left with a warning.
`reconcile` does it for all companies at once; `plan_stream` and `plan_consumer` are about one thing alone, so that
what is refused holds up nothing else.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from events.subjects import Tenant
from streams.jetstream.changes import EXISTS, TopologyChange, TopologyError, look_up, refused
from streams.jetstream.consumer_changes import plan_consumer
from streams.jetstream.consumer_state import ConsumerStates
from streams.jetstream.specs import NANOSECONDS, ConsumerSpec, StreamSpec, TopologyConfig, consumers, streams
from streams.jetstream.stream_changes import compare_stream, describe
from streams.jetstream.stream_reader import Api, ApiError, get_message

__all__ = [
    "Lag",
    "TopologyChange",
    "TopologyError",
    "apply",
    "description",
    "drop_old",
    "has_limit",
    "lag",
    "oldest_age",
    "plan",
    "plan_consumer",
    "plan_stream",
    "reconcile",
]

logger = logging.getLogger(__name__)


class Lag(NamedTuple):
    """What a consumer has yet to do."""

    pending: int
    ack_pending: int


async def description(api: Api, config: TopologyConfig) -> list[str]:
    """Our streams as they are on the server, a line each. Raises `TopologyError` and `BrokerError`."""
    return [describe(spec.name, await look_up(api, "stream", spec.name)) for spec in streams(config)]


async def plan(
    api: Api,
    config: TopologyConfig,
    tenants: Iterable[Tenant],
    consumer_states: ConsumerStates | None = None,
    nodes: int = 1,
) -> list[TopologyChange]:
    """What `apply` has to do. Raises `TopologyError` and `BrokerError`.

    `consumer_states`: where a consumer that is missing now begins again, if it stood somewhere before.
    `nodes`: how many NATS nodes there are, for the replicas of streams that are made.
    """
    ours: list[TopologyChange] = []
    missing: Counter[str] = Counter()
    for tenant in tenants:
        for consumer in consumers(config, tenant):
            changes = await plan_consumer(api, consumer, consumer_states)
            missing[consumer.stream] += sum(change.action in ("create", "take_over") for change in changes)
            ours += changes
    theirs: list[TopologyChange] = []
    for stream in streams(config, nodes):
        found = await look_up(api, "stream", stream.name)
        theirs += compare_stream(stream, found, missing[stream.name])
    return theirs + ours


async def apply(api: Api, changes: Sequence[TopologyChange]) -> None:
    """Do what was planned and log it. Raises `TopologyError` and `BrokerError`."""
    for change in changes:
        if change.request is None:
            logger.warning("%s %s: %s", change.kind, change.name, change.text)
            continue
        try:
            await api.api(*change.request)
        except ApiError as error:
            # Another replica was faster; what it made is compared at the next start.
            if change.action in ("create", "take_over") and error.code in EXISTS:
                continue
            stream = change.request[0].split(".")[2]
            raise refused(change.kind, change.name, stream, error, change.text) from error
        logger.info("%s %s: %s", change.kind, change.name, change.text)


async def reconcile(
    api: Api,
    config: TopologyConfig,
    tenants: Iterable[Tenant],
    consumer_states: ConsumerStates | None = None,
    nodes: int = 1,
) -> list[TopologyChange]:
    """Plan and apply; what was planned. Raises `TopologyError` and `BrokerError`."""
    changes = await plan(api, config, tenants, consumer_states, nodes)
    await apply(api, changes)
    return changes


async def plan_stream(api: Api, spec: StreamSpec) -> list[TopologyChange]:
    """What to do about one stream. Raises `TopologyError` and `BrokerError`."""
    return compare_stream(spec, await look_up(api, "stream", spec.name))


async def drop_old(api: Api, config: TopologyConfig, tenants: Iterable[Tenant]) -> list[TopologyChange]:
    """Delete the old durables of the tenants whose successors exist; the shared one of the DLQ stays.

    Raises `TopologyError` if a successor is missing, and `BrokerError`.
    """
    changes = []
    for tenant in tenants:
        for spec in consumers(config, tenant):
            if spec.role == "dlq" or spec.predecessor == spec.durable:
                continue
            if await look_up(api, "consumer", spec.stream, spec.predecessor) is None:
                continue
            if await look_up(api, "consumer", spec.stream, spec.durable) is None:
                raise TopologyError(
                    f"consumer {spec.predecessor} keeps the position for {spec.durable}, "
                    "which is not there yet: start the worker first"
                )
            request = (f"CONSUMER.DELETE.{spec.stream}.{spec.predecessor}", None)
            changes.append(
                TopologyChange("consumer", spec.predecessor, "delete", "delete the old durable", request)
            )
    await apply(api, changes)
    return changes


async def has_limit(api: Api, spec: ConsumerSpec) -> bool:
    """Whether somebody gave this consumer a limit of deliveries. Raises `TopologyError` and `BrokerError`."""
    found = await look_up(api, "consumer", spec.stream, spec.durable)
    return found is not None and found["config"].get("max_deliver", -1) > 0


async def lag(api: Api, stream: str, durable: str, consumer_states: ConsumerStates | None = None) -> Lag:
    """Messages not delivered yet, and delivered but not settled; also noted in `consumer_states`.

    Raises `ApiError` and `BrokerError`.
    """
    info = await api.api(f"CONSUMER.INFO.{stream}.{durable}")
    if consumer_states is not None:
        consumer_states.note(stream, durable, info)
    return Lag(info["num_pending"], info["num_ack_pending"])


async def oldest_age(api: Api, stream: str, durable: str, subject: str) -> float:
    """Seconds since the oldest unsettled message of a consumer of one subject was stored; 0 without one.

    Raises `ApiError` and `BrokerError`.
    """
    info = await api.api(f"CONSUMER.INFO.{stream}.{durable}")
    if not info["num_pending"] + info["num_ack_pending"]:
        return 0.0
    oldest = await get_message(api, stream, info["ack_floor"]["stream_seq"] + 1, subject)
    return 0.0 if oldest is None else max(time.time() - oldest.stored_ns / NANOSECONDS, 0.0)
