"""Mutation checks: break one protection of the source after the other; each time some test must fail.

    python -m tools.mutation_checks            all of them
    python -m tools.mutation_checks version    those with this word in their name

Works on copies of the tree; prints a table in Markdown. Ends with 1 if no test notices one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
_LEFT_OUT: Final = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "*-data")
# A test that hangs has noticed, too.
PATIENCE: Final = 300.0
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) \S*?::(\S+)", re.MULTILINE)


class Mutation(NamedTuple):
    """`old` stands in `file` once; with `new` in its place a protection is gone, and one of `tests` must fail."""

    name: str
    protects: str
    file: str
    old: str
    new: str
    tests: list[str]


def mutations() -> list[Mutation]:
    """All of them, from `mutation_checks.toml`."""
    listed = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["guard"]
    return [Mutation(**mutation) for mutation in listed]


def apply(mutation: Mutation, tree: Path) -> None:
    """Change the copy of the tree. Raises `LookupError` if `old` is not there once."""
    path = tree / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise LookupError(f"{mutation.name}: its text is {text.count(mutation.old)} times in {mutation.file}")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")


def judge(mutation: Mutation) -> str:
    """Run the tests of a mutation on a copy of the tree; the one that noticed it, or ""."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=_LEFT_OUT)
        apply(mutation, tree)
        options = ("-x", "-q", "--show-capture=no", "--tb=no", "-p", "no:cacheprovider")
        try:
            result = subprocess.run(
                [sys.executable, "-m", "pytest", *options, *mutation.tests],
                cwd=tree,
                env={**os.environ, "SHRINK": "0", "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "a test that never ends"
    if result.returncode > 1:
        raise RuntimeError(f"the tests did not run: {result.stdout[-500:]}{result.stderr[-500:]}")
    match = _FAILED.search(result.stdout)
    return match[1] if match else ""


def main(words: Sequence[str]) -> int:
    """Check the mutations whose names contain one of `words` (none: all); returns the exit code."""
    chosen = [each for each in mutations() if not words or any(word in each.name for word in words)]
    print("| Mutation taken out | What it protects | Test that fails |\n|---|---|---|", flush=True)
    missed = 0
    for each in chosen:
        noticed = judge(each)
        missed += not noticed
        shown = f"`{noticed}`" if noticed else "**none**"
        print(f"| {each.name} (`{each.file}`) | {each.protects} | {shown} |", flush=True)
    print(f"\n{len(chosen) - missed} of {len(chosen)} mutations are noticed.")
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
