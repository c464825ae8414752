"""Logging in to a real NATS that asks for it, and speaking to it over TLS."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nats
import nkeys  # type: ignore[import-untyped]
import pytest
import trustme

from streams.config.credentials import Login
from streams.jetstream.broker import Broker
from testkit.servers import NatsServer, free_port
from testkit.worker import Worker
from tests import builders
from tests.acceptance.conftest import visited
from tests.nats_jwt import Realm, pair, seed
from tests.sources import connected, eventually

SECRET = "hunter2hunter2"


async def works(server: NatsServer, url: str = "", login: Login | None = None) -> bool:
    """Whether a broker gets through to JetStream."""
    async with connected(url or server.url, login=login or Login()) as broker:
        return "memory" in await broker.api("INFO")


async def complaint(url: str, wanted: str, login: Login | None = None) -> str:
    """What a broker says, once it says something with `wanted` in it; it must not get through."""
    broker = Broker(urls=[url], name="tests", login=login or Login())
    await broker.start()

    async def said() -> bool:
        return wanted in (broker.problem or "")

    try:
        await eventually(said)
        assert not broker.connected
        return broker.problem or ""
    finally:
        await broker.stop()


def at(server: NatsServer, user: str, scheme: str = "nats") -> str:
    return f"{scheme}://{user}@127.0.0.1:{server.port}"


async def test_user_and_password_are_taken_from_the_url(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings = f'authorization {{ user: "app", password: "{SECRET}" }}'
    with NatsServer(settings=settings) as server:
        assert await works(server, at(server, f"app:{SECRET}"))
        await complaint(at(server, f"app:{SECRET}x"), "uthorization")
    assert SECRET not in caplog.text


async def test_a_token_is_taken_from_the_url(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with NatsServer(settings=f'authorization {{ token: "{SECRET}" }}') as server:
        assert await works(server, at(server, SECRET))
        await complaint(at(server, f"{SECRET}x"), "uthorization")
    assert SECRET not in caplog.text


async def test_an_nkey_seed_in_a_file_logs_in(tmp_path: Path) -> None:
    user = pair(nkeys.PREFIX_BYTE_USER, 1)
    files = {number: tmp_path / f"{number}.nk" for number in (1, 2)}
    for number, file in files.items():
        file.write_bytes(seed(nkeys.PREFIX_BYTE_USER, number) + b"\n")
    settings = f"authorization {{ users: [ {{ nkey: {user.public_key.decode()} }} ] }}"
    with NatsServer(settings=settings) as server:
        assert await works(server, login=Login(nkey_seed=str(files[1])))
        await complaint(server.url, "uthorization", Login(nkey_seed=str(files[2])))
        await complaint(server.url, "uthorization")


async def test_a_credentials_file_logs_in(tmp_path: Path) -> None:
    realm = Realm()
    creds = tmp_path / "app.creds"
    realm.write_user(creds)
    with NatsServer(settings=realm.settings()) as server:
        assert await works(server, login=Login(creds=str(creds)))
        await complaint(server.url, "uthorization")


@dataclass(frozen=True)
class Tls:
    """A server that wants TLS, and the files for it."""

    server: NatsServer
    ca: str
    other_ca: str
    cert: str
    key: str


def _tls(folder: Path, *, clients: bool) -> tuple[dict[str, str], str]:
    """Files, and the server's configuration; with `clients` it asks for a certificate."""
    authority, other = trustme.CA(), trustme.CA()
    served, ours = authority.issue_cert("127.0.0.1", "localhost"), authority.issue_cert("app@example.org")
    names = ("ca", "other_ca", "cert", "key", "server_cert", "server_key")
    pems = (
        authority.cert_pem,
        other.cert_pem,
        ours.cert_chain_pems[0],
        ours.private_key_pem,
        served.cert_chain_pems[0],
        served.private_key_pem,
    )
    files = {name: str(folder / f"{name}.pem") for name in names}
    for name, pem in zip(names, pems, strict=True):
        pem.write_to_path(files[name])
        Path(files[name]).chmod(0o644)
    verify = "verify: true" if clients else ""
    lines = (
        f'cert_file: "{files["server_cert"]}", key_file: "{files["server_key"]}", ca_file: "{files["ca"]}"'
    )
    return files, f"tls {{ {lines}, {verify} }}"


