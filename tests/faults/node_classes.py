"""The classes of faults of three NATS nodes with streams of three replicas."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Final

import nats

from tests.acceptance.company_probe import DLQ_STREAM, HISTORY_STREAM, REALTIME_STREAM
from tests.faults.clusters import ClusterEnvironment
from tests.faults.fault import Fault
from tests.faults.letters import BAD, PROBE, dead_letters_refused_in_a_cluster
from tests.faults.load import EARLY, HISTORY, RETRIED
from tests.servers.nats_cluster import NatsNode

_STREAMS: Final = (REALTIME_STREAM, HISTORY_STREAM, DLQ_STREAM)
_EXIT: Final = 60.0
# A node without the others answers pings, but not JetStream: by then the worker has to be at another one.
_LEFT: Final = 60.0


async def stream_leader_killed(env: ClusterEnvironment) -> None:
    """SIGKILL of the node that leads the real-time stream; it comes back once another one leads."""
    async for _ in env.rounds(2):
        await _fail_over(env, await env.leader(REALTIME_STREAM), REALTIME_STREAM)


async def consumer_leader_killed(env: ClusterEnvironment) -> None:
    """SIGKILL of the node that leads our real-time consumer; it comes back once another one leads."""
    async for _ in env.rounds(2):
        durable = f"wa_realtime_{env.company}"
        await _fail_over(env, await env.leader(REALTIME_STREAM, durable), REALTIME_STREAM, durable)


async def _fail_over(env: ClusterEnvironment, node: NatsNode, stream: str, durable: str = "") -> None:
    await asyncio.to_thread(node.kill)
    await env.another_leads(node, stream, durable)
    await _bring_back(env, node)


async def _bring_back(env: ClusterEnvironment, *nodes: NatsNode) -> None:
    for node in nodes:
        await asyncio.to_thread(node.start)
    await env.healthy()


async def workers_node_killed(env: ClusterEnvironment) -> None:
    """SIGKILL of the node that the worker is connected to; it stays away for some seconds."""
    async for _ in env.rounds(2):
        node = env.node_of(env.workers[0])
        await asyncio.to_thread(node.kill)
        await env.pause(0.5, 4.0)
        await _bring_back(env, node)


async def workers_node_cut_off(env: ClusterEnvironment) -> None:
    """The worker's node loses the others for some seconds; the load goes on at these."""
    async for _ in env.rounds(2):
        node = await _cut_off(env)
        await asyncio.sleep(env.outage((3.0, 15.0), (3.0, 5.0)))
        await _join(env, node)


async def workers_node_cut_off_for_long(env: ClusterEnvironment) -> None:
    """The worker's node loses the others for 120 s; meanwhile the worker has to go on at one of these."""
    node = await _cut_off(env)
    end = asyncio.get_running_loop().time() + env.outage((120.0, 120.0), (30.0, 30.0))
    await env.goes_on("the worker has left the node that is cut off", _LEFT)
    await asyncio.sleep(end - asyncio.get_running_loop().time())
    await _join(env, node)


async def _cut_off(env: ClusterEnvironment) -> NatsNode:
    node = env.node_of(env.workers[0])
    await env.lead_away(node)
    env.cluster.cut_off(node, silently=env.rng.random() < 0.5)
    if await _stores(node):
        env.complain(f"{node.node_name} confirms what it is sent, although it is cut off")
    return node


async def _stores(node: NatsNode) -> bool:
    client = await nats.connect(node.url, allow_reconnect=False)
    try:
        await client.jetstream().publish(PROBE, b"", timeout=1)
    except (nats.errors.Error, TimeoutError):
        return False
    finally:
        await client.close()
    return True


async def _join(env: ClusterEnvironment, node: NatsNode) -> None:
    env.cluster.join(node)
    env.lead_back(node)
    await env.healthy()


async def leader_frozen(env: ClusterEnvironment) -> None:
    """SIGSTOP of the node that leads the real-time stream, for 20 s: connections stay, and nobody answers."""
    node = await env.leader(REALTIME_STREAM)
    await env.lead_away(node)
    node.pause()
    await asyncio.sleep(env.outage((20.0, 20.0), (6.0, 6.0)))
    node.resume()
    await _join(env, node)


