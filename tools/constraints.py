"""Checks that constraints.txt pins what is installed, and nothing else, and that this is what pyproject.toml asks for.

Works offline: uv is asked what it would change.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from uv import find_uv_bin

ROOT: Final = Path(__file__).parents[1]
# The environment as it is pinned, and as it is asked for within the pins.
_CHECKS: Final = (
    ("sync", "constraints.txt"),
    ("install", "--requirements", "pyproject.toml", "--all-extras", "--constraints", "constraints.txt"),
)


def problems(root: Path = ROOT) -> str:
    """What uv would change, or why it cannot; empty if nothing."""
    for command in _CHECKS:
        options = ("--dry-run", "--offline", "--no-progress", "--python", sys.executable)
        done = subprocess.run(
            [find_uv_bin(), "pip", *command, *options], cwd=root, capture_output=True, text=True, check=False
        )
        if "Would make no changes" not in done.stderr:
            return done.stderr
    return ""


if __name__ == "__main__":
    if found := problems():
        sys.exit(f"constraints.txt does not fit (make constraints, or make clean):\n{found}")
    print("constraints.txt: in step with pyproject.toml and with what is installed")
