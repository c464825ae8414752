"""Print the rules of docs/specification with the tests that hold them; fail where a rule has none."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
_RULE: Final = re.compile(r"^(?:\* )?\*\*([A-Z]{3}-\d+)\*\* (.*(?:\n(?!\n|\* |\|).+)*)", re.MULTILINE)


def rules(pages: Iterable[str]) -> dict[str, str]:
    """Id -> text of each rule. Raises `ValueError` if an id is given twice."""
    found: dict[str, str] = {}
    for page in pages:
        for match in _RULE.finditer(page):
            if match[1] in found:
                raise ValueError(f"{match[1]} is there twice")
            found[match[1]] = " ".join(match[2].split())
    return found


def marked(source: str) -> Iterator[tuple[str, str]]:
    """(name of a test, id of a rule that it holds) of a file."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
            continue
        for mark in [each for decorator in node.decorator_list for each in ast.walk(decorator)]:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.rule":
                yield from ((node.name, str(ast.literal_eval(rule))) for rule in mark.args)


def holders() -> dict[str, list[str]]:
    """Id of a rule -> the tests that hold it, as pytest names them."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, rule in marked(path.read_text(encoding="utf-8")):
            found.setdefault(rule, []).append(f"{path.relative_to(ROOT)}::{name}")
    return found


def specified() -> dict[str, str]:
    """Id -> text of all rules of the specification."""
    pages = sorted((ROOT / "docs" / "specification").glob("*.md"))
    return rules(page.read_text(encoding="utf-8") for page in pages if page.name != "index.md")


def problems(texts: Mapping[str, str], tests: Mapping[str, list[str]]) -> Iterator[str]:
    """One line for each rule without a test, and for each test that names a rule that does not exist."""
    for rule in texts:
        if rule not in tests:
            yield f"{rule} has no test"
    for rule, names in tests.items():
        if rule not in texts:
            yield f"{rule} is not in the specification: {', '.join(names)}"


def main() -> None:
    """Print the table, then the problems; end with 1 if there are any."""
    texts, tests = specified(), holders()
    for rule, text in texts.items():
        print(f"{rule}  {text}", *(f"    {name}" for name in tests.get(rule, ())), sep="\n")
    found = list(problems(texts, tests))
    if found:
        sys.exit("\n".join(found))
    print(f"{len(texts)} rules, held by {len({name for names in tests.values() for name in names})} tests")


if __name__ == "__main__":
    main()
