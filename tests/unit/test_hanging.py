"""A test that hangs fails with its name and its stack, and those after it are run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from testkit.worker import ROOT

_HANGING: Final = """
import asyncio
import threading

import pytest
from hypothesis import given, strategies


def test_in_a_thread() -> None:
    waits_for_ever = threading.Event()
    waits_for_ever.wait()


async def test_in_a_loop() -> None:
    await asyncio.Event().wait()


@given(strategies.integers())
def test_in_every_example(_: int) -> None:
    threading.Event().wait()


@pytest.fixture
async def stuck():
    yield
    await asyncio.Event().wait()


async def test_in_a_fixture(stuck: None) -> None:
    pass


def test_after_them() -> None:
    pass
"""
_HANG: Final = {"in_a_thread", "in_a_loop", "in_every_example", "in_a_fixture"}


def test_a_hanging_test_fails_with_its_name_and_its_stack_and_the_others_are_run(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from tests.hanging import pytest_timeout_set_timer\n", encoding="utf-8"
    )
    (tmp_path / "test_hanging.py").write_text(_HANGING, encoding="utf-8")
    options = ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--timeout=1.5", "-rfE", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    ended = re.findall(r"^(?:FAILED|ERROR) \S+::test_(\w+)", done.stdout, re.MULTILINE)
    assert set(ended) == _HANG, done.stdout
    assert done.stdout.count("Hanging: Timeout (>1.5s)") >= len(_HANG)
    assert "waits_for_ever.wait()" in done.stdout
    # What hangs in a fixture has passed before.
    assert re.search(r"3 failed, 2 passed, 1 error", done.stdout), done.stdout
