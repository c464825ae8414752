"""What holds the promises, taken out one by one: each time some test must fail.

    python -m tools.guards            all guards
    python -m tools.guards version    those with this word in their name

Works on copies of the tree; prints a table in Markdown. Ends with 1 if the loss of a guard goes unnoticed.
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
# A test that waits for ever without its guard has noticed, too.
PATIENCE: Final = 300.0
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) \S*?::(\S+)", re.MULTILINE)


class Guard(NamedTuple):
    """A piece of source; `old` is in `file` once, with `new` in its place the protection is gone."""

    name: str
    protects: str
    file: str
    old: str
    new: str
    tests: list[str]


class Verdict(NamedTuple):
    """What the tests said without a guard; no `failed` test: nobody noticed."""

    guard: Guard
    failed: str


def guards() -> list[Guard]:
    """All of them, from `guards.toml`."""
    listed = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["guard"]
    return [Guard(**guard) for guard in listed]


def take_out(guard: Guard, tree: Path) -> None:
    """Change the copy of the tree. Raises `LookupError` if the guard is not where the list says."""
    path = tree / guard.file
    text = path.read_text(encoding="utf-8")
    if text.count(guard.old) != 1:
        raise LookupError(f"{guard.name}: its text is {text.count(guard.old)} times in {guard.file}")
    path.write_text(text.replace(guard.old, guard.new), encoding="utf-8")


def judge(guard: Guard) -> Verdict:
    """Run the guard's tests without it."""
    with tempfile.TemporaryDirectory(prefix="guards-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=_LEFT_OUT)
        take_out(guard, tree)
        failed = _first_failure(guard.tests, tree)
    return Verdict(guard, failed)


def _first_failure(tests: Sequence[str], tree: Path) -> str:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--show-capture=no",
        "--tb=no",
        "-p",
        "no:cacheprovider",
    ]
    try:
        result = subprocess.run(
            [*command, *tests],
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
    """Judge the guards whose names contain one of `words` (none: all); returns the exit code."""
    chosen = [guard for guard in guards() if not words or any(word in guard.name for word in words)]
    print("| Guard taken out | What it protects | Test that fails |\n|---|---|---|", flush=True)
    unnoticed = []
    for guard in chosen:
        verdict = judge(guard)
        told = f"`{verdict.failed}`" if verdict.failed else "**none**"
        print(
            f"| {guard.name} (`{guard.file}`) | {guard.protects} | {told} |",
            flush=True,
        )
        if not verdict.failed:
            unnoticed.append(guard.name)
    print(f"\n{len(chosen) - len(unnoticed)} of {len(chosen)} guards are missed when they are taken out.")
    return 1 if unnoticed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
