"""How a server is brought to the streams and consumers we need without losing anything (contract 1.3, 1.4, C20).

`plan` compares and decides, `apply` does it: what is missing is made, subjects are added, our own consumers'
numbers are updated in place. Nothing is deleted, and other people's stream settings are left with a warning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from streams.durability import weaknesses
from streams.specs import NANOSECONDS, ConsumerSpec, StreamSpec, TopologyConfig, consumers, covers, streams
from streams.standing import Standings
from streams.stored import Api, ApiError, read
from streams.subjects import Tenant

logger = logging.getLogger(__name__)

Action = Literal["create", "add_subjects", "update", "take_over", "delete", "warning"]

# Error numbers of the server.
_NO_STREAM: Final = 10059
_NO_CONSUMER: Final = 10014
_STREAM_EXISTS: Final = 10058
_CONSUMER_EXISTS: Final = frozenset((10148, 10105, 10013))


class TopologyError(Exception):
    """The server's streams or consumers are such that we cannot work with them; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to do, or to say. `request` is the API call that does it."""

    kind: Literal["stream", "consumer"]
    name: str
    action: Action
    text: str
    request: tuple[str, Mapping[str, object] | None] | None = field(default=None, repr=False)


class Lag(NamedTuple):
    """What a consumer has yet to do."""

    pending: int
    ack_pending: int


async def plan(
    api: Api, config: TopologyConfig, tenants: Iterable[Tenant], standings: Standings | None = None
) -> list[Change]:
    """What `apply` has to do. Raises `TopologyError`, `ApiError` and `BrokerFailed`.

    `standings`: where a consumer that is missing now begins again, if it stood somewhere before.
    """
    changes: list[Change] = []
    for stream in streams(config):
        changes += _compare_stream(stream, await _info(api, f"STREAM.INFO.{stream.name}"))
    for tenant in tenants:
        for consumer in consumers(config, tenant):
            found = await _info(api, f"CONSUMER.INFO.{consumer.stream}.{consumer.durable}")
            if found is None:
                changes.append(await _create_consumer(api, consumer, standings))
            else:
                changes += _compare_consumer(consumer, found)
    return changes


async def apply(api: Api, changes: Sequence[Change]) -> None:
    """Do what was planned and log it. Raises `TopologyError` and `BrokerFailed`."""
    for change in changes:
        if change.request is None:
            logger.warning("%s %s: %s", change.kind, change.name, change.text)
            continue
        try:
            await api.api(*change.request)
        except ApiError as error:
            # Another replica was faster; what it made is compared at the next start.
            if change.action in ("create", "take_over") and error.code in {_STREAM_EXISTS, *_CONSUMER_EXISTS}:
                continue
            raise TopologyError(f"{change.kind} {change.name}: {change.text}: {error}") from error
        logger.info("%s %s: %s", change.kind, change.name, change.text)


async def reconcile(
    api: Api, config: TopologyConfig, tenants: Iterable[Tenant], standings: Standings | None = None
) -> list[Change]:
    """Plan and apply; what was planned. Raises `TopologyError` and `BrokerFailed`."""
    try:
        changes = await plan(api, config, tenants, standings)
    except ApiError as error:
        raise TopologyError(f"JetStream refused: {error}") from error
    await apply(api, changes)
    return changes


async def drop_old(api: Api, config: TopologyConfig, tenants: Iterable[Tenant]) -> list[Change]:
    """Delete the old durables of the tenants whose successors exist; the shared one of the DLQ stays (A4).

    Raises `TopologyError` if a successor is missing, and `BrokerFailed`.
    """
    changes = []
    for tenant in tenants:
        for spec in consumers(config, tenant):
            if spec.role == "dlq" or spec.predecessor == spec.durable:
                continue
            if await _info(api, f"CONSUMER.INFO.{spec.stream}.{spec.predecessor}") is None:
                continue
            if await _info(api, f"CONSUMER.INFO.{spec.stream}.{spec.durable}") is None:
                raise TopologyError(
                    f"consumer {spec.predecessor} keeps the position for {spec.durable}, "
                    "which is not there yet: start the worker first"
                )
            request = (f"CONSUMER.DELETE.{spec.stream}.{spec.predecessor}", None)
            changes.append(Change("consumer", spec.predecessor, "delete", "delete the old durable", request))
    await apply(api, changes)
    return changes


async def limited(api: Api, config: TopologyConfig, tenants: Iterable[Tenant]) -> list[ConsumerSpec]:
    """Our consumers to which somebody gave a limit of deliveries: their advisories have to be watched."""
    found = []
    for tenant in tenants:
        for spec in consumers(config, tenant):
            info = await _info(api, f"CONSUMER.INFO.{spec.stream}.{spec.durable}")
            if info is not None and info["config"].get("max_deliver", -1) > 0:
                found.append(spec)
    return found


