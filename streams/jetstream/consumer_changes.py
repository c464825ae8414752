"""The comparison of a consumer on the server with its specification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streams.jetstream.changes import Action, Request, TopologyChange, TopologyError, look_up
from streams.jetstream.consumer_state import ConsumerStates
from streams.jetstream.predecessors import position
from streams.jetstream.specs import ConsumerSpec
from streams.jetstream.stream_reader import Api


async def plan_consumer(
    api: Api, spec: ConsumerSpec, consumer_states: ConsumerStates | None = None
) -> list[TopologyChange]:
    """The changes to one of our consumers. Raises `TopologyError` and `BrokerError`.

    A missing one begins at the position that it has in `consumer_states`, if any.
    """
    found = await look_up(api, "consumer", spec.stream, spec.durable)
    if found is None:
        return [await _create(api, spec, consumer_states)]
    return _compare(spec, found["config"])


async def _create(api: Api, spec: ConsumerSpec, consumer_states: ConsumerStates | None) -> TopologyChange:
    """Begin at its own former position, else at that of a predecessor, else at the start of the stream."""
    action: Action = "create"
    text = "create, from the start of the stream"
    start = None
    if consumer_states is not None:
        start = await consumer_states.start_sequence(api, spec.stream, spec.durable)
    if start is not None:
        text = f"create, at sequence {start}: all before it is settled"
    elif (old := await position(api, spec)) is not None:
        start = old.sequence
        action, text = "take_over", f"take over from {old.name} at sequence {start}"
    config = spec.config()
    if start is not None:
        config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": start}
    return TopologyChange("consumer", spec.durable, action, text, _request(spec, "create", config))


def _request(spec: ConsumerSpec, action: str, config: Mapping[str, object]) -> Request:
    body = {"stream_name": spec.stream, "config": config, "action": action}
    return f"CONSUMER.CREATE.{spec.stream}.{spec.durable}", body


def _compare(spec: ConsumerSpec, config: Mapping[str, Any]) -> list[TopologyChange]:
    _check_usable(spec, config)
    changes = []
    if differences := _differences(spec, config):
        # A back-off list would replace the ack wait by its first entry.
        kept = {name: value for name, value in config.items() if name not in ("filter_subject", "backoff")}
        request = _request(spec, "update", {**kept, **spec.updatable()})
        text = f"update {', '.join(differences)}"
        changes.append(TopologyChange("consumer", spec.durable, "update", text, request))
    if config.get("max_deliver", -1) > 0:
        text = (
            f"max_deliver is {config['max_deliver']}: left as it is; no limit is needed, ours is counted here"
        )
        changes.append(TopologyChange("consumer", spec.durable, "warning", text))
    return changes


def _check_usable(spec: ConsumerSpec, config: Mapping[str, Any]) -> None:
    help_ = (
        f"delete it if nobody needs it (nats consumer rm {spec.stream} {spec.durable}), "
        "or give ours another name with NATS_REALTIME_DURABLE, NATS_HISTORICAL_DURABLE or NATS_DLQSUBJECT"
    )
    if config.get("deliver_subject"):
        raise TopologyError(
            f"consumer {spec.durable} on {spec.stream} is a push consumer, and cannot become a pull consumer: {help_}"
        )
    if config.get("ack_policy") != "explicit":
        raise TopologyError(
            f"consumer {spec.durable} on {spec.stream} has ack policy {config.get('ack_policy')}, "
            f"explicit is needed: {help_}"
        )


def _differences(spec: ConsumerSpec, config: Mapping[str, Any]) -> list[str]:
    wanted = spec.updatable()
    single = config.get("filter_subject")
    filters = config.get("filter_subjects") or ([single] if single else [])
    found = [name for name in ("ack_wait", "max_ack_pending") if config.get(name) != wanted[name]]
    if set(filters) != set(spec.subjects):
        found.append("filter_subjects")
    if config.get("backoff"):
        found.append("backoff")
    return found
