"""How many messages of a company a shared durable has not settled: the server counts them, none is delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple
from uuid import uuid4

from streams.jetstream.changes import TopologyError, look_up, refused
from streams.jetstream.company_durables import Durable
from streams.jetstream.specs import NANOSECONDS, ConsumerSpec
from streams.jetstream.stream_reader import Api, ApiError

# Consumers that count at a time, and seconds after which the server removes one that we did not.
_AT_ONCE: Final = 8
_LEFT_BEHIND: Final = 5


class Lag(NamedTuple):
    """Messages that are not settled, at least and at most.

    The server tells how many delivered messages of a shared durable are not settled, but not whose they are.
    """

    least: int
    most: int

    def plus(self, other: Lag) -> Lag:
        """Of both together."""
        return Lag(self.least + other.least, self.most + other.most)


NONE: Final = Lag(0, 0)


async def shared_lag(
    api: Api, spec: ConsumerSpec, durable: Durable, companies: Iterable[str]
) -> dict[str, Lag]:
    """The lag of each of these companies at a shared durable. Raises `TopologyError` and `BrokerError`.

    Only what its filter delivers counts. Costs a request or two for each company while the durable is behind.
    """
    names = list(companies)
    if not durable.left:
        return dict.fromkeys(names, NONE)
    bases = [subject.rpartition(".")[0] for subject in spec.subjects]
    turns = asyncio.Semaphore(_AT_ONCE)

    async def behind(company: str) -> tuple[int, int]:
        subjects = [f"{base}.{company}" for base in bases]
        async with turns:
            after = await count_from(api, spec.stream, subjects, durable.position)
            if not after or not durable.unsettled:
                return after, after
            return after, await count_from(api, spec.stream, subjects, durable.delivered + 1)

    total, _ = await behind("*")
    counts = await asyncio.gather(*map(behind, names))
    delivered = max(0, total - durable.pending)
    return {
        name: _lag(after, pending, delivered, durable.unsettled)
        for name, (after, pending) in zip(names, counts, strict=True)
    }


async def count_from(api: Api, stream: str, subjects: Sequence[str], sequence: int) -> int:
    """How many messages of these subjects a stream has from a sequence on. Raises `TopologyError` and `BrokerError`."""
    name = f"count_{uuid4().hex}"
    config = {
        "name": name,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": max(1, sequence),
        "ack_policy": "none",
        "replay_policy": "instant",
        "filter_subjects": list(subjects),
        "inactive_threshold": _LEFT_BEHIND * NANOSECONDS,
        "mem_storage": True,
        "num_replicas": 1,
    }
    try:
        made = await api.api(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})
    except ApiError as error:
        raise refused("consumer", name, stream, error, "count messages") from error
    try:
        await api.api(f"CONSUMER.DELETE.{stream}.{name}")
    except ApiError as error:
        if await look_up(api, "consumer", stream, name) is not None:
            raise TopologyError(f"consumer {name} on {stream}: {error}") from error
    return int(made["num_pending"])


def _lag(after: int, pending: int, delivered: int, unsettled: int) -> Lag:
    """`delivered` of the messages after the ack floor were delivered to all companies, `unsettled` are not settled."""
    ours = max(0, after - pending)
    least = max(0, unsettled - max(0, delivered - ours))
    return Lag(pending + min(least, ours), pending + min(ours, unsettled))
