"""Programs from a newer release of Debian than the machine's own, unpacked into a folder, not installed."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# Compose v2 and kustomize are in no earlier one.
_SUITE: Final = "trixie"
_KEYS: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unpack(packages: Sequence[str], folder: Path) -> None:
    """Download packages from the mirror that this machine uses, and unpack them. Raises `CalledProcessError`."""
    with tempfile.TemporaryDirectory() as scratch:
        # The account that apt downloads as writes there.
        os.chmod(scratch, 0o777)
        sources = Path(scratch, "sources.list")
        sources.write_text(f"deb [signed-by={_KEYS}] {_mirror()} {_SUITE} main\n")
        lists = Path(scratch, "lists")
        (lists / "partial").mkdir(parents=True)
        apt = [
            "apt-get", "-qq", "-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=-",
            "-o", f"Dir::State::lists={lists}", "-o", "Acquire::Languages=none",
        ]  # fmt: skip
        for command in (["update"], ["download", *packages]):
            subprocess.run([*apt, *command], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        for downloaded in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", downloaded, folder], check=True)


def _mirror() -> str:
    """Where this machine gets the packages of Debian itself from."""
    query = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian"]
    sites = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    # Security updates have a mirror of their own, without the packages.
    return next(site for site in sites if "security" not in site)
