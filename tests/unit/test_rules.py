"""Each rule of the specification is held by a test, and each test names rules that exist."""

from __future__ import annotations

import pytest

from tools.rules import holders, marked, problems, rules, specified


def test_every_rule_has_a_test_and_every_test_names_rules_that_exist() -> None:
    texts = specified()
    assert len(texts) > 100
    assert list(problems(texts, holders())) == []


def test_rule_without_a_test_is_a_problem() -> None:
    assert list(problems({"DLQ-1": "x"}, {})) == ["DLQ-1 has no test"]


def test_test_of_an_unknown_rule_is_a_problem() -> None:
    assert list(problems({}, {"DLQ-9": ["test_x"]})) == ["DLQ-9 is not in the specification: test_x"]


def test_rules_are_read_with_their_whole_text() -> None:
    page = "# A\n\n**SUB-1** One\ntwo.\n\n* **DBE-2** Three.\n* other\n\n**SUB-2** Four.\n"
    assert rules([page]) == {"SUB-1": "One two.", "DBE-2": "Three.", "SUB-2": "Four."}


def test_id_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="SUB-1 is there twice"):
        rules(["**SUB-1** x\n", "**SUB-1** y\n"])


def test_marks_are_read_from_functions_and_classes() -> None:
    source = (
        '@pytest.mark.rule("B", "C")\ndef test_one(): ...\n'
        'class TestX:\n    @pytest.mark.rule("D")\n    async def test_two(self): ...\n'
        "def helper(): ...\n"
    )
    assert list(marked(source)) == [
        ("test_one", "B"),
        ("test_one", "C"),
        ("test_two", "D"),
    ]
