"""The images of others that the compose files name: the real ones where a registry answers, else stand-ins."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Final

from tests.containers.debian import CACHE
from tests.containers.engine import Engine, EngineError

PYTHON: Final = "python:3.11-slim-bookworm"
# The stage of the stand-ins' Dockerfile, and the image that it stands in for.
STAND_INS: Final = {
    "nats": "nats:2.11-alpine",
    "postgres": "postgres:17-bookworm",
    "prometheus": "prom/prometheus:v2.55.1",
    "alertmanager": "prom/alertmanager:v0.27.0",
}
_SERVERS: Final = Path(__file__).parent / "servers"
_BUILD: Final = Path(__file__)
# Seconds for a registry's answer.
_PULL: Final = 120.0


def provide(engine: Engine, work: Path) -> bool:
    """Make all images available; whether they are the real ones. Raises `EngineError`."""
    if _are_there(engine):
        return False
    if _pull(engine):
        return True
    kept = CACHE / f"images-{_key()}.tar"
    if not kept.exists():
        _build(engine, work / "root")
        for old in CACHE.glob("images-*"):
            old.unlink()
        partial = kept.with_suffix(".partial")
        engine.docker("save", "--output", partial, PYTHON, *STAND_INS.values())
        partial.rename(kept)
    else:
        engine.docker("load", "--input", kept)
    return False


def _are_there(engine: Engine) -> bool:
    names = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    return {PYTHON, *STAND_INS.values()} <= set(names)


def _pull(engine: Engine) -> bool:
    try:
        for image in (PYTHON, *STAND_INS.values()):
            engine.docker("pull", image, within=_PULL)
    except (EngineError, subprocess.TimeoutExpired):
        return False
    return True


def _build(engine: Engine, root: Path) -> None:
    """Debian as the official image of Python has it, as far as our Dockerfile relies on it, then the servers."""
    packages = "ca-certificates,tzdata,wget,python3-pip,python3-venv"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", root],
        check=True,
        stdout=subprocess.DEVNULL,
    )
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
    for stage, image in STAND_INS.items():
        engine.docker("build", "--quiet", "--target", stage, "--tag", image, _SERVERS)


def _key() -> str:
    """Changes with what the stand-ins are made of."""
    digest = hashlib.sha256()
    for path in (_BUILD, *sorted(_SERVERS.iterdir())):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
