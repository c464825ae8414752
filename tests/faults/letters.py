"""The class of faults of a dead-letter stream that takes nothing, on one NATS server or on three nodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import nats

from tests.acceptance.site import DLQ_STREAM
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
    await _inject(env, env.rng.choice((_full, _unknown, _denied, _frozen)))


async def dead_letters_refused_in_a_cluster(env: Environment) -> None:
    """The dead-letter stream of three replicas takes nothing: full or unknown, or its leader hangs."""
    await _inject(env, env.rng.choice((_full, _unknown, _frozen)))


async def _inject(env: Environment, refuse: Refusal) -> None:
    async with refuse(env):
        before = len(env.load.messages())

        async def refused() -> bool:
            return not await _taken(env)

        await env.until(f"dead letters are refused ({refuse.__name__})", refused, 10)
        await asyncio.sleep(env.outage((2.5, 8.0), (2.5, 3.0)))
    if refuse is not _frozen and len(env.load.messages()) == before:
        env.complain("nothing was published while dead letters were refused")


async def _taken(env: Environment) -> bool:
    try:
        await env.js.publish(PROBE, b"", timeout=0.5)
    except (nats.errors.Error, TimeoutError):
        return False
    return True


@asynccontextmanager
async def _full(env: Environment) -> AsyncIterator[None]:
    await env.js.publish(PROBE, b"")
    before = await _call(env, f"STREAM.INFO.{DLQ_STREAM}")
    full = {**before["config"], "discard": "new", "max_msgs": before["state"]["messages"]}
    await _call(env, f"STREAM.UPDATE.{DLQ_STREAM}", full)
    yield
    await _call(env, f"STREAM.UPDATE.{DLQ_STREAM}", before["config"])


@asynccontextmanager
async def _unknown(env: Environment) -> AsyncIterator[None]:
    config = (await _call(env, f"STREAM.INFO.{DLQ_STREAM}"))["config"]
    await _call(env, f"STREAM.UPDATE.{DLQ_STREAM}", {**config, "subjects": ["elsewhere"]})
    yield
    await _call(env, f"STREAM.UPDATE.{DLQ_STREAM}", config)


@asynccontextmanager
async def _denied(env: Environment) -> AsyncIterator[None]:
    env.nats.reload(_DENIED)
    yield
    env.nats.reload(EVERYBODY)

    async def taken() -> bool:
        return await _taken(env)

    await env.until("dead letters are taken again", taken, 10)


@asynccontextmanager
async def _frozen(env: Environment) -> AsyncIterator[None]:
    server = await env.server_of_letters()
    server.pause()
    yield
    server.resume()


async def _call(env: Environment, subject: str, body: object = None) -> dict[str, Any]:
    payload = b"" if body is None else json.dumps(body).encode()
    answer = await env.client.request(f"$JS.API.{subject}", payload, timeout=10)
    reply: dict[str, Any] = json.loads(answer.data)
    assert "error" not in reply, reply["error"]
    return reply
