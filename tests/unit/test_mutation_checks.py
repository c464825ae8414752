"""The list of mutations is in step with the source: `make guards` itself takes too long for every run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools.mutation_checks import ROOT, Mutation, apply, mutations

EACH = pytest.mark.parametrize("mutation", mutations(), ids=lambda mutation: mutation.name)


@EACH
def test_a_mutation_is_where_the_list_says(mutation: Mutation, tmp_path: Path) -> None:
    (tmp_path / mutation.file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / mutation.file, tmp_path / mutation.file)

    apply(mutation, tmp_path)

    without = (tmp_path / mutation.file).read_text(encoding="utf-8")
    assert without != (ROOT / mutation.file).read_text(encoding="utf-8")
    if mutation.file.endswith(".py"):
        compile(without, mutation.file, "exec")


@EACH
def test_the_tests_of_a_mutation_are_there(mutation: Mutation) -> None:
    assert mutation.tests
    assert all((ROOT / test.partition("::")[0]).is_file() for test in mutation.tests)


def test_no_two_mutations_have_one_name() -> None:
    names = [mutation.name for mutation in mutations()]
    assert len(names) == len(set(names))
