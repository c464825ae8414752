"""`docs/decisions.md` names a test for every field case of groups A to E, or says why it is not followed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

import streams
from tests.unit.test_promises import _TEST, _tests

ROOT: Final = Path(streams.__path__[0]).resolve().parent
GROUPS: Final = {
    "A": (1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20, 22),
    "B": (1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16),
    "C": (1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16),
    "D": (1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20, 22, 23, 25, 26),
    "E": (1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17),
}
CASES: Final = [f"{group}{number}" for group, numbers in GROUPS.items() for number in numbers]


def _section(title: str) -> list[list[str]]:
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    body = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in body.splitlines() if re.match(r"\| [A-E]\d", line)]
    assert all(len(row) == 3 for row in rows)
    return rows


def test_every_case_is_in_the_table_once_and_in_order() -> None:
    assert [case for case, _, _ in _section("Field cases")] == CASES


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_a_test_that_exists_or_a_reason(case: str) -> None:
    [(text, tests)] = [(text, tests) for row, text, tests in _section("Field cases") if row == case]
    found = _TEST.findall(tests)
    refused = {
        name for names, _, _ in _section("Field cases that are not followed") for name in names.split(", ")
    }

    assert [f"{file}::{name}" for file, name in found if name not in _tests(file)] == []
    assert found or case in refused
    assert ("not followed" not in text) or case in refused
