"""Ports for tests: nobody else is given them, and the kernel gives them to no connection."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from testkit import ports
from testkit.worker import ROOT

_MANY: Final = 40
_ASK: Final = (
    f"from testkit.ports import free_port\nprint(*(free_port() for _ in range({_MANY})), flush=True); input()"
)

needs_room = pytest.mark.skipif(
    ports._end_of_ours() - ports._LOWEST < ports._ENOUGH,
    reason="the kernel's own range leaves no ports for us",
)


@needs_room
def test_processes_that_ask_at_the_same_time_are_given_different_ports() -> None:
    """Out of so few that chance alone would give some port twice."""
    narrow = f"from testkit import ports\nports._LOWEST = ports._end_of_ours() - ports._ENOUGH\n{_ASK}"
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", narrow],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    given = [port for each in asking if each.stdout for port in each.stdout.readline().split()]
    for each in asking:
        each.communicate("\n")
    assert len(set(given)) == len(given) == 4 * _MANY


@needs_room
def test_a_port_is_none_that_the_kernel_gives_to_connections() -> None:
    assert ports._LOWEST <= ports.free_port() < ports._end_of_ours()


@needs_room
def test_a_port_that_somebody_listens_on_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_ENOUGH", 2)
    monkeypatch.setattr(ports, "_TRIES", 2)
    with socket.socket() as somebody:
        taken = ports.free_port()
        somebody.bind(("127.0.0.1", taken))
        somebody.listen()
        monkeypatch.setattr(ports, "_LOWEST", taken)
        monkeypatch.setattr(ports, "_end_of_ours", lambda: taken + 2)
        os.close(ports._claims.pop())
        assert ports.free_port() != taken


def test_without_a_range_of_ours_the_kernel_chooses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ports, "_RANGE", tmp_path / "none")
    with socket.socket() as server:
        server.bind(("127.0.0.1", ports.free_port()))
