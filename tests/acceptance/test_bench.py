"""`python -m tests.bench` works: what it says of speed is for people, not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from testkit.worker import ROOT

DEADLINE = 300.0

pytestmark = pytest.mark.timeout(2 * DEADLINE)


def test_bench_measures_a_line_prints_its_table_and_keeps_the_results(tmp_path: Path) -> None:
    arguments = ["--lines", "realtime", "--n", "300", "--runs", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "realtime" in done.stdout
    assert "lines are as they should be" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert [line["name"] for line in results["lines"] if line["group"] == "drain"] == ["realtime"]
    assert [run["rows"] for run in results["runs"]["matrix"]["lines"]["realtime"]["worker"]] == [300]
