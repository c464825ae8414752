"""The short form of `make soak`'s run: that the program works, and that what it publishes is all stored."""

from __future__ import annotations

import re

import pytest

from tests.soak.__main__ import main

pytestmark = pytest.mark.timeout(600)

# Nothing is warm after so few events: only the long form can judge growth.
SHORT = ["--events", "3000", "--outage", "1", "--growth", "60", "--more", "60"]


def test_a_short_run_prints_its_steps_and_loses_and_doubles_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(SHORT)
    printed = capsys.readouterr().out
    assert code == 0, printed
    rows = re.findall(r"^ *([\d,]+) +[\d.]+ +[\d.]+ +[\d,]+$", printed, re.MULTILINE)
    assert rows == ["500", "1,000", "1,500", "2,000", "2,500", "3,000"]
    assert "1 s without PostgreSQL at 300 events a second" in printed
    assert "held: nothing lost, nothing doubled, and memory does not grow" in printed
