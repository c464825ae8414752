"""Programs from a newer release of Debian than the machine's own, unpacked into a folder, not installed.

Needs nothing but Python and apt: `make system-deps` runs it before there is anything else.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# What is downloaded and built once; `make clean` removes it.
CACHE: Final = Path(__file__).resolve().parents[2] / ".containers"
COMPOSE: Final = CACHE / "debian/usr/libexec/docker/cli-plugins/docker-compose"
KUSTOMIZE: Final = CACHE / "debian/usr/bin/kustomize"
_PACKAGES: Final = ("docker-compose", "kustomize")
# No earlier one has these.
_SUITE: Final = "trixie"
# The one that the image is made of.
OLDER: Final = "bookworm"
_KEYS: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


def provide() -> None:
    """Have Compose v2 and kustomize, downloaded once from this machine's mirror. Raises `CalledProcessError`."""
    folder = CACHE / "debian"
    if folder.exists():
        return
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        partial = Path(scratch, "debian")
        _unpack(_PACKAGES, partial)
        partial.rename(folder)


def mirror() -> str:
    """Where this machine gets the packages of Debian itself from."""
    query = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian"]
    sites = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    # Security updates have a mirror of their own, without the packages.
    return next(site for site in sites if "security" not in site)


def unreachable() -> str:
    """What cannot be downloaded from now: Debian's mirror, or the index of Python's packages; empty if both answer."""
    with tempfile.TemporaryDirectory() as scratch:
        apt = _apt(Path(scratch), OLDER)
        if subprocess.run([*apt, "update"], capture_output=True, check=False).returncode:
            return "the mirror of Debian"
        wheel = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--dest",
            scratch,
            "wheel",
        ]
        if subprocess.run(wheel, capture_output=True, check=False).returncode:
            return "the index of Python's packages"
    return ""


def _unpack(packages: Sequence[str], folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        apt = _apt(Path(scratch), _SUITE)
        for command in (["update"], ["download", *packages]):
            subprocess.run([*apt, *command], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        for downloaded in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", downloaded, folder], check=True)


def _apt(scratch: Path, suite: str) -> list[str]:
    """An apt-get of another suite, whose lists are in `scratch`; what it cannot fetch is an error."""
    # The account that apt downloads as writes there.
    scratch.chmod(0o777)
    sources = scratch / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYS}] {mirror()} {suite} main\n")
    lists = scratch / "lists"
    (lists / "partial").mkdir(parents=True)
    return [
        "apt-get", "-qq", "-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=-",
        "-o", f"Dir::State::lists={lists}", "-o", "Acquire::Languages=none", "-o", "Acquire::Retries=2",
        "-o", "APT::Update::Error-Mode=any",
    ]  # fmt: skip


if __name__ == "__main__":
    provide()
