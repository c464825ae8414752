"""The publisher of the demo and the tests: what no retry mends fails at once, what passes is sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from testkit.publisher import Confirmed, Publisher, PublishError
from testkit.traffic import Publication

# Beyond every test: who waits for it, or tries again without end, fails by the test's own limit.
HOUR = 3600.0
FOREIGN = "something other than JetStream answers"


def publication(company: str, body: bytes = b"{}") -> Publication:
    return Publication(1, f"v9.answers.{company}", body, {}, "v9.answers", ())


def answering(body: bytes) -> Callable[[Msg], Awaitable[None]]:
    async def answer(message: Msg) -> None:
        await message.respond(body)

    return answer


async def failure(publisher: Publisher, event: Publication) -> str:
    async with publisher:
        await publisher.send(event)
        with pytest.raises(PublishError) as raised:
            await asyncio.wait_for(publisher.finish(), 60)
    return str(raised.value)


@pytest.mark.parametrize("body", [b"", b"ok", b"\xff", b"{}", b'{"seq":1}', b'{"error":"busy"}', b"[1]"])
async def test_an_answer_that_is_not_jetstreams_fails_at_once_and_is_named(
    nc: Client, company: str, body: bytes
) -> None:
    await nc.subscribe(publication(company).subject, cb=answering(body))
    said = await failure(Publisher(nc, patience=HOUR, tries=None), publication(company))
    assert said.startswith(f"JetStream does not confirm events: v9.answers.{company}: {FOREIGN}")


async def test_what_the_stream_can_never_take_is_not_tried_again(
    nc: Client, js: JetStreamContext, company: str
) -> None:
    await js.add_stream(name=company, subjects=[publication(company).subject], max_msg_size=10)
    said = await failure(Publisher(nc, patience=HOUR, tries=None), publication(company, b"x" * 100))
    assert said.endswith("message size exceeds maximum allowed")
    await js.delete_stream(company)


async def test_what_the_server_can_never_take_is_not_tried_again(nc: Client, company: str) -> None:
    event = publication(company, b"x" * (nc.max_payload + 1))
    said = await failure(Publisher(nc, patience=HOUR, tries=None), event)
    assert said.endswith("larger than the server takes")


async def test_an_event_without_a_stream_is_sent_again_until_there_is_one(
    nc: Client, js: JetStreamContext, company: str
) -> None:
    confirmed: list[Confirmed] = []
    event = publication(company)
    async with Publisher(nc, patience=HOUR, tries=None, on_confirmed=confirmed.append) as publisher:
        await publisher.send(event)
        await nc.flush()
        await js.add_stream(name=company, subjects=[event.subject])
        await asyncio.wait_for(publisher.finish(), 60)
    assert [one.sequence for one in confirmed] == [1]
    await js.delete_stream(company)
