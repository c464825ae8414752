"""Planning and applying changes to streams and consumers.

What is missing is created, subjects are added, our own consumers are updated in place. Nothing is deleted, and settings
of streams that others made are left with a warning.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from streams.config.settings import Settings
from streams.jetstream.changes import EXISTS, TopologyChange, TopologyError, look_up, refused
from streams.jetstream.consumer_changes import plan_consumer
from streams.jetstream.predecessors import predecessors
from streams.jetstream.specs import ConsumerSpec, StreamSpec, streams
from streams.jetstream.stream_changes import compare_stream, describe
from streams.jetstream.stream_reader import Api, ApiError

logger = logging.getLogger(__name__)


async def description(api: Api, settings: Settings) -> list[str]:
    """Our streams on the server, a line each. Raises `TopologyError` and `BrokerError`."""
    return [describe(spec.name, await look_up(api, "stream", spec.name)) for spec in streams(settings)]


async def plan(
    api: Api,
    settings: Settings,
    specs: Iterable[ConsumerSpec],
    nodes: int = 1,
) -> list[TopologyChange]:
    """The changes that are needed for these consumers. Raises `TopologyError` and `BrokerError`.

    `nodes`: how many NATS nodes there are, for the replicas of streams that are created.
    """
    consumer_changes: list[TopologyChange] = []
    missing: Counter[str] = Counter()
    for consumer in specs:
        changes = await plan_consumer(api, consumer)
        missing[consumer.stream] += sum(change.action in ("create", "take_over") for change in changes)
        consumer_changes += changes
    stream_changes: list[TopologyChange] = []
    for stream in streams(settings, nodes):
        found = await look_up(api, "stream", stream.name)
        stream_changes += compare_stream(stream, found, missing[stream.name])
    return stream_changes + consumer_changes


async def apply(api: Api, changes: Sequence[TopologyChange]) -> None:
    """Make the changes, and log them and the warnings. Raises `TopologyError` and `BrokerError`."""
    for change in changes:
        if change.request is None:
            logger.warning("%s %s: %s", change.kind, change.name, change.text)
            continue
        try:
            await api.api(*change.request)
        except ApiError as error:
            # Another replica created it meanwhile; it is compared at the next start.
            if change.action in ("create", "take_over") and error.code in EXISTS:
                continue
            stream = change.request[0].split(".")[2]
            raise refused(change.kind, change.name, stream, error, change.text) from error
        logger.info("%s %s: %s", change.kind, change.name, change.text)


async def plan_stream(api: Api, spec: StreamSpec) -> list[TopologyChange]:
    """The changes to one stream. Raises `TopologyError` and `BrokerError`."""
    return compare_stream(spec, await look_up(api, "stream", spec.name))


async def drop_old(api: Api, specs: Iterable[ConsumerSpec]) -> list[TopologyChange]:
    """Delete the old durables whose successors exist; the existing service's shared one of the DLQ stays.

    Raises `TopologyError` if a successor is missing, and `BrokerError`.
    """
    changes = []
    for spec in specs:
        for old in await predecessors(api, spec):
            if await look_up(api, "consumer", spec.stream, spec.durable) is None:
                raise TopologyError(
                    f"consumer {old.name} keeps the position for {spec.durable}, "
                    "which is not there yet: start the worker first"
                )
            request = (f"CONSUMER.DELETE.{spec.stream}.{old.name}", None)
            changes.append(TopologyChange("consumer", old.name, "delete", "delete the old durable", request))
    await apply(api, changes)
    return changes
