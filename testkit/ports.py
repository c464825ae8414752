"""Ports for the servers and workers of the demo and the tests."""

from __future__ import annotations

import os
import random
import socket
from collections import deque
from pathlib import Path
from typing import Final

_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST: Final = 15_000
# Ranges with fewer ports than this are not worth a search.
_ENOUGH: Final = 1_000
_TRIES: Final = 200
# A server that is stopped and started again needs its port in between; more claims would only cost descriptors.
_KEPT: Final = 64

# Bare descriptors: they are closed with the process, and no socket object complains of that.
_claims: deque[int] = deque()


def free_port() -> int:
    """A port of 127.0.0.1 that is free, and that no other caller, in whichever process, is given meanwhile.

    A port that the kernel chooses may go to anybody's next connection before its server has bound it. So it is one
    below the kernel's own range, and claimed by a name that ends with this process or with the 64 calls after this
    one. Where there is no such range (not Linux, or a range from 1024 on) it is the kernel's choice.
    """
    end = _end_of_ours()
    if end - _LOWEST >= _ENOUGH:
        for port in random.SystemRandom().sample(range(_LOWEST, end), _TRIES):
            if claim(port):
                return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def preferred_port(port: int) -> int:
    """This port if nobody has it, else a free one."""
    return port if claim(port) else free_port()


def _end_of_ours() -> int:
    """The first port that the kernel gives out by itself; 0 where that is not known."""
    try:
        return int(_RANGE.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def claim(port: int) -> bool:
    """Whether the port is free and claimed by no caller, in whichever process; then it is claimed for this one."""
    name = socket.socket(socket.AF_UNIX)
    try:
        # Abstract: known to every process of this machine, and gone with the one that has it.
        name.bind(f"\0daisi-port-{port}")
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", port))
    except OSError:
        name.close()
        return False
    _claims.append(name.detach())
    while len(_claims) > _KEPT:
        os.close(_claims.popleft())
    return True
