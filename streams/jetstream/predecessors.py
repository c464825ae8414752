"""The durables whose position a new consumer takes over: the existing service's, a company's own, a fleet's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from events.subjects import ALL_COMPANIES
from streams.jetstream.changes import look_up, refused
from streams.jetstream.specs import ConsumerSpec
from streams.jetstream.stream_reader import Api, ApiError


class Position(NamedTuple):
    """A durable and the sequence at which its successor begins: 0 if it has settled nothing."""

    name: str
    sequence: int


async def position(api: Api, spec: ConsumerSpec) -> Position | None:
    """Where a new consumer begins; None: at the start of the stream. Raises `TopologyError` and `BrokerError`.

    A fleet begins where the company that is furthest behind is. Of the others, events come again, to no effect.
    """
    if spec.tenant is None:
        old = min(await _companies(api, spec), key=lambda each: each.sequence, default=None)
    elif spec.predecessor == spec.durable or (old := await _existing_service(api, spec)) is None:
        old = await _look_up(api, spec, spec.fleet_durable)
    return old if old is not None and old.sequence else None


async def predecessors(api: Api, spec: ConsumerSpec) -> Sequence[Position]:
    """The durables that nobody needs once this consumer is there. Raises `TopologyError` and `BrokerError`."""
    if spec.tenant is None:
        return await _companies(api, spec)
    # The existing service's durable of the DLQ is for all companies, and a fleet's for those that are left to it.
    if spec.consumer_type == "dlq" or spec.predecessor == spec.durable:
        return ()
    old = await _existing_service(api, spec)
    return () if old is None else (old,)


async def _existing_service(api: Api, spec: ConsumerSpec) -> Position | None:
    return await _look_up(api, spec, spec.predecessor)


async def _look_up(api: Api, spec: ConsumerSpec, name: str) -> Position | None:
    if await look_up(api, "consumer", spec.stream, name) is None:
        return None
    last = await _last_sequence(api, spec)
    info = await look_up(api, "consumer", spec.stream, name)
    return None if info is None else _position(spec, info, last or 0)


async def _companies(api: Api, spec: ConsumerSpec) -> list[Position]:
    """The durables of single companies, ours and the existing service's."""
    last = await _last_sequence(api, spec)
    if last is None:
        return []
    prefixes = (spec.company_durable, spec.predecessor.removesuffix(ALL_COMPANIES))
    return [
        _position(spec, info, last)
        async for info in list_consumers(api, spec.stream)
        if info["name"].startswith(prefixes) and info["name"] != spec.durable
    ]


def _position(spec: ConsumerSpec, info: Mapping[str, Any], last: int) -> Position:
    """`last` is the stream's last sequence before `info` was asked for: with nothing left, all up to it is settled."""
    floor = info["ack_floor"]["stream_seq"]
    if not info["num_pending"] + info["num_ack_pending"] and _takes_all(spec, info["config"]):
        floor = max(floor, last)
    return Position(info["name"], floor + 1 if floor else 0)


def _takes_all(spec: ConsumerSpec, config: Mapping[str, Any]) -> bool:
    """Whether a durable is told of every type of event that ours is, so that none is left of the other types."""
    single = config.get("filter_subject")
    bases = {subject.rpartition(".")[0] for subject in spec.subjects}
    filters = config.get("filter_subjects") or ([single] if single else [">"])
    return ">" in filters or bases <= {subject.rpartition(".")[0] for subject in filters}


async def _last_sequence(api: Api, spec: ConsumerSpec) -> int | None:
    """The stream's; None if there is no stream."""
    stream = await look_up(api, "stream", spec.stream)
    return None if stream is None else int(stream["state"]["last_seq"])


async def list_consumers(api: Api, stream: str) -> AsyncIterator[Mapping[str, Any]]:
    """Every consumer of a stream, page by page. Raises `TopologyError` and `BrokerError`."""
    offset, total = 0, 1
    while offset < total:
        try:
            page = await api.api(f"CONSUMER.LIST.{stream}", {"offset": offset})
        except ApiError as error:
            raise refused("stream", stream, stream, error) from error
        consumers = page.get("consumers") or []
        for info in consumers:
            yield info
        offset += len(consumers) or 1
        total = page["total"]
