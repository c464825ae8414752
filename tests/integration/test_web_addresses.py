"""Where the worker's web server listens: both families of addresses unless it is told otherwise."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from streams.monitoring.http import PortTaken, Web
from testkit.servers import free_port
from testkit.worker import ROOT, START, Worker

_V4, _V6 = "127.0.0.1", "::1"
_NOWHERE = "postgres://postgres@127.0.0.1:1/wa"
_NOWHERE_NATS = "nats://127.0.0.1:1"
_ASK = """
import ctypes, json, os, signal, socket, subprocess, sys, time
# It ends with this process, however that ends.
bound = lambda: ctypes.CDLL(None).prctl(1, 9)
worker = subprocess.Popen([sys.executable, "-m", "faust", "-A", "streams.app", "worker"], preexec_fn=bound)
answers = {}
for _ in range(600):
    if worker.poll() is not None:
        break
    for host in ("127.0.0.1", "::1"):
        try:
            with socket.create_connection((host, int(os.environ["SERVER_PORT"])), 5):
                answers[host] = True
        except OSError:
            pass
    if answers:
        worker.send_signal(signal.SIGTERM)
        break
    time.sleep(0.05)
print(json.dumps([sorted(answers), worker.wait()]))
"""


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((_V6, 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


class _Listening(Web):
    """The worker's web server without a worker around it."""

    def __init__(self, bind: str, port: int) -> None:
        self.app: Any = SimpleNamespace(conf=SimpleNamespace(web_bind=bind, web_port=port))
        self._runner = web.AppRunner(web.Application())


@asynccontextmanager
async def _listening(bind: str, port: int) -> AsyncIterator[None]:
    server = _Listening(bind, port)
    try:
        await server.start_server()
        yield
    finally:
        await server._runner.cleanup()


async def _answers(host: str, port: int) -> bool:
    """Whether there is a server; what it answers is no matter."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        answer = await reader.readline()
    except OSError:
        return False
    writer.close()
    return answer.startswith(b"HTTP/1.")


async def _answered(port: int) -> set[str]:
    return {host for host in (_V4, _V6) if await _answers(host, port)}


@contextmanager
def _taken(host: str) -> Iterator[int]:
    """A port that somebody else has, in one family."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        if ":" in host:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind((host, 0))
        taken.listen()
        yield taken.getsockname()[1]


@ipv6
def test_probes_of_both_families_are_answered_by_default(tmp_path: Path) -> None:
    worker = Worker(["K"], nats_url=_NOWHERE_NATS, postgres_dsn=_NOWHERE, log=tmp_path / "worker.log")
    worker.start()
    try:
        worker.wait_page("/health", 200)
        assert asyncio.run(_answered(worker.port)) == {_V4, _V6}
    finally:
        worker.kill()


@ipv6
@pytest.mark.parametrize(
    ("bind", "hosts"),
    [
        ("0.0.0.0,::", {_V4, _V6}),
        ("::,0.0.0.0", {_V4, _V6}),
        ("127.0.0.1,::1", {_V4, _V6}),
        ("127.0.0.1,127.0.0.2", {_V4}),
        ("0.0.0.0", {_V4}),
        ("127.0.0.1", {_V4}),
        ("::", {_V6}),
        ("::1", {_V6}),
    ],
)
async def test_addresses_that_are_set_are_listened_on_and_no_others(bind: str, hosts: set[str]) -> None:
    port = free_port()
    async with _listening(bind, port):
        assert await _answered(port) == hosts


@pytest.mark.rule("RUN-5")
@ipv6
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_port_that_is_taken_in_one_family_ends_the_start_and_is_named(tmp_path: Path, host: str) -> None:
    with _taken(host) as port:
        worker = Worker(
            ["K"],
            nats_url=_NOWHERE_NATS,
            postgres_dsn=_NOWHERE,
            log=tmp_path / "worker.log",
            SERVER_PORT=str(port),
        )
        worker.start()
        try:
            assert worker.process.wait(START) == 1
        finally:
            worker.kill()
    errors = [line["msg"] for line in worker.lines() if line["level"] == "error"]
    assert errors == [f"SERVER_PORT: port {port} is taken at {host}"]


@ipv6
@pytest.mark.parametrize(
    ("bind", "absent"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("127.0.0.1,2001:db8::1", "2001:db8::1"),
        ("0.0.0.0,2001:db8::1", "2001:db8::1"),
    ],
)
async def test_address_that_is_not_there_ends_the_start_also_beside_one_that_is(
    caplog: pytest.LogCaptureFixture, bind: str, absent: str
) -> None:
    with pytest.raises(PortTaken):
        async with _listening(bind, free_port()):
            pass
    assert caplog.messages == [f"SERVER_BIND: address {absent} is not there"]


_SAID_OF_A_FAMILY = [
    OSError(errno.EAFNOSUPPORT, "Address family not supported"),
    OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"),
    OSError("could not bind on any address"),  # asyncio
    socket.gaierror(socket.EAI_FAMILY, "Address family for hostname not supported"),  # uvloop
]


@pytest.mark.parametrize("error", _SAID_OF_A_FAMILY, ids=str)
@pytest.mark.parametrize("family", [":", "."])
async def test_wildcard_of_a_family_that_the_machine_does_not_know_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: OSError, family: str
) -> None:
    start = web.TCPSite.start

    async def fail(self: web.TCPSite) -> None:
        if family in str(self._host):
            raise error
        await start(self)

    monkeypatch.setattr(web.TCPSite, "start", fail)
    port = free_port()
    async with _listening("0.0.0.0,::", port):
        assert not await _answers(_V6 if family == ":" else _V4, port)
    alone = "::" if family == ":" else "0.0.0.0"
    with pytest.raises(PortTaken):
        async with _listening(alone, port):
            pass
    assert caplog.messages[-1] == f"SERVER_BIND: address {alone} is not there"


def _without(family: str) -> list[str]:
    """A command that runs another one on a network with loopback addresses of the other family only."""
    down = {
        "IPv6": "ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
        "IPv4": "ip link set lo up && ip addr del 127.0.0.1/8 dev lo",
    }[family]
    unshare = shutil.which("unshare")
    command = [
        unshare or "unshare",
        "--net",
        *(() if os.geteuid() == 0 else ("--map-root-user",)),
        "sh",
        "-ec",
    ]
    command.append(f'{down}; exec "$@"')
    if (
        unshare is None
        or subprocess.run([*command, "-", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("a network of its own cannot be made here")
    return [*command, "-"]


@pytest.mark.parametrize(("family", "hosts"), [("IPv6", [_V4]), ("IPv4", [_V6])])
def test_machine_without_addresses_of_one_family_starts_with_the_default(
    family: str, hosts: list[str]
) -> None:
    assert _asked(_without(family)) == (hosts, 0)


def _asked(command: list[str], **settings: str) -> tuple[list[str], int]:
    """Which hosts a worker answered, and its exit code."""
    environment = {
        "PATH": os.environ["PATH"],
        "COMPANY_ID": "KopiNusa",
        "POSTGRES_DSN": _NOWHERE,
        "NATS_URL": _NOWHERE_NATS,
        "SERVER_PORT": str(free_port()),
        **settings,
    }
    done = subprocess.run(
        [*command, sys.executable, "-c", _ASK],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    answered, code = json.loads(done.stdout.splitlines()[-1])
    return answered, code
