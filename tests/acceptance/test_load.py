"""`python -m demo.load` as an operator runs it: what it sends arrives, and what does not is said."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import nats
import pytest
from nats.js.api import DiscardPolicy, StreamConfig

from events.subjects import HISTORICAL, REALTIME
from testkit.server import free_port
from testkit.servers import NatsServer
from testkit.worker import ROOT, Scrape, Worker
from tests.acceptance.company_probe import HISTORY_STREAM, REALTIME_STREAM, CompanyProbe, comes_to
from tests.series import series

DEADLINE = 60.0


@contextmanager
def running(nats_url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A load generator on any free metrics port, killed if the test leaves it running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "demo.load", "--metrics-port", "0", *arguments],
        cwd=ROOT,
        env={**os.environ, "NATS_URL": nats_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def load(nats_url: str, *arguments: str) -> tuple[int, str]:
    """Run it to its end: exit code and output."""
    with running(nats_url, *arguments) as process:
        output, _ = process.communicate(timeout=DEADLINE)
        return process.returncode, output


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """The line that matches; fails at the end of the output."""
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        seen.append(line)
        if re.search(pattern, line):
            return line
    raise AssertionError(f"never said {pattern!r}: {''.join(seen)}")


def metrics_of(process: subprocess.Popen[str]) -> str:
    """The address of its page."""
    return read_until(process, "metrics on").rpartition(" on ")[2].strip()


def scrape(url: str) -> Scrape:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return Scrape(answer.read().decode())


def wait_for(url: str, name: str, least: float) -> Scrape:
    """The page, once a total has come to `least`."""
    deadline = time.monotonic() + DEADLINE
    while (page := scrape(url)).value(name) < least:
        assert time.monotonic() < deadline, page.text
        time.sleep(0.05)
    return page


def number(output: str, name: str) -> int:
    """A count of the summary."""
    found = re.search(rf"^{name} +(\d+)", output, re.MULTILINE)
    assert found, output
    return int(found[1])


async def make_streams(url: str, **settings: object) -> None:
    """Streams as a worker makes them, on a server of the test's own."""
    client = await nats.connect(url)
    for name, bases in ((REALTIME_STREAM, REALTIME), (HISTORY_STREAM, HISTORICAL)):
        subjects = [f"{base}.*" for base in bases]
        await client.jetstream().add_stream(StreamConfig(name=name, subjects=subjects, **settings))  # type: ignore[arg-type]
    await client.close()


async def test_the_worker_stores_what_was_confirmed(
    served: CompanyProbe, shared: Worker, nats_url: str
) -> None:
    code, output = await asyncio.to_thread(
        load, nats_url, "--companies", served.company, "--events", "1500", "--rate", "0"
    )
    assert code == 0, output
    assert [number(output, name) for name in ("attempted", "confirmed", "errors")] == [1500, 1500, 0]
    assert re.search(r"^latency +p50 [\d.]+ ms +p95 [\d.]+ ms +p99 [\d.]+ ms$", output, re.MULTILINE)

    async def accounted() -> float:
        page = await asyncio.to_thread(shared.scrape)
        return page.value("message_event_service_events_processed_total", company_id=served.company)

    await comes_to(1500.0, accounted)
    assert await served.letters() == 0
    for table in ("messages", "chats", "contacts"):
        assert await served.count(table) > 0


async def test_the_events_carry_an_id_and_their_company(
    served: CompanyProbe, shared: Worker, nats_url: str
) -> None:
    await asyncio.to_thread(
        load, nats_url, "--companies", served.company, "--events", "1", "--mix", "chats.upsert=1"
    )
    message = await served.js.get_last_msg(REALTIME_STREAM, served.tenant.subject("v1.chats.upsert"))
    assert message.headers is not None
    assert message.headers["CompanyID"] == served.company
    assert re.fullmatch(rf"load-\w+-{served.company}-1", message.headers["Nats-Msg-Id"])


