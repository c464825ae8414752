"""The images of others that the compose files name: the real ones where a registry answers, else stand-ins.

An engine of our own begins with all of them, and with the layers of our images that need the network: made once, then
kept as one file beside the sources.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from testkit.worker import ROOT
from tests.containers import debian
from tests.containers.debian import CACHE
from tests.containers.engine import Daemon, Engine, EngineError

PYTHON: Final = "python:3.11-slim-bookworm"
# The stage of the stand-ins' Dockerfile, and the image that it stands in for.
STAND_INS: Final = {
    "nats": "nats:2.11-alpine",
    "postgres": "postgres:17-bookworm",
    "prometheus": "prom/prometheus:v2.55.1",
    "alertmanager": "prom/alertmanager:v0.27.0",
}
OURS: Final = ROOT / "docker" / "Dockerfile"
_SERVERS: Final = Path(__file__).parent / "servers"
# What the kept file is made of; our code is not in it.
_SOURCES: Final = (
    Path(__file__), Path(debian.__file__), *sorted(_SERVERS.iterdir()),
    OURS, ROOT / "pyproject.toml", ROOT / "constraints.txt",
)  # fmt: skip
# Seconds for a registry's answer.
_PULL: Final = 120.0
_TAR: Final = ("tar", "--xattrs", "--xattrs-include=*")


class Unavailable(RuntimeError):
    """What the set-up has to download is out of reach; the message says what does not answer."""


def seeded(work: Path) -> Engine:
    """An engine of our own that has everything. Raises `Unavailable`, or `EngineError`."""
    kept, daemon = CACHE / f"engine-{_key()}.tar", Daemon(work)
    if kept.exists():
        subprocess.run([*_TAR, "--directory", work, "--extract", "--file", kept], check=True)
        return daemon.start()
    try:
        engine = daemon.start()
        provide(engine, work, partial(_build, engine, OURS, "worker"))
    except (EngineError, subprocess.CalledProcessError) as error:
        if unreachable := debian.unreachable():
            raise Unavailable(f"{unreachable} does not answer") from error
        raise
    daemon.stop()
    _keep(work / "data", kept)
    return daemon.start()


def provide(engine: Engine, scratch: Path, *also: Callable[[], None]) -> list[str]:
    """Make all images available; the names of those that were made here. Raises `EngineError`.

    `scratch`: where a whole Debian may be unpacked. `also`: what can begin as soon as there is Python.
    """
    absent = [name for name in (PYTHON, *STAND_INS.values()) if name not in engine.images()]
    if _pulled(engine, absent):
        absent = []
    if PYTHON in absent:
        _debian(engine, scratch)
    with ThreadPoolExecutor() as builds:
        begun = [builds.submit(each) for each in also]
        # One after the other: the classic builder builds every stage above the target.
        for stage, name in STAND_INS.items():
            if name in absent:
                _build(engine, _SERVERS / "Dockerfile", stage, name)
        for each in begun:
            each.result()
    return absent


def _build(engine: Engine, file: Path, target: str, name: str | None = None) -> None:
    context = ROOT if file == OURS else file.parent
    tag = ["--tag", name] if name else []
    engine.docker("build", "--quiet", "--file", file, "--target", target, *tag, context)


def _pulled(engine: Engine, names: Iterable[str]) -> bool:
    try:
        for name in names:
            engine.docker("pull", name, within=_PULL)
    except EngineError:
        return False
    return True


def _debian(engine: Engine, scratch: Path) -> None:
    """Debian as the official image of Python has it, as far as our Dockerfile relies on it."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        root = Path(folder, "root")
        packages = "ca-certificates,tzdata,wget,python3-pip,python3-venv"
        command = ("debootstrap", "--variant=minbase", f"--include={packages}", debian.OLDER, str(root))
        subprocess.run([*command, debian.mirror()], check=True, stdout=subprocess.DEVNULL)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        # Whom this machine trusts, pip in the image has to trust as well.
        certificates = Path("etc/ssl/certs/ca-certificates.crt")
        (root / certificates).write_bytes((Path("/") / certificates).read_bytes())
        # Packages start no daemons.
        policy = root / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        for junk in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*Packages*")):
            junk.unlink()
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as packed:
            assert packed.stdout is not None
            engine.imported(packed.stdout, PYTHON)


def _keep(data: Path, kept: Path) -> None:
    for old in CACHE.glob("engine-*"):
        old.unlink()
    unfinished = kept.with_suffix(".partial")
    subprocess.run(
        [*_TAR, "--directory", data.parent, "--create", "--file", unfinished, data.name],
        check=True,
    )
    unfinished.rename(kept)


def _key() -> str:
    """Changes with what the kept file is made of."""
    digest = hashlib.sha256()
    for path in _SOURCES:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