async def lag(api: Api, stream: str, durable: str, standings: Standings | None = None) -> Lag:
    """Messages not delivered yet, and delivered but not settled; also noted in `standings`.

    Raises `ApiError` and `BrokerFailed`.
    """
    info = await api.api(f"CONSUMER.INFO.{stream}.{durable}")
    if standings is not None:
        standings.note(stream, durable, info)
    return Lag(info["num_pending"], info["num_ack_pending"])


async def oldest_age(api: Api, stream: str, durable: str, subject: str) -> float:
    """Seconds since the oldest unsettled message of a consumer of one subject was stored; 0 without one.

    Raises `ApiError` and `BrokerFailed`.
    """
    info = await api.api(f"CONSUMER.INFO.{stream}.{durable}")
    if not info["num_pending"] + info["num_ack_pending"]:
        return 0.0
    oldest = await read(api, stream, info["ack_floor"]["stream_seq"] + 1, subject)
    return 0.0 if oldest is None else max(time.time() - oldest.stored_ns / NANOSECONDS, 0.0)


async def _info(api: Api, subject: str) -> dict[str, Any] | None:
    try:
        return await api.api(subject)
    except ApiError as error:
        if error.code in (_NO_STREAM, _NO_CONSUMER):
            return None
        raise


def _compare_stream(spec: StreamSpec, found: Mapping[str, Any] | None) -> list[Change]:
    if found is None:
        request = (f"STREAM.CREATE.{spec.name}", spec.config())
        return [Change("stream", spec.name, "create", f"create with {', '.join(spec.subjects)}", request)]
    config = found["config"]
    changes = []
    have: list[str] = config.get("subjects") or []
    missing = [subject for subject in spec.subjects if not any(covers(known, subject) for known in have)]
    if missing:
        # The server takes no two overlapping subjects: narrower ones are part of the new ones.
        kept = [known for known in have if not any(covers(added, known) for added in missing)]
        request = (f"STREAM.UPDATE.{spec.name}", {**config, "subjects": kept + missing})
        changes.append(
            Change("stream", spec.name, "add_subjects", f"add subjects {', '.join(missing)}", request)
        )
    return changes + [
        Change("stream", spec.name, "warning", text) for text in _differences(spec.config(), config)
    ]


def _differences(ours: Mapping[str, object], theirs: Mapping[str, Any]) -> Iterable[str]:
    if theirs.get("retention") == "interest":
        yield (
            "retention is interest, not limits: left as it is. What is published while no consumer asks for "
            "it is lost; keep a consumer on it, or change the retention to limits in place"
        )
    elif theirs.get("retention") != ours["retention"]:
        yield f"retention is {theirs.get('retention')}, not limits: left as it is"
    yield from weaknesses(theirs)
    for name in ("max_age", "discard", "max_msgs", "max_bytes", "max_msg_size"):
        if theirs.get(name, ours[name]) != ours[name]:
            yield f"{name} is {theirs[name]}, ours would be {ours[name]}: left as it is"


async def _create_consumer(api: Api, spec: ConsumerSpec, standings: Standings | None) -> Change:
    """The new consumer begins where it stood itself, else where its predecessor stands, if there is one (OC1)."""
    config = spec.config()
    action: Action = "create"
    text = "create, from the start of the stream"
    begin = None if standings is None else await standings.beginning(api, spec.stream, spec.durable)
    if begin is not None:
        text = f"create, at sequence {begin}: all before it is settled"
    elif spec.predecessor != spec.durable:
        old = await _info(api, f"CONSUMER.INFO.{spec.stream}.{spec.predecessor}")
        if old is not None and (floor := old["ack_floor"]["stream_seq"]):
            begin = floor + 1
            action, text = "take_over", f"take over from {spec.predecessor} at sequence {begin}"
    if begin is not None:
        config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": begin}
    request = {"stream_name": spec.stream, "config": config, "action": "create"}
    return Change(
        "consumer",
        spec.durable,
        action,
        text,
        (f"CONSUMER.CREATE.{spec.stream}.{spec.durable}", request),
    )


def _compare_consumer(spec: ConsumerSpec, found: Mapping[str, Any]) -> list[Change]:
    config = found["config"]
    if config.get("deliver_subject"):
        raise TopologyError(
            f"consumer {spec.durable} on {spec.stream} is a push consumer, and cannot become a pull consumer: "
            "give ours another name"
        )
    if config.get("ack_policy") != "explicit":
        raise TopologyError(
            f"consumer {spec.durable} on {spec.stream} has ack policy {config.get('ack_policy')}, "
            "explicit is needed: give ours another name"
        )
    changes = []
    if wrong := _wrong_numbers(spec, config):
        # A list of backoffs would replace the ack wait by its first entry.
        kept = {name: value for name, value in config.items() if name not in ("filter_subject", "backoff")}
        request = {"stream_name": spec.stream, "config": {**kept, **spec.numbers()}, "action": "update"}
        changes.append(
            Change(
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
        changes.append(Change("consumer", spec.durable, "warning", text))
    return changes


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
