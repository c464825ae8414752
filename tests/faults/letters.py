"""The class of faults of a dead-letter stream that takes nothing, on one NATS server or on three nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Final

import nats

from tests.acceptance.company_probe import DLQ_STREAM
from tests.faults.clusters import ClusterEnvironment
from tests.faults.environment import EVERYBODY, Environment

# More of what needs a dead letter: events that can never be stored, and batches with some such items.
BAD: Final = {"invalid": 6, "malformed": 4, "history messages": 5, "history chats": 5, "history contacts": 5}
# A dead letter of no company.
PROBE: Final = "v1.dlq.PROBE"
_DENIED: Final = (
    f'authorization {{ users: [ {{ user: any, password: any, permissions: {{ publish: {{ deny: ["{PROBE[:-5]}>"] '
    "} } } ] }\nno_auth_user: any\n"
)

Refusal = Callable[[Environment], AbstractAsyncContextManager[object]]


async def dead_letters_refused(env: Environment) -> None:
    """No dead letter is taken for longer than the ack wait: full, unknown or forbidden, or NATS hangs."""
    await _refuse(env, env.rng.choice((_full, _unknown, _denied, _frozen)))


async def dead_letters_refused_in_a_cluster(env: ClusterEnvironment) -> None:
    """The dead-letter stream of three replicas takes nothing: full or unknown, or its leader hangs."""
    await _refuse(env, env.rng.choice((_full, _unknown, _frozen)))
    for node in env.cluster.nodes:
        env.lead_back(node)
    await env.healthy()


async def _refuse(env: Environment, refusal: Refusal) -> None:
    async with refusal(env):
        before = len(env.load.messages())
        await env.until(f"dead letters are refused ({refusal.__name__})", partial(_refused, env), 10)
        await asyncio.sleep(env.outage((2.5, 8.0), (2.5, 3.0)))
    if refusal is not _frozen and len(env.load.messages()) == before:
        env.complain("nothing was published while dead letters were refused")


async def _refused(env: Environment) -> bool:
    return not await _taken(env)


async def _taken(env: Environment) -> bool:
    try:
        await env.js.publish(PROBE, b"", timeout=0.5)
    except (nats.errors.Error, TimeoutError):
        return False
    return True


@asynccontextmanager
async def _full(env: Environment) -> AsyncIterator[None]:
    await env.js.publish(PROBE, b"")
    stored = (await env.js.stream_info(DLQ_STREAM)).state.messages
    before = await env.change_stream(DLQ_STREAM, {"discard": "new", "max_msgs": stored})
    yield
    await env.change_stream(DLQ_STREAM, before)


@asynccontextmanager
async def _unknown(env: Environment) -> AsyncIterator[None]:
    before = await env.change_stream(DLQ_STREAM, {"subjects": ["elsewhere"]})
    yield
    await env.change_stream(DLQ_STREAM, before)


@asynccontextmanager
async def _denied(env: Environment) -> AsyncIterator[None]:
    env.nats.reload(_DENIED)
    yield
    env.nats.reload(EVERYBODY)
    await env.until("dead letters are taken again", partial(_taken, env), 10)


@asynccontextmanager
async def _frozen(env: Environment) -> AsyncIterator[None]:
    server = await env.dead_letter_server()
    server.pause()
    yield
    server.resume()
