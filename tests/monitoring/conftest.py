"""Programs that the monitoring tests need: without them the tests are skipped, in CI they fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.programs import required

Program = Callable[[str], str]


@pytest.fixture(scope="session")
def program() -> Program:
    """The path of a program of this name; skips where it is missing."""
    return required


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus's checker."""
    return required("promtool")


@pytest.fixture(scope="session")
def amtool() -> str:
    """Alertmanager's checker."""
    return required("amtool")
