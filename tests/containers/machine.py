"""What a machine needs for an engine of our own, found out before anything is started."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from tests.containers import sandbox

# `make system-deps` installs those that are not there.
_PROGRAMS: Final = ("dockerd", "debootstrap", "slirp4netns", "unshare", "iptables")
_GIB: Final = 1024**3
# Images and everything that containers write are in memory.
_MEMORY: Final = 3 * _GIB
_UNSHARED: Final = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_OVERLAY: Final = """
mount -t tmpfs probe /mnt && cd /mnt && mkdir lower upper work merged \
    && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work probe merged
"""


def programs() -> list[str]:
    """The programs that are missing."""
    return [f"the program {name}" for name in _PROGRAMS if shutil.which(name, path=sandbox.path()) is None]


def lacks() -> list[str]:
    """Rights and features of the kernel that are missing; those of an unprivileged container."""
    if os.geteuid() != 0:
        return ["the rights of root"]
    if not _runs("true"):
        return ["the right to make namespaces (CAP_SYS_ADMIN)"]
    probes: dict[str, Callable[[], bool]] = {
        "the overlay file system": lambda: _runs(_OVERLAY),
        "iptables in a network namespace": lambda: _runs("iptables --table nat --list"),
        "the device /dev/net/tun": Path("/dev/net/tun").exists,
        "control groups that can be written to": _makes_groups,
        f"{_MEMORY // _GIB} GiB of free memory": lambda: psutil.virtual_memory().available >= _MEMORY,
    }
    return [what for what, is_there in probes.items() if not is_there()]


def _runs(script: str) -> bool:
    """Whether a script of the shell succeeds in namespaces of its own."""
    done = subprocess.run(
        [*_UNSHARED, "sh", "-ec", script],
        env={**os.environ, "PATH": sandbox.path()},
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def _makes_groups() -> bool:
    root = Path("/sys/fs/cgroup")
    group = (root / "devices" if (root / "devices").is_dir() else root) / f"containers-probe-{os.getpid()}"
    try:
        group.mkdir()
        group.rmdir()
    except OSError:
        return False
    return True
