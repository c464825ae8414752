"""Programs that some tests need: skipped with a reason where they are missing; in CI a failure."""

from __future__ import annotations

import os
import shutil
from typing import Final, NoReturn

import pytest

_FOLDERS: Final = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
_SYSTEM_DEPS: Final = "run `make system-deps` (Debian, root)"


def required(program: str) -> str:
    """The path of a program."""
    found = shutil.which(program, path=_FOLDERS)
    if found is None:
        missing(program)
    return found


def missing(what: str, how: str = _SYSTEM_DEPS) -> NoReturn:
    """Skip the test with a word on how to get it; what `make system-deps` installs must be there in CI.

    With another `how` it is something that nobody can install here, such as an answer of the network.
    """
    reason = f"{what} is not installed: {how}"
    if os.environ.get("CI") and how == _SYSTEM_DEPS:
        pytest.fail(f"{reason}; in CI no such test is skipped")
    pytest.skip(reason)
