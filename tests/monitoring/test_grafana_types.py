"""The dashboards against what Grafana itself publishes: its types, and its list of units."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.monitoring import grafana_types
from tests.monitoring.dashboards import Panel, dashboards, panels

Body = dict[str, Any]
Change = Callable[[Body], object]


def first(body: Body, kind: str) -> Body:
    """The first panel of a kind."""
    return next(panel for panel in body["panels"] if panel["type"] == kind)


def custom(body: Body) -> Body:
    """How the first chart is drawn."""
    drawn: Body = first(body, "timeseries")["fieldConfig"]["defaults"]["custom"]
    return drawn


# What the types must see; each is made in a copy of a dashboard. In an object that may be of several types the compiler
# may name the value, not the key.
_MISTAKES: Final[dict[str, tuple[Change, str]]] = {
    "key-of-dashboard": (lambda body: body.update(grapTooltip=1), "grapTooltip"),
    "value-of-tooltip": (lambda body: body.update(graphTooltip=7), "7"),
    "kind-of-panel": (lambda body: first(body, "stat").update(type="stats"), '"stats"'),
    "key-of-panel": (lambda body: first(body, "stat").update(desciption="x"), "desciption"),
    "width-as-text": (lambda body: first(body, "stat")["gridPos"].update(w="4"), "string"),
    "key-of-options": (lambda body: first(body, "stat")["options"].update(colourMode="value"), "colourMode"),
    "value-of-options": (lambda body: first(body, "stat")["options"].update(colorMode="text"), '"text"'),
    "key-of-field": (
        lambda body: first(body, "stat")["fieldConfig"]["defaults"].update(treshold={}),
        "treshold",
    ),
    "mode-of-colour": (
        lambda body: first(body, "timeseries")["fieldConfig"]["defaults"]["color"].update(mode="palette"),
        '"palette"',
    ),
    "mode-of-thresholds": (
        lambda body: first(body, "stat")["fieldConfig"]["defaults"]["thresholds"].update(mode="relative"),
        '"relative"',
    ),
    "key-of-drawing": (lambda body: custom(body).update(lineWith=1), "lineWith"),
    "value-of-drawing": (lambda body: custom(body).update(drawStyle="lines"), '"lines"'),
    "value-of-stacking": (lambda body: custom(body)["stacking"].update(mode="all"), '"all"'),
    "legend-of-options": (
        lambda body: first(body, "timeseries")["options"]["legend"].update(placement="top"),
        '"top"',
    ),
    "key-of-target": (lambda body: first(body, "stat")["targets"][0].update(legend=""), "legend"),
    "expression-gone": (lambda body: first(body, "stat")["targets"][0].pop("expr"), "expr"),
    "link-without-url": (lambda body: first(body, "stat")["links"][0].pop("url"), "url"),
    "kind-of-link": (lambda body: body["links"][0].update(type="dashboard"), '"dashboard"'),
    "key-of-link": (lambda body: body["links"][0].update(includeVariables=True), "includeVariables"),
    "kind-of-variable": (lambda body: body["templating"]["list"][0].update(type="querry"), '"querry"'),
    "refresh-of-variable": (lambda body: body["templating"]["list"][0].update(refresh=9), "9"),
    "row-without-panels": (lambda body: first(body, "row").pop("panels"), "panels"),
}


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """What the compiler says, in one run: of the dashboards, and of copies with a mistake each."""
    bodies = {one.file.stem: one.body for one in dashboards().values()}
    sample = bodies["message-events-overview"]
    for name, (change, _) in _MISTAKES.items():
        bodies[name] = copy.deepcopy(sample)
        change(bodies[name])
    return grafana_types.problems(bodies)


def test_dashboards_fit_the_types_of_grafana(found: dict[str, list[str]]) -> None:
    assert {stem: texts for stem, texts in found.items() if stem not in _MISTAKES} == {}


@pytest.mark.parametrize("name", _MISTAKES)
def test_the_types_see_a_mistake(found: dict[str, list[str]], name: str) -> None:
    assert _MISTAKES[name][1] in "\n".join(found.get(name, []))


@pytest.fixture(scope="module")
def units() -> set[str]:
    """The ids of Grafana's units."""
    return grafana_types.units()


def test_the_list_of_units_is_read_whole(units: set[str]) -> None:
    assert len(units) > 200
    assert {"none", "short", "percent", "percentunit", "s", "ms", "bytes", "ops", "dateTimeAsIso"} <= units
    assert "seconds" not in units


@pytest.mark.parametrize("panel", panels(), ids=str)
def test_a_unit_is_one_that_grafana_knows(panel: Panel, units: set[str]) -> None:
    """Another one would be written behind each number as it is."""
    overridden = {
        each["value"]
        for override in panel.body["fieldConfig"]["overrides"]
        for each in override["properties"]
        if each["id"] == "unit"
    }
    assert {panel.unit} | overridden <= units
