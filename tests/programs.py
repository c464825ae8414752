"""Programs of the system that some tests need: skipped with a reason where they are missing, a failure in CI."""

from __future__ import annotations

import os
import shutil
from typing import Final, NoReturn

import pytest

_FOLDERS: Final = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))


def required(program: str) -> str:
    """The path of a program."""
    found = shutil.which(program, path=_FOLDERS)
    if found is None:
        missing(program)
    return found


def missing(what: str, how: str = "run `make system-deps` (Debian, root)") -> NoReturn:
    """Skip the test with a word on how to get it, or fail it in CI."""
    reason = f"{what} is not installed: {how}"
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; in CI no such test is skipped")
    pytest.skip(reason)
