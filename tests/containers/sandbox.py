"""Namespaces for a Docker engine of our own: when the first process in them ends, the kernel removes all there is.

Processes, containers, networks, firewall rules, mounts and the files of the engine (in memory) go with it, however the
check ends, SIGKILL included. Containers reach the network through slirp4netns. Control groups belong to no namespace: a
shell outside removes them as soon as this process is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

# Where the containers' control groups are, below the root of each hierarchy.
_CGROUP: Final = "CONTAINERS_CGROUP"
_PR_SET_PDEATHSIG: Final = 1
_PATIENCE: Final = 20.0
# Waits until its input ends, which it does with the process that holds the other end, then removes the groups $1.
_SWEEP: Final = """
read -r _
for _ in $(seq 600); do
    groups=$(find /sys/fs/cgroup -mindepth 1 -maxdepth 2 -type d -name "$1" 2>/dev/null)
    test -n "$groups" || exit 0
    find $groups -depth -type d -exec rmdir {} + 2>/dev/null
    sleep 0.1
done
exit 1
"""


def run(module: str, arguments: Sequence[str]) -> int:
    """Run a module of Python in namespaces of its own; its exit status."""
    entry = [sys.executable, "-m", module, *arguments]
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    group = f"containers-check-{os.getpid()}"
    sweeper = subprocess.Popen(
        ["sh", "-c", _SWEEP, "sweep", group], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        with subprocess.Popen(
            [*namespaces, *entry],
            stdin=subprocess.PIPE,
            env={**os.environ, "PATH": path(), _CGROUP: group},
            preexec_fn=end_with_parent,
        ) as outer:
            return _guarded(outer)
    finally:
        assert sweeper.stdin is not None
        sweeper.stdin.close()
        sweeper.wait()


def _guarded(outer: subprocess.Popen[bytes]) -> int:
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


def cgroup() -> str:
    """Called inside: the parent of the containers' control groups."""
    return f"/{os.environ[_CGROUP]}"


def path() -> str:
    """The search path with the programs of root."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def end_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """From now on the kernel sends this signal when the parent ends, however it does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)


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
            preexec_fn=end_with_parent,
        )
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb") as ready:
        if not ready.read(1):
            raise RuntimeError("slirp4netns does not start")
    return network
