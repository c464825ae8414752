"""A consumer on the server against the one that we need: made, corrected in place, or refused in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streams.jetstream.changes import Action, TopologyChange, TopologyError, look_up
from streams.jetstream.consumer_state import ConsumerStates
from streams.jetstream.specs import ConsumerSpec
from streams.jetstream.stream_reader import Api


async def plan_consumer(
    api: Api, spec: ConsumerSpec, consumer_states: ConsumerStates | None = None
) -> list[TopologyChange]:
    """What to do about one of our consumers. Raises `TopologyError` and `BrokerError`.

    `consumer_states`: where one that is missing now begins again, if it stood somewhere before.
    """
    found = await look_up(api, "consumer", spec.stream, spec.durable)
    if found is None:
        return [await _create(api, spec, consumer_states)]
    return _compare(spec, found)


async def _create(api: Api, spec: ConsumerSpec, consumer_states: ConsumerStates | None) -> TopologyChange:
    """The new consumer begins where it stood itself, else where its predecessor stands, if there is one."""
    config = spec.config()
    action: Action = "create"
    text = "create, from the start of the stream"
    begin = (
        None if consumer_states is None else await consumer_states.beginning(api, spec.stream, spec.durable)
    )
    if begin is not None:
        text = f"create, at sequence {begin}: all before it is settled"
    elif spec.predecessor != spec.durable:
        old = await look_up(api, "consumer", spec.stream, spec.predecessor)
        if old is not None and (floor := old["ack_floor"]["stream_seq"]):
            begin = floor + 1
            action, text = "take_over", f"take over from {spec.predecessor} at sequence {begin}"
    if begin is not None:
        config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": begin}
    request = {"stream_name": spec.stream, "config": config, "action": "create"}
    return TopologyChange(
        "consumer",
        spec.durable,
        action,
        text,
        (f"CONSUMER.CREATE.{spec.stream}.{spec.durable}", request),
    )


def _compare(spec: ConsumerSpec, found: Mapping[str, Any]) -> list[TopologyChange]:
    config = found["config"]
    _refuse(spec, config)
    changes = []
    if wrong := _wrong_numbers(spec, config):
        # A list of backoffs would replace the ack wait by its first entry.
        kept = {name: value for name, value in config.items() if name not in ("filter_subject", "backoff")}
        request = {"stream_name": spec.stream, "config": {**kept, **spec.numbers()}, "action": "update"}
        changes.append(
            TopologyChange(
                "consumer",
                spec.durable,
                "update",
                f"update {', '.join(wrong)}",
                (f"CONSUMER.CREATE.{spec.stream}.{spec.durable}", request),
            )
        )
    if config.get("max_deliver", -1) > 0:
        text = (
            f"max_deliver is {config['max_deliver']}: left as it is; no limit is needed, ours is counted here"
        )
        changes.append(TopologyChange("consumer", spec.durable, "warning", text))
    return changes


def _refuse(spec: ConsumerSpec, config: Mapping[str, Any]) -> None:
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


def _wrong_numbers(spec: ConsumerSpec, config: Mapping[str, Any]) -> list[str]:
    wanted = spec.numbers()
    single = config.get("filter_subject")
    filters = config.get("filter_subjects") or ([single] if single else [])
    wrong = [name for name in ("ack_wait", "max_ack_pending") if config.get(name) != wanted[name]]
    if set(filters) != set(spec.subjects):
        wrong.append("filter_subjects")
    if config.get("backoff"):
        wrong.append("backoff")
    return wrong
