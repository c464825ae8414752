"""Why a dead letter could not be published is told in the server's own words, each refusal apart from the others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js.api import StorageType

from events.errors import BrokerError
from streams.jetstream.broker import Broker
from testkit.servers import NatsServer

_ACCOUNT = """accounts {{ A: {{ jetstream: {{ {0} }}, users: [{{user: a, password: a}}] }} }}
no_auth_user: a"""


@asynccontextmanager
async def _refusing(stream: dict[str, Any], settings: str = "") -> AsyncIterator[Broker]:
    """A broker beside a stream of these settings that is filled until it takes nothing."""
    with NatsServer(settings=settings) as server:
        client = await nats.connect(server.url)
        js = client.jetstream()
        await js.add_stream(name="dlq_stream", subjects=["v1.dlq.*"], **stream)
        try:
            for _ in range(300):
                await js.publish("v1.dlq.X", b"x" * 10_000)
        except nats.js.errors.APIError:
            pass
        broker = Broker(urls=[server.url], name="test")
        await broker.start()
        await broker.wait_connected()
        yield broker
        await broker.stop()
        await client.close()


@pytest.mark.parametrize(
    ("stream", "settings", "reason"),
    [
        ({"max_msgs": 3, "discard": "new"}, "", "maximum messages exceeded (10077)"),
        ({"max_bytes": 50_000, "discard": "new"}, "", "maximum bytes exceeded (10077)"),
        ({}, _ACCOUNT.format("max_file: 100000"), "resource limits exceeded for account (10002)"),
        (
            {"storage": StorageType.MEMORY},
            _ACCOUNT.format("max_mem: 100000, max_file: 100000"),
            "resource limits exceeded for account (10002)",
        ),
        (
            {"max_msgs_per_subject": 2, "discard": "new", "discard_new_per_subject": True},
            "",
            "maximum messages per subject exceeded (10077)",
        ),
        (
            {},
            'jetstream {{ store_dir: "{0}", max_file: 100000 }}',
            "insufficient resources (10023)",
        ),
    ],
    ids=[
        "messages",
        "bytes",
        "account's files",
        "account's memory",
        "messages of a subject",
        "server's files",
    ],
)
async def test_refusal_of_a_stream_is_told_in_the_servers_words(
    tmp_path: Path, stream: dict[str, Any], settings: str, reason: str
) -> None:
    settings = settings.format(tmp_path) if "store_dir" in settings else settings
    async with _refusing(stream, settings) as broker:
        with pytest.raises(BrokerError) as refused:
            await broker.publish("v1.dlq.X", b"x" * 10_000, {})
    assert reason in str(refused.value)


async def test_subject_without_a_stream_is_told_apart_from_a_server_that_does_not_answer() -> None:
    async with _refusing({}) as broker:
        with pytest.raises(BrokerError, match="no stream has this subject"):
            await broker.publish("v1.elsewhere.X", b"x", {})
