"""Tells a fault of nats-server's own apart, by what each node says of its streams and consumers afterwards.

Nothing is excused without evidence: a replica that differs from its leader though nothing moves, a consumer that
leaves requests unanswered though it has events, or a confirmed event that the stream's leader does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import nats

from events.subjects import HISTORICAL
from testkit.publisher import Confirmed
from testkit.traffic import NUMBER_HEADER
from tests.acceptance.company_probe import HISTORY_STREAM, REALTIME_STREAM
from tests.faults.clusters import ClusterEnvironment

# Replicas apply what the leader confirmed a moment later: what differs for this long does not move any more.
_STEADY: Final = 6.0
_COMPARED: Final = ("messages", "first_seq", "last_seq")
_PAGE: Final = "/jsz?accounts=true&streams=true&consumers=true"

Key = TypeVar("Key")
Details = Mapping[str, Mapping[str, Any]]  # by node, then by stream


async def stale_replicas(env: ClusterEnvironment) -> dict[str, str]:
    """By node: which of its replicas differs from the leader's for good."""
    return await _lasting(env, differing)


async def stuck_consumers(env: ClusterEnvironment) -> dict[tuple[str, str], str]:
    """By stream and durable: consumers with requests and events that bring the two together no more."""
    return await _lasting(env, partial(stuck, company=env.company))


async def _lasting(env: ClusterEnvironment, look: Callable[[Details], dict[Key, str]]) -> dict[Key, str]:
    """What is found, and found again when nothing moves any more."""
    if not (first := look(await _details(env))):
        return {}
    await asyncio.sleep(_STEADY)
    second = look(await _details(env))
    return {key: text for key, text in second.items() if first.get(key) == text}


async def vanished(env: ClusterEnvironment, unseen: Sequence[Confirmed]) -> list[str]:
    """Confirmed events that the stream's leader does not have under the sequence that it confirmed."""
    return [text for one in unseen if (text := await _absent(env, one))]


async def repair(
    env: ClusterEnvironment, stale: Mapping[str, str], held: Mapping[tuple[str, str], str]
) -> None:
    """What an operator does about it: stale nodes restart with an empty disk, stuck consumers get another leader."""
    for name in stale:
        node = env.cluster.node(name)
        await asyncio.to_thread(node.wipe)
        await asyncio.to_thread(node.start)
        await env.healthy()
    for stream, durable in held:
        await env.api(f"CONSUMER.LEADER.STEPDOWN.{stream}.{durable}")


async def _details(env: ClusterEnvironment) -> Details:
    pages = await asyncio.gather(*(asyncio.to_thread(node.page, _PAGE) for node in env.cluster.nodes))
    return {
        node.node_name: {
            stream["name"]: stream
            for account in (page or {}).get("account_details") or ()
            for stream in account.get("stream_detail") or ()
        }
        for node, page in zip(env.cluster.nodes, pages, strict=True)
    }


def differing(details: Details) -> dict[str, str]:
    """By node: a replica of it that is not as its leader says."""
    found: dict[str, str] = {}
    for node, streams in details.items():
        for name, stream in streams.items():
            leader = (stream.get("cluster") or {}).get("leader")
            there = details.get(leader or "", {}).get(name)
            if leader == node or there is None:
                continue
            ours, theirs = ([one["state"][field] for field in _COMPARED] for one in (stream, there))
            if ours != theirs:
                fields = ", ".join(_COMPARED)
                found[node] = f"{name} on {node} has {fields} {ours}, its leader {leader} has {theirs}"
    return found


def stuck(details: Details, company: str) -> dict[tuple[str, str], str]:
    """By stream and durable: consumers of a company that have requests and events, and nothing on the way."""
    found: dict[tuple[str, str], str] = {}
    for node, streams in details.items():
        for name, stream in streams.items():
            for one in stream.get("consumer_detail") or ():
                ours = (
                    one["name"].endswith(f"_{company}") and (one.get("cluster") or {}).get("leader") == node
                )
                waits = one.get("num_waiting", 0) and one.get("num_pending", 0)
                if ours and waits and not one.get("num_ack_pending", 0):
                    found[name, one["name"]] = (
                        f"{one['name']} on {node} has requests, {one['num_pending']} events pending and delivers none: "
                        f"delivered {one['delivered']}, ack floor {one['ack_floor']}"
                    )
    return found


async def _absent(env: ClusterEnvironment, one: Confirmed) -> str:
    stream = HISTORY_STREAM if one.publication.event_type in HISTORICAL else REALTIME_STREAM
    try:
        kept = await env.js.get_msg(stream, one.sequence, direct=False)
    except nats.js.errors.NotFoundError:
        return f"{stream} confirmed sequence {one.sequence} and does not have it"
    number = (kept.headers or {}).get(NUMBER_HEADER)
    if number == one.publication.headers[NUMBER_HEADER]:
        return ""
    return f"{stream} confirmed sequence {one.sequence} and has another event there"
