"""The gate sees when constraints.txt, pyproject.toml and what is installed have come apart."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from tools.constraints import ROOT, problems


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def change(path: Path, pattern: str, new: str) -> None:
    text, count = re.subn(pattern, new, path.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1
    path.write_text(text)


def test_nothing_is_wrong_with_ours(root: Path) -> None:
    assert problems(root) == ""


def test_missing_dependency_is_a_problem(root: Path) -> None:
    change(root / "constraints.txt", r"^psutil==.*\n", "")
    assert f"- psutil=={version('psutil')}" in problems(root)


def test_missing_dependency_of_a_dependency_is_a_problem(root: Path) -> None:
    change(root / "constraints.txt", r"^iniconfig==.*\n", "")
    assert f"- iniconfig=={version('iniconfig')}" in problems(root)


def test_version_outside_its_range_is_a_problem(root: Path) -> None:
    change(root / "pyproject.toml", r'"psutil[^"]*"', '"psutil>=999"')
    assert "psutil>=999" in problems(root)


def test_other_version_than_the_installed_one_is_a_problem(root: Path) -> None:
    change(root / "constraints.txt", r"^psutil==.*$", "psutil==1.0")
    assert "psutil==1.0" in problems(root)


def test_pins_for_other_platforms_do_not_count(root: Path) -> None:
    change(root / "constraints.txt", r"\Z", "no-such-package==1 ; sys_platform == 'no-such'\n")
    assert problems(root) == ""


def test_optional_dependencies_count_too(root: Path) -> None:
    change(root / "pyproject.toml", r'"ruff[^"]*"', '"ruff>=999"')
    assert "ruff>=999" in problems(root)
