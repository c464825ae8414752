"""What a denied right does to those who wait for an answer."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from streams.jetstream.permissions import PUBLISH, Denial, Permissions

SUBJECT = "$JS.API.CONSUMER.CREATE.s.c"
DENIAL = Denial(PUBLISH, SUBJECT, f'Permissions Violation for Publish to "{SUBJECT}"')


async def _ask(permissions: Permissions, inner: asyncio.Future[None], seconds: float) -> Denial | None:
    """As `NatsLink.ask` does; nats-py takes some turns of the loop to end a request."""
    limit = asyncio.timeout(seconds)
    with suppress(TimeoutError):
        async with limit:
            with permissions.waiting(limit, SUBJECT, lambda: ""):
                try:
                    await inner
                finally:
                    for _ in range(5):
                        await asyncio.sleep(0)
    return permissions.ended(limit)


async def test_denials_of_one_right_in_a_row_end_each_wait_once() -> None:
    permissions = Permissions()
    asking = asyncio.create_task(_ask(permissions, asyncio.get_running_loop().create_future(), 60))
    await asyncio.sleep(0)
    while not asking.done():
        permissions.denied(DENIAL)  # must not raise: nats-py ends its read loop at that
        await asyncio.sleep(0)
    assert await asking == DENIAL


async def test_denial_that_comes_with_the_end_of_the_time_breaks_nothing() -> None:
    permissions = Permissions()
    asking = asyncio.create_task(_ask(permissions, asyncio.get_running_loop().create_future(), 0.01))
    while not asking.done():
        await asyncio.sleep(0)
        if not asking.done() and permissions._waiting and next(iter(permissions._waiting)).expired():
            permissions.denied(DENIAL)
    assert await asking is None


async def test_what_ended_a_wait_is_not_kept_when_the_answer_came_all_the_same() -> None:
    permissions = Permissions()
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    limit = asyncio.timeout(60)
    with suppress(TimeoutError):
        async with limit:
            with permissions.waiting(limit, SUBJECT, lambda: ""):
                answer.set_result(None)
                permissions.denied(DENIAL)
                await answer
    assert not permissions._ended
