"""Pictures of dashboards, as the container check draws them."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from tests.containers.drawing import drawn
from tests.containers.units import shown, ticks
from tests.monitoring.dashboards import Dashboard, Panel, dashboards, panels


def texts(picture: str) -> list[str]:
    """What is written in it."""
    every = ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    return [element.text or "" for element in every]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0 s"),
        (0.00345, "s", "3.45 ms"),
        (75, "s", "1.25 min"),
        (12.3456, "percent", "12.3%"),
        (0.5, "short", "0.5"),
        (1234, "short", "1.23 K"),
        (64.5e6, "bytes", "61.5 MiB"),
    ],
)
def test_a_value_has_three_digits_and_the_unit_that_fits(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


@pytest.mark.parametrize("panel", panels(), ids=str)
def test_the_unit_of_a_panel_can_be_written(panel: Panel) -> None:
    assert shown(1.5, panel.unit)


@pytest.mark.parametrize(("least", "most"), [(0, 0), (0, 97), (0, 0.0031), (-3, 8), (5, 5)])
def test_marks_of_an_axis_hold_all_values(least: float, most: float) -> None:
    marks = ticks(least, most)
    assert marks[0] <= least
    assert marks[-1] >= most
    assert 2 <= len(marks) <= 7


@pytest.mark.parametrize("dashboard", dashboards().values(), ids=lambda one: one.file.stem)
def test_a_panel_without_an_answer_says_so(dashboard: Dashboard) -> None:
    assert texts(drawn(dashboard, lambda _: [], (0.0, 60.0))).count("No data") == len(dashboard.panels)


def test_a_line_is_named_by_the_labels_of_its_legend() -> None:
    def ask(_: str) -> list[dict[str, Any]]:
        labels = {"company_id": "CompanyAAA01", "consumer_type": "realtime"}
        return [{"metric": labels, "values": [[0, "1"], [3, "NaN"], [6, "2"]]}]

    dashboard = dashboards()["Load Test Overview"]
    written = texts(drawn(dashboard, ask, (0.0, 60.0)))
    assert "No data" not in written
    assert "CompanyAAA01 realtime" in written