async def test_invalid_events_become_dead_letters(
    served: CompanyProbe, shared: Worker, nats_url: str
) -> None:
    arguments = ("--companies", served.company, "--events", "40", "--invalid", "1", "--rate", "0")
    code, output = await asyncio.to_thread(load, nats_url, *arguments)
    assert code == 0, output
    await comes_to(40, served.letters)


async def test_the_same_seed_again_is_not_dropped_as_a_repeat(
    served: CompanyProbe, shared: Worker, nats_url: str
) -> None:
    arguments = ("--companies", served.company, "--events", "20", "--seed", "5", "--rate", "0")
    for _ in range(2):
        code, output = await asyncio.to_thread(load, nats_url, *arguments)
        assert code == 0, output
        assert "known to the stream" not in output


async def test_a_rate_and_a_duration_make_their_product_of_events_evenly_over_the_companies() -> None:
    with NatsServer() as server:
        await make_streams(server.url)
        arguments = ("--companies", "KopiNusa01,TokoJaya02", "--rate", "200", "--duration", "1500ms")
        with running(server.url, *arguments) as process:
            started = time.monotonic()
            url = metrics_of(process)
            page = await asyncio.to_thread(wait_for, url, "loadgen_messages_published_total", 1)
            output, _ = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
        assert process.returncode == 0, output
        assert time.monotonic() - started > 1.4
        attempted = number(output, "attempted")
        assert number(output, "confirmed") == attempted
        # All of them, unless this machine was so busy that it fell behind, which is then said.
        assert (attempted == 300) != ("of 300 planned" in output), output
        assert len(series(page)) == 3 * 2 * len(REALTIME + HISTORICAL)
        client = await nats.connect(server.url)
        counted = dict.fromkeys(("KopiNusa01", "TokoJaya02"), 0)
        for stream in (REALTIME_STREAM, HISTORY_STREAM):
            info = await client.jetstream().stream_info(stream, subjects_filter=">")
            for subject, count in (info.state.subjects or {}).items():
                counted[subject.rpartition(".")[2]] += count
        await client.close()
    assert sum(counted.values()) == attempted
    assert counted["KopiNusa01"] == (attempted + 1) // 2


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_an_endless_run_with_its_summary(sent: signal.Signals) -> None:
    with NatsServer() as server:
        await make_streams(server.url)
        with running(server.url, "--companies", "KopiNusa01", "--rate", "500") as process:
            url = metrics_of(process)
            await asyncio.to_thread(wait_for, url, "loadgen_messages_published_total", 20)
            process.send_signal(sent)
            output, _ = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
    assert process.returncode == 0, output
    assert number(output, "attempted") == number(output, "confirmed") >= 20
    assert "stopped by a signal" in output


async def test_what_the_stream_refuses_is_counted_and_said_and_fails_the_run() -> None:
    with NatsServer() as server:
        await make_streams(server.url, max_msgs=10, discard=DiscardPolicy.NEW)
        arguments = ("--companies", "KopiNusa01", "--events", "50", "--rate", "0", "--mix", "chats.upsert=1")
        code, output = await asyncio.to_thread(load, server.url, *arguments)
    assert code == 1, output
    assert [number(output, name) for name in ("attempted", "confirmed", "errors")] == [50, 10, 40]
    assert re.search(r"40 x maximum messages exceeded", output)


async def test_what_is_unanswered_in_an_outage_is_an_error_and_the_run_goes_on_after_it() -> None:
    with NatsServer() as server:
        await make_streams(server.url)
        arguments = ("--companies", "KopiNusa01", "--rate", "100", "--window", "20")
        with running(server.url, *arguments) as process:
            url = metrics_of(process)
            await asyncio.to_thread(wait_for, url, "loadgen_messages_published_total", 20)
            server.pause()
            page = await asyncio.to_thread(wait_for, url, "loadgen_publish_errors_total", 1)
            assert page.value("loadgen_publish_errors_total") <= 20
            server.resume()
            confirmed = page.value("loadgen_messages_published_total")
            await asyncio.to_thread(wait_for, url, "loadgen_messages_published_total", confirmed + 50)
            process.terminate()
            output, _ = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
    assert process.returncode == 1, output
    assert "x no answer within 5 s" in output
    assert number(output, "attempted") == number(output, "confirmed") + number(output, "errors")


