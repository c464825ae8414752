"""The connection to NATS: absent, lost, refused, and what is published through it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext

from events.delivery import TooLarge
from events.errors import BrokerError
from streams.jetstream.broker import Broker, Unusable
from streams.jetstream.publishing import wire_size
from streams.jetstream.stream_reader import ApiError
from testkit.servers import NatsServer, free_port
from tests.sources import PATIENCE, connected, eventually


@pytest.fixture
async def stream(js: JetStreamContext, company: str) -> AsyncIterator[str]:
    """A stream of this test's own; its subjects begin with its name."""
    await js.add_stream(name=company, subjects=[f"{company}.>"])
    yield company
    await js.delete_stream(company)


@pytest.mark.rule("RUN-4")
async def test_waits_for_a_server_that_is_not_there_yet(caplog: pytest.LogCaptureFixture) -> None:
    with NatsServer() as server:
        server.stop()
        broker = Broker(urls=[f"nats://someone:s3cret@127.0.0.1:{server.port}"], name="tests")
        await broker.start()

        async def complained() -> bool:
            return "127.0.0.1" in (broker.problem or "")

        await eventually(complained)
        server.start()
        async with asyncio.timeout(PATIENCE):
            await broker.wait_connected()
        assert broker.connected
        assert broker.problem is None
        await broker.stop()
    assert "s3cret" not in caplog.text
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) <= 2


async def test_uses_whichever_of_its_servers_is_there(nats_url: str) -> None:
    broker = Broker(urls=[f"nats://127.0.0.1:{free_port()}", nats_url], name="tests")
    await broker.start()
    async with asyncio.timeout(PATIENCE):
        await broker.wait_connected()
    await broker.stop()


async def test_a_stop_before_it_ever_connected_returns() -> None:
    broker = Broker(urls=[f"nats://127.0.0.1:{free_port()}"], name="tests")
    await broker.start()
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await broker.stop()


@pytest.mark.rule("RUN-7")
async def test_a_server_without_jetstream_is_named_as_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.jetstream.broker.NO_JETSTREAM_SECONDS", 0.1)
    accounts = 'accounts { A { users: [{user: "a", password: "b"}] } }'
    with NatsServer(settings=accounts) as server:
        broker = Broker(urls=[server.url.replace("//", "//a:b@")], name="tests")
        await broker.start()
        with pytest.raises(Unusable, match="no JetStream"):
            await asyncio.wait_for(broker.wait_connected(), PATIENCE)
        assert "no JetStream" in (broker.problem or "")
        await broker.stop()


@pytest.mark.rule("RUN-7")
async def test_an_old_server_is_named_as_the_problem(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.jetstream.broker.OLDEST_SERVER", (99, 0))
    broker = Broker(urls=[nats_url], name="tests")
    await broker.start()
    with pytest.raises(Unusable, match=r"2\.10 is needed"):
        await asyncio.wait_for(broker.wait_connected(), PATIENCE)
    await broker.stop()


async def test_tells_its_watchers_of_a_loss_and_of_the_return() -> None:
    seen: list[bool] = []
    counted: list[str] = []
    with NatsServer() as server:
        async with connected(server.url, on_reconnect=lambda: counted.append("again")) as broker:
            broker.watch(seen.append)
            server.kill()

            async def lost() -> bool:
                return seen == [False]

            await eventually(lost)
            assert broker.problem
            server.start()

            async def back() -> bool:
                return seen == [False, True]

            await eventually(back)
            assert broker.connected
            assert counted == ["again"]


async def test_publishing_is_confirmed_by_the_stream(
    nats_url: str, js: JetStreamContext, stream: str
) -> None:
    async with connected(nats_url) as broker:
        await broker.publish(f"{stream}.a", b"body", {"Nats-Msg-Id": "one", "X": "y"})
    stored = await js.get_msg(stream, 1)
    assert stored.data == b"body"
    assert stored.headers == {"Nats-Msg-Id": "one", "X": "y"}


@pytest.mark.rule("DLQ-2")
async def test_a_duplicate_counts_as_stored(nats_url: str, js: JetStreamContext, stream: str) -> None:
    async with connected(nats_url) as broker:
        for _ in range(2):
            await broker.publish(f"{stream}.a", b"body", {"Nats-Msg-Id": "one"})
    assert (await js.stream_info(stream)).state.messages == 1


async def test_what_no_stream_takes_is_an_error(nats_url: str) -> None:
    async with connected(nats_url) as broker:
        with pytest.raises(BrokerError):
            await broker.publish("nobody.listens.here", b"body", {})


async def test_an_oversize_message_is_refused_and_the_connection_lives(
    nats_url: str, js: JetStreamContext, stream: str
) -> None:
    headers = {"Nats-Msg-Id": "big", "Original-Nats-Msg-Id": "größer"}
    async with connected(nats_url) as broker:
        overhead = wire_size(b"", headers)
        with pytest.raises(TooLarge):
            await broker.publish(f"{stream}.a", b"x" * (broker.max_payload - overhead + 1), headers)
        await broker.publish(f"{stream}.a", b"x" * (broker.max_payload - overhead), headers)
        assert broker.connected
    assert (await js.stream_info(stream)).state.messages == 1


async def test_a_message_over_the_limit_of_the_stream_is_too_large(
    nats_url: str, js: JetStreamContext, company: str
) -> None:
    await js.add_stream(name=company, subjects=[f"{company}.>"], max_msg_size=100)
    async with connected(nats_url) as broker:
        with pytest.raises(TooLarge):
            await broker.publish(f"{company}.a", b"x" * 200, {})
    await js.delete_stream(company)


async def test_publishing_without_a_server_fails_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.jetstream.broker.REQUEST_SECONDS", 0.3)
    with NatsServer() as server:
        async with connected(server.url) as broker:
            server.kill()
            with pytest.raises(BrokerError):
                await broker.publish("v1.dlq.X", b"body", {})
            assert await broker.flush(0.3) is False


async def test_the_servers_own_error_comes_through(nats_url: str) -> None:
    async with connected(nats_url) as broker:
        with pytest.raises(ApiError) as caught:
            await broker.api("STREAM.INFO.no_such_stream")
    assert caught.value.code == 10059


async def test_a_connection_closed_for_good_is_told() -> None:
    told = asyncio.Event()
    accounts = 'authorization { users: [{user: "a", password: "b"}] }'
    with NatsServer(settings=accounts) as server:
        async with connected(server.url.replace("//", "//a:b@"), on_closed=told.set) as broker:
            # What nats-py does not let through by itself: more than the server takes.
            client: Client = broker._client
            client._max_payload *= 10
            await broker.messaging.send("x", b"x" * 3_000_000)
            await asyncio.wait_for(told.wait(), PATIENCE)
            assert broker.problem
            with pytest.raises(BrokerError):
                await broker.messaging.send("x", b"x")


async def test_stopping_tells_nobody(nats_url: str) -> None:
    told: list[str] = []
    async with connected(nats_url, on_closed=lambda: told.append("closed")):
        pass
    assert not told
