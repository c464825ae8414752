"""Credentials that NATS refuses for a while: the worker waits, says what to renew, and goes on by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import nkeys  # type: ignore[import-untyped]
import pytest

from events.errors import BrokerError
from streams.config.credentials import Login
from streams.jetstream.broker import Broker
from tests.nats_jwt import Realm, pair, seed
from tests.nats_servers import ConfigurableNats
from tests.sources import eventually


@pytest.fixture
def realm() -> Realm:
    return Realm()


@pytest.fixture
def server(realm: Realm) -> Iterator[ConfigurableNats]:
    """A NATS that knows users by their tokens."""
    with ConfigurableNats(settings=realm.settings()) as server:
        yield server


@asynccontextmanager
async def connecting(url: str, login: Login | None = None) -> AsyncIterator[Broker]:
    """A broker, which must not be closed for good."""
    closed: list[str] = []
    broker = Broker(
        urls=[url], name="tests", login=login or Login(), on_closed=lambda: closed.append("closed")
    )
    await broker.start()
    try:
        yield broker
        assert not closed
    finally:
        await broker.stop()


async def works(broker: Broker) -> None:
    """Wait until JetStream answers."""

    async def answers() -> bool:
        with suppress(BrokerError):
            return broker.connected and "memory" in await broker.api("INFO")
        return False

    await eventually(answers, within=20)
    assert broker.problem is None


async def refused(broker: Broker, *words: str) -> None:
    """Wait until it says that our credentials are refused, and these words."""

    async def said() -> bool:
        problem = broker.problem or ""
        return not broker.connected and all(word in problem for word in ("refuses our credentials", *words))

    await eventually(said, within=20)


async def test_a_token_that_expires_is_waited_out_and_renewed_without_a_restart(
    server: ConfigurableNats, realm: Realm, tmp_path: Path
) -> None:
    creds = tmp_path / "app.creds"
    realm.write_user(creds, expires=3)
    async with connecting(server.url, Login(creds=str(creds))) as broker:
        await works(broker)
        await refused(broker, "NATS_CREDS", "valid until")
        realm.write_user(creds)
        await works(broker)


async def test_a_token_that_is_renewed_in_time_costs_a_reconnect(
    server: ConfigurableNats, realm: Realm, tmp_path: Path
) -> None:
    creds = tmp_path / "app.creds"
    realm.write_user(creds, expires=3)
    lost: list[bool] = []
    async with connecting(server.url, Login(creds=str(creds))) as broker:
        broker.watch(lost.append)
        await works(broker)
        realm.write_user(creds)

        async def again() -> bool:
            return lost == [False, True]

        await eventually(again)
        await works(broker)


async def test_a_token_that_expired_before_the_start_is_waited_for(
    server: ConfigurableNats, realm: Realm, tmp_path: Path
) -> None:
    creds = tmp_path / "app.creds"
    realm.write_user(creds, expires=-60)
    async with connecting(server.url, Login(creds=str(creds))) as broker:
        await refused(broker, "NATS_CREDS", "valid until")
        realm.write_user(creds)
        await works(broker)


@pytest.mark.parametrize("text", ["", "half a file", None], ids=["empty", "half", "gone"])
async def test_a_file_that_is_being_replaced_stops_nothing(
    server: ConfigurableNats, realm: Realm, tmp_path: Path, text: str | None
) -> None:
    """A reader may come between the truncation of a file and its new content."""
    creds = tmp_path / "app.creds"
    realm.write_user(creds)
    async with connecting(server.url, Login(creds=str(creds))) as broker:
        await works(broker)
        creds.unlink() if text is None else creds.write_text(text)
        server.restart()

        async def said() -> bool:
            return "NATS_CREDS" in (broker.problem or "")

        await eventually(said)
        realm.write_user(creds)
        await works(broker)


@pytest.mark.parametrize("trouble", ["without_account", "revoked"])
async def test_an_account_or_user_that_is_taken_away_and_given_back(
    server: ConfigurableNats, realm: Realm, tmp_path: Path, trouble: str
) -> None:
    creds = tmp_path / "app.creds"
    realm.write_user(creds)
    async with connecting(server.url, Login(creds=str(creds))) as broker:
        await works(broker)
        server.reconfigure(realm.settings(**{trouble: True}))
        await refused(broker)
        server.reconfigure(realm.settings())
        await works(broker)


async def test_a_wrong_seed_file_is_replaced(tmp_path: Path) -> None:
    user = pair(nkeys.PREFIX_BYTE_USER, 1).public_key.decode()
    file = tmp_path / "user.nk"
    file.write_bytes(seed(nkeys.PREFIX_BYTE_USER, 2))
    with ConfigurableNats(settings=f"authorization {{ users: [ {{ nkey: {user} }} ] }}") as server:
        async with connecting(server.url, Login(nkey_seed=str(file))) as broker:
            await refused(broker, "NATS_NKEY_SEED")
            file.write_bytes(seed(nkeys.PREFIX_BYTE_USER, 1))
            await works(broker)


@pytest.mark.parametrize("how", ["reload", "reconfigure"])
async def test_another_password_for_a_while(how: str) -> None:
    def users(password: str) -> str:
        return f'authorization {{ users: [ {{ user: "app", password: "{password}" }} ] }}'

    with ConfigurableNats(settings=users("old")) as server:
        async with connecting(server.at("app:old")) as broker:
            await works(broker)
            getattr(server, how)(users("new"))
            await refused(broker, "NATS_URL")
            assert "old" not in (broker.problem or "")
            getattr(server, how)(users("old"))
            await works(broker)


async def test_too_many_connections_are_waited_out() -> None:
    """Not a matter of credentials, but closed by the server all the same."""
    with ConfigurableNats() as server:
        async with connecting(server.url) as broker:
            await works(broker)
            server.reconfigure("max_connections: 1")
            async with connecting(server.url) as other:

                async def one_of_them() -> bool:
                    return broker.connected is not other.connected

                await eventually(one_of_them, within=20)
                server.reconfigure("")
                await works(broker)
                await works(other)