async def test_a_second_signal_gives_up_the_answers_that_are_missing() -> None:
    with NatsServer() as server:
        await make_streams(server.url)
        with running(server.url, "--companies", "KopiNusa01", "--rate", "50") as process:
            url = metrics_of(process)
            await asyncio.to_thread(wait_for, url, "loadgen_messages_published_total", 5)
            server.pause()
            attempted = scrape(url).value("loadgen_messages_attempted_total")
            await asyncio.to_thread(wait_for, url, "loadgen_messages_attempted_total", attempted + 5)
            process.send_signal(signal.SIGINT)
            await asyncio.to_thread(read_until, process, "waiting for the last confirmations")
            process.send_signal(signal.SIGINT)
            output, _ = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
            server.resume()
    assert process.returncode == 1, output
    assert "x stopped before it was confirmed" in output


async def test_without_a_stream_it_waits_and_begins_when_there_is_one() -> None:
    with NatsServer() as server, running(server.url, "--companies", "KopiNusa01", "--events", "5") as process:
        line = await asyncio.to_thread(read_until, process, "waiting for a stream")
        assert "there is none): a worker creates it" in line
        await make_streams(server.url)
        output, _ = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
    assert process.returncode == 0, output
    assert number(output, "confirmed") == 5


def test_no_stream_in_time_is_an_error_that_says_what_to_do() -> None:
    with NatsServer() as server:
        code, output = load(server.url, "--companies", "KopiNusa01", "--events", "5", "--wait", "2s")
    assert code == 1
    assert re.search(r"^error: no stream takes v1\.\S+\.KopiNusa01 after 2 s", output, re.MULTILINE), output
    assert "start a worker first" in output


def test_no_server_in_time_is_an_error_that_names_the_option_and_hides_the_password() -> None:
    url = f"nats://user:secret@127.0.0.1:{free_port()}"
    code, output = load(url, "--companies", "KopiNusa01", "--events", "5", "--wait", "300ms")
    assert code == 1
    assert "error: --nats-url: no NATS at 127.0.0.1:" in output
    assert "secret" not in output
    assert "Traceback" not in output


def test_a_wrong_password_is_said_and_not_shown() -> None:
    with NatsServer(settings="authorization { user: loader, password: right }") as server:
        url = server.url.replace("//", "//loader:wrong@")
        code, output = load(url, "--companies", "KopiNusa01", "--events", "5", "--wait", "2s")
    assert code == 1
    assert re.search(r"^error: --nats-url: no NATS at .*Authorization Violation", output, re.M | re.I), output
    assert "wrong" not in output


def test_an_event_larger_than_the_server_takes_is_an_error_and_does_not_end_the_run() -> None:
    with NatsServer(settings="max_payload: 4096") as server:
        asyncio.run(make_streams(server.url))
        mix = "history.chats=1,chats.upsert=5"
        arguments = ("--companies", "KopiNusa01", "--events", "60", "--rate", "0", "--mix", mix)
        code, output = load(server.url, *arguments)
    assert code == 1, output
    assert re.search(r"^ +\d+ x larger than the server takes$", output, re.MULTILINE), output
    assert number(output, "confirmed") + number(output, "errors") == 60
    assert number(output, "confirmed") > 30


def test_a_signal_while_it_waits_ends_it_cleanly() -> None:
    with NatsServer() as server, running(server.url, "--companies", "KopiNusa01") as process:
        read_until(process, "waiting for a stream")
        process.terminate()
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, output
    assert number(output, "attempted") == 0


def test_a_taken_metrics_port_is_an_error_that_names_the_option(nats_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, output = load(nats_url, "--companies", "KopiNusa01", "--metrics-port", port)
    assert code == 1
    assert output.startswith(f"error: --metrics-port {port}: ")
