"""The list of guards is in step with the source: `make guards` itself takes too long for every run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools.guards import ROOT, Guard, guards, take_out

EACH = pytest.mark.parametrize("guard", guards(), ids=lambda guard: guard.name)


@EACH
def test_a_guard_is_where_the_list_says(guard: Guard, tmp_path: Path) -> None:
    (tmp_path / guard.file).parent.mkdir(parents=True)
    shutil.copy(ROOT / guard.file, tmp_path / guard.file)

    take_out(guard, tmp_path)

    without = (tmp_path / guard.file).read_text(encoding="utf-8")
    assert without != (ROOT / guard.file).read_text(encoding="utf-8")
    if guard.file.endswith(".py"):
        compile(without, guard.file, "exec")


@EACH
def test_the_tests_of_a_guard_are_there(guard: Guard) -> None:
    assert guard.tests
    assert all((ROOT / test.partition("::")[0]).is_file() for test in guard.tests)


def test_no_two_guards_have_one_name() -> None:
    names = [guard.name for guard in guards()]
    assert len(names) == len(set(names))