async def two_of_three_gone(env: ClusterEnvironment) -> None:
    """Two nodes are killed and away for 30 s: nothing can be stored or delivered meanwhile."""
    gone = env.rng.sample(env.cluster.nodes, 2)
    for node in gone:
        await asyncio.to_thread(node.kill)
    await asyncio.sleep(env.outage((30.0, 30.0), (5.0, 5.0)))
    await _bring_back(env, *gone)


async def rolling_restart(env: ClusterEnvironment) -> None:
    """Node after node hands over in lame duck mode, ends and comes back."""
    for node in env.rng.sample(env.cluster.nodes, len(env.cluster.nodes)):
        node.lame_duck()

        async def ended(node: NatsNode = node) -> bool:
            return not await asyncio.to_thread(lambda: node.running)

        await env.until("a lame duck has ended", ended, _EXIT)
        await _bring_back(env, node)


async def step_downs(env: ClusterEnvironment) -> None:
    """Leaders of streams and consumers are told to step down, again and again."""
    loop = asyncio.get_running_loop()
    end = loop.time() + env.outage((6.0, 12.0), (3.0, 4.0))
    done = 0
    while loop.time() < end:
        for stream in _STREAMS:
            done += await _told_to_step_down(env, f"STREAM.LEADER.STEPDOWN.{stream}")
        for role, stream in (("realtime", REALTIME_STREAM), ("history", HISTORY_STREAM)):
            path = f"CONSUMER.LEADER.STEPDOWN.{stream}.wa_{role}_{env.company}"
            done += await _told_to_step_down(env, path)
        await env.pause(0.1, 1.0)
    if done < len(_STREAMS):
        env.complain(f"only {done} leaders stepped down")
    await env.healthy()


async def _told_to_step_down(env: ClusterEnvironment, path: str) -> bool:
    with suppress(nats.errors.Error, TimeoutError):
        return bool((await env.api(path)).get("success"))
    return False


async def disk_wiped(env: ClusterEnvironment) -> None:
    """The node that leads the real-time stream is killed and comes back with an empty disk."""
    await env.healthy()
    node = await env.leader(REALTIME_STREAM)
    await asyncio.to_thread(node.wipe)
    await env.another_leads(node, REALTIME_STREAM)
    await _bring_back(env, node)


async def replicas_raised(env: ClusterEnvironment) -> None:
    """Streams of one replica get three while they are written and read."""
    await env.pause(1.0, 2.0)
    await env.set_replicas(3)
    for stream in _STREAMS:

        async def in_step(stream: str = stream) -> bool:
            cluster = (await env.api(f"STREAM.INFO.{stream}"))["cluster"]
            replicas = cluster.get("replicas") or []
            return len(replicas) == 2 and all(one.get("current") for one in replicas)

        await env.until(f"{stream} has three replicas in step", in_step, 60)
    await env.healthy()


async def clock_behind(env: ClusterEnvironment) -> None:
    """From a moment on, events are stored by a node whose clock is 3 s behind: the later one still wins."""
    await env.pause(2.0, 3.0)
    env.clock.set_back()
    await env.pause(4.0, 6.0)
    if not env.clock.rewritten:
        env.complain("no store time was rewritten")


_on_nodes = partial(Fault, servers="nodes", runs=5, without=EARLY)

NODE_FAULTS: Final = {
    "stream leader killed": _on_nodes(inject=stream_leader_killed),
    "consumer leader killed": _on_nodes(inject=consumer_leader_killed),
    "worker's node killed": _on_nodes(inject=workers_node_killed),
    "worker's node cut off": _on_nodes(inject=workers_node_cut_off),
    "worker's node cut off for 120 s": _on_nodes(inject=workers_node_cut_off_for_long, runs=3, rate=30.0),
    "leader frozen": _on_nodes(inject=leader_frozen),
    "two of three gone": _on_nodes(inject=two_of_three_gone),
    "rolling restart": _on_nodes(inject=rolling_restart),
    "step-downs": _on_nodes(inject=step_downs),
    "disk wiped": _on_nodes(inject=disk_wiped),
    "one replica becomes three": _on_nodes(inject=replicas_raised, replicas=1),
    "clock behind": _on_nodes(inject=clock_behind, proxies=True, without=(*RETRIED, *HISTORY)),
    "dead letters refused, three replicas": _on_nodes(inject=dead_letters_refused_in_a_cluster, often=BAD),
}
