"""What a denied permission does to requests that wait for a reply."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from streams.jetstream.permissions import PUBLISH, Denial, Permissions

SUBJECT = "$JS.API.CONSUMER.CREATE.s.c"
DENIAL = Denial(PUBLISH, SUBJECT, f'Permissions Violation for Publish to "{SUBJECT}"')


async def _request(permissions: Permissions, reply: asyncio.Future[None], seconds: float) -> Denial | None:
    """As `Messaging.request` does; nats-py takes some turns of the loop to end a request."""
    limit = asyncio.timeout(seconds)
    with permissions.pending(limit, SUBJECT, lambda: "") as pending, suppress(TimeoutError):
        async with limit:
            try:
                await reply
            finally:
                for _ in range(5):
                    await asyncio.sleep(0)
    return pending.denial


async def test_denials_of_one_permission_in_a_row_end_each_request_once() -> None:
    permissions = Permissions()
    request = asyncio.create_task(_request(permissions, asyncio.get_running_loop().create_future(), 60))
    await asyncio.sleep(0)
    while not request.done():
        permissions.denied(DENIAL)  # must not raise: nats-py ends its read loop at that
        await asyncio.sleep(0)
    assert await request == DENIAL


async def test_denial_that_comes_with_the_end_of_the_time_breaks_nothing() -> None:
    permissions = Permissions()
    request = asyncio.create_task(_request(permissions, asyncio.get_running_loop().create_future(), 0.01))
    while not request.done():
        await asyncio.sleep(0)
        if permissions._pending and permissions._pending[0].limit.expired():
            permissions.denied(DENIAL)
    assert await request is None


async def test_a_reply_that_comes_with_a_denial_is_taken() -> None:
    permissions = Permissions()
    reply: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    limit = asyncio.timeout(60)
    with permissions.pending(limit, SUBJECT, lambda: "") as pending:
        async with limit:
            reply.set_result(None)
            permissions.denied(DENIAL)
            await reply
    assert pending.denial == DENIAL
    assert not permissions._pending
