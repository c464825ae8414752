"""`docs/promises.md` names a test for every row of the contract that promises something, and each test exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

import streams

ROOT: Final = Path(streams.__path__[0]).resolve().parent
_LINE: Final = re.compile(r"^\| (\S+) \| .+ \| (.+) \|$")
_TEST: Final = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def _numbered(table: str, rows: int) -> list[str]:
    return [f"{table}.{row}" for row in range(1, rows + 1)]


# Rows of the contract's tables, and the faults of its section 11.
EXPECTED: Final = [
    *_numbered("3.8", 10),
    *_numbered("3.9", 8),
    *_numbered("4.3", 10),
    *_numbered("5.5", 5),
    *_numbered("5.7", 4),
    *(f"A{row}" for row in range(1, 8)),
    *(f"B{row}" for row in range(1, 11)),
    *(f"C{row}" for row in range(1, 30)),
]


def _index() -> dict[str, list[tuple[str, str]]]:
    """Row -> (file, test) of each of its tests."""
    lines = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8").splitlines()
    matches = [found for line in lines if (found := _LINE.match(line)) and found[1] not in ("Row", "---")]
    rows = [found[1] for found in matches]
    assert len(rows) == len(set(rows)), "a row is there twice"
    return {found[1]: _TEST.findall(found[2]) for found in matches}


@cache
def _tests(file: str) -> frozenset[str]:
    """The names of the tests of a file, in classes too."""
    path = ROOT / file
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def test_every_row_that_promises_something_is_in_the_index_once_and_in_order() -> None:
    assert list(_index()) == EXPECTED


@pytest.mark.parametrize("row", EXPECTED)
def test_every_promise_has_a_test_that_exists(row: str) -> None:
    tests = _index()[row]
    assert tests
    assert [f"{file}::{name}" for file, name in tests if name not in _tests(file)] == []
