"""Programs that tests run: the worker's commands, and those that are skipped with a reason where they are missing.

What `make system-deps` installs must be there in CI.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Final, NoReturn

import pytest

from testkit.worker import ROOT, START

_FOLDERS: Final = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
_SYSTEM_DEPS: Final = "run `make system-deps` (Debian, root)"


def required(program: str) -> str:
    """The path of a program."""
    if (found := installed(program)) is None:
        missing(program)
    return found


def installed(program: str) -> str | None:
    """The path of a program; None if it is missing."""
    return shutil.which(program, path=_FOLDERS)


def command(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`faust -A streams.app <arguments>`, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "faust", "-A", "streams.app", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=START,
        check=False,
    )


def missing(what: str, how: str = _SYSTEM_DEPS) -> NoReturn:
    """Skip the test with a word on how to get it; what `make system-deps` installs must be there in CI.

    With another `how` it is something that nobody can install here, such as an answer of the network.
    """
    reason = f"{what} is not installed: {how}"
    if os.environ.get("CI") and how == _SYSTEM_DEPS:
        pytest.fail(f"{reason}; in CI no such test is skipped")
    pytest.skip(reason)
