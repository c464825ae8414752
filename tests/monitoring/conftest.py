"""Programs that the monitoring tests need: without them the tests are skipped, in CI they fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

Program = Callable[[str], str]


def _missing(what: str) -> None:
    reason = f"{what} is not installed: run `make system-deps` (Debian, root)"
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; in CI nothing of the monitoring is skipped")
    pytest.skip(reason)


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        _missing(name)
    return path or name


@pytest.fixture(scope="session")
def program() -> Program:
    """The path of a program of this name; skips where it is missing."""
    return _program


@pytest.fixture(scope="session")
def promtool(program: Program) -> str:
    """Prometheus's checker."""
    return program("promtool")


@pytest.fixture(scope="session")
def amtool(program: Program) -> str:
    """Alertmanager's checker."""
    return program("amtool")