@pytest.fixture(params=[False, True], ids=["server only", "both sides"])
def secured(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tls]:
    files, settings = _tls(tmp_path, clients=request.param)
    with NatsServer(settings=settings) as server:
        yield Tls(server, *(files[name] for name in ("ca", "other_ca", "cert", "key")))


@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_tls_with_files_gets_through(secured: Tls, scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{secured.server.port}"

    assert await works(
        secured.server, url, Login(tls_ca=secured.ca, tls_cert=secured.cert, tls_key=secured.key)
    )


async def test_a_server_that_nobody_vouches_for_is_not_spoken_to(secured: Tls) -> None:
    login = Login(tls_ca=secured.other_ca, tls_cert=secured.cert, tls_key=secured.key)

    assert "CERTIFICATE_VERIFY_FAILED" in await complaint(secured.server.url, "CERTIFICATE", login)
    assert "CERTIFICATE_VERIFY_FAILED" in await complaint(secured.server.url, "CERTIFICATE")


async def test_a_server_that_wants_a_certificate_refuses_who_has_none(tmp_path: Path) -> None:
    files, settings = _tls(tmp_path, clients=True)
    with NatsServer(settings=settings) as server:
        broker = Broker(urls=[server.url], name="tests", login=Login(tls_ca=files["ca"]))
        await broker.start()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(broker.wait_connected(), 2)
        await broker.stop()


@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_no_password_goes_to_a_server_without_tls_where_tls_is_set(tmp_path: Path, scheme: str) -> None:
    """Somebody in the middle would only have to leave TLS out of the greeting."""
    files, _ = _tls(tmp_path, clients=False)
    login = Login(tls_ca=files["ca"]) if scheme == "nats" else Login()
    heard = bytearray()
    port = free_port()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = {"server_id": "x", "version": "2.10.0", "max_payload": 1048576, "headers": True}
        writer.write(b"INFO " + json.dumps(greeting).encode() + b"\r\n")
        heard.extend(await reader.read())
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", port):
        said = await complaint(f"{scheme}://app:{SECRET}@127.0.0.1:{port}", "TLS", login)

    assert "does not ask for TLS" in said
    assert SECRET.encode() not in heard
    assert SECRET not in said


async def test_a_worker_needs_no_more_rights_than_the_page_says(
    tmp_path: Path, postgres_dsn: str, company: str
) -> None:
    """docs/security.md; events are stored, and a bad one comes through the dead letters."""
    rights = """
        { user: "worker", password: "w", permissions: {
            publish: [ "$JS.API.>", "$JS.ACK.>", "v1.dlq.<C>" ]
            subscribe: [ "_INBOX.>", "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>" ] } },
        { user: "gateway", password: "g", permissions: {
            publish: [ "v1.*.*.<C>" ], subscribe: [ "_INBOX.>" ] } },
        { user: "tests", password: "t" }"""
    with NatsServer(settings=f"authorization {{ users: [{rights.replace('<C>', company)}] }}") as server:
        worker = Worker(
            [company],
            nats_url=at(server, "worker:w"),
            postgres_dsn=postgres_dsn,
            log=tmp_path / "worker.log",
            NATS_DLQBASEDELAYMINUTES="0.001",
            NATS_DLQMAXDELAYMINUTES="0.001",
        )
        worker.start()
        gateway, observer = (
            await nats.connect(at(server, "gateway:g")),
            await nats.connect(at(server, "tests:t")),
        )
        try:
            await asyncio.to_thread(worker.wait_ready)
            async with visited(company, gateway, postgres_dsn) as probe:
                await probe.publish("v1.messages.upsert", builders.message())
                await probe.publish("v1.chats.upsert", builders.chat(chat_id=""))
                await probe.holds("messages", 1)
                await probe.holds("exhausted_events", 1)
                await replace(probe, nc=observer).settled()
        finally:
            await gateway.close()
            await observer.close()
            worker.kill()
    assert "ermission" not in worker.log.read_text()
