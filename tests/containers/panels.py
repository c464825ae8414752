"""Every panel of the dashboards, asked of the running Prometheus, and drawn for the docs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from tests.containers.drawing import drawn
from tests.containers.load_test import LoadTest
from tests.containers.stack import Unmet
from tests.monitoring.dashboards import dashboards, panels, substituted

# Expressions of panels that have nothing to show here, and why.
EMPTY: Final[dict[str, str]] = {}
# Seconds between the points of a line, as seldom as a picture needs.
_STEP: Final = 3.0


def are_shown(test: LoadTest) -> None:
    """Every expression of every panel has something to show, unless `EMPTY` says why not. Raises `Unmet`."""
    empty = [
        f"{panel}: {expression}"
        for panel in panels()
        for expression in panel.expressions
        if not answer(test, expression)
    ]
    if unexpected := sorted(set(empty) ^ set(EMPTY)):
        raise Unmet(f"panels that are empty and should not be, or the other way round: {unexpected}")


def draw(test: LoadTest, folder: Path) -> None:
    """Write a picture of each dashboard."""
    end = time.time()
    span = end - test.age(), end
    for dashboard in dashboards().values():
        picture = folder / f"dashboard-{dashboard.file.stem}.svg"
        picture.write_text(
            drawn(dashboard, lambda expression: answer(test, expression), span), encoding="utf-8"
        )


def answer(test: LoadTest, expression: str) -> list[dict[str, Any]]:
    """The series of a panel's expression since the start."""
    return test.watch.over(substituted(expression), test.age(), _STEP)
