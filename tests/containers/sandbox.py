"""Namespaces for a Docker engine of our own: when the first process in them ends, the kernel removes all there is.

Processes, containers, networks, firewall rules, mounts and the files of the engine (in memory) go with it, however the
check ends, SIGKILL included. Containers reach the network through slirp4netns.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

# Set inside: where the engine's files are.
WORK: Final = "CONTAINERS_WORK"
_PROGRAMS: Final = ("dockerd", "debootstrap", "slirp4netns", "unshare")
_PR_SET_PDEATHSIG: Final = 1
_PATIENCE: Final = 20.0


def missing() -> list[str]:
    """What this machine lacks for an engine of our own; `make system-deps` installs the programs."""
    lacks = [f"the program {name}" for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    if os.geteuid() != 0:
        lacks.append("the rights of root")
    return lacks


def run(module: str, arguments: Sequence[str]) -> int:
    """Run a module of Python in namespaces of its own; its exit status."""
    entry = [sys.executable, "-m", module, *arguments]
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with subprocess.Popen(
        [*namespaces, *entry],
        stdin=subprocess.PIPE,
        env={**os.environ, "PATH": _path()},
        preexec_fn=_end_with_parent,
    ) as outer:
        network = None
        try:
            network = _network(_child(outer))
            assert outer.stdin is not None
            outer.stdin.write(b"\n")
            outer.stdin.flush()
            return outer.wait()
        finally:
            outer.kill()
            outer.wait()
            if network is not None:
                network.kill()
                network.wait()


def enter() -> Path:
    """Called inside: wait for the network, and make a folder in memory that vanishes with us."""
    sys.stdin.readline()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    work = Path("/mnt")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "containers", str(work)], check=True)
    return work


def _child(outer: subprocess.Popen[bytes]) -> int:
    """The first process in the namespaces, by its number outside."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if children := psutil.Process(outer.pid).children():
            return children[0].pid
        time.sleep(0.01)
    raise TimeoutError(f"unshare has started nothing within {_PATIENCE:g} s")


def _network(pid: int) -> subprocess.Popen[bytes]:
    reader, writer = os.pipe()
    try:
        network = subprocess.Popen(
            ["slirp4netns", "--configure", "--mtu=65520", f"--ready-fd={writer}", str(pid), "tap0"],
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_end_with_parent,
        )
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb") as ready:
        if not ready.read(1):
            raise RuntimeError("slirp4netns does not start")
    return network


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
