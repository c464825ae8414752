"""The deadline of a stop, kept in a real process, whatever that does instead of stopping."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from testkit.worker import ROOT

_SETUP = """
    import asyncio, os, signal, sys, time
    from streams import logs
    from streams.worker.shutdown import Shutdown

    logs.configure()
    shutdown = Shutdown({seconds})
    shutdown.stopping = "the pool"
    shutdown.watch((signal.SIGTERM, signal.SIGINT))
    print("watching", flush=True)
"""
# Short sleeps: a signal that comes just before one begins is noticed by Python only after it.
_FOREVER = "while True: time.sleep(0.05)"


@contextmanager
def _process(body: str = _FOREVER, *, seconds: float = 60.0) -> Iterator[subprocess.Popen[str]]:
    """A process that watches for its stop, and does something else for ever."""
    code = textwrap.dedent(_SETUP.format(seconds=seconds)) + textwrap.dedent(body)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "watching\n"
            yield process
        finally:
            process.kill()


def _end(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code, and what was logged."""
    out, errors = process.communicate(timeout=20)
    assert errors == ""
    return process.returncode, [json.loads(line)["msg"] for line in out.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_that_hangs_ends_at_the_deadline_and_the_log_says_what_is_left(number: signal.Signals) -> None:
    with _process(seconds=0.3) as process:
        process.send_signal(number)
        code, told = _end(process)
    assert code == 75
    [line] = told
    assert line.startswith("not stopped within 0.3 s (STOP_TIMEOUT); left: the pool")


@pytest.mark.rule("RUN-15")
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    with _process() as process:
        process.send_signal(signal.SIGTERM)
        # Two signals of one kind that come together are one.
        time.sleep(1)
        process.send_signal(second)
        code, told = _end(process)
    assert code == 128 + second
    [line] = told
    assert "second signal" in line


def test_process_that_ended_in_time_is_left_alone() -> None:
    body = "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7)); print(1, flush=True)\n" + _FOREVER
    with _process(body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGUSR1)
        assert _end(process) == (7, [])


def test_stop_that_the_worker_asked_for_itself_has_the_same_deadline_and_code_1() -> None:
    body = "shutdown.fail('x')\n" + _FOREVER
    with _process(body, seconds=0.3) as process:
        code, told = _end(process)
    assert code == 1
    assert "not stopped within" in told[-1]


def test_first_signal_from_outside_beside_the_workers_own_ends_it_at_once() -> None:
    body = "shutdown.begin(); os.kill(os.getpid(), signal.SIGTERM); print(1, flush=True)\n" + _FOREVER
    with _process(body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGTERM)
        assert _end(process)[0] == 128 + signal.SIGTERM


def test_failure_while_the_worker_stops_already_is_no_second_signal() -> None:
    body = """
    sys.stdin.readline()
    shutdown.fail("x")
    """
    with _process(textwrap.dedent(body) + _FOREVER, seconds=1.0) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        code, told = _end(process)
    assert code == 1
    assert "not stopped within" in told[-1]


def test_log_that_nobody_reads_does_not_hold_the_end_up() -> None:
    with _process("while True: print('x' * 100_000)", seconds=0.3) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 75


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_event_loop_hears_of_the_signal_as_well(loop: str) -> None:
    pytest.importorskip(loop)
    body = f"""
    import {loop}
    loop = {loop}.new_event_loop()
    stopped = loop.create_future()
    loop.add_signal_handler(signal.SIGTERM, stopped.set_result, None)
    shutdown.watch((signal.SIGTERM,))
    loop.call_soon(lambda: print("again", flush=True))
    loop.run_until_complete(stopped)
    sys.exit(5)
    """
    with _process(body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "again\n"
        process.send_signal(signal.SIGTERM)
        assert _end(process)[0] == 5
