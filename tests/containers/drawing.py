"""A dashboard as a picture (SVG), drawn from what Prometheus answers: what a reader may expect, without a Grafana."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from xml.sax.saxutils import escape

from tests.containers.units import shown, ticks
from tests.monitoring.dashboards import Dashboard

# The series of an expression, as the HTTP API has them.
Ask = Callable[[str], list[dict[str, Any]]]
Node = dict[str, Any]

_COLUMN: Final = 46
_LINE: Final = 30
_GAP: Final = 6
_LEGEND: Final = 16
_MOST: Final = 6
# A line that has no sample for so many seconds is broken.
_HOLE: Final = 15.0
_COLOURS: Final = (
    "#3274d9", "#e0752d", "#37872d", "#c4162a", "#8f3bb8", "#b58b00", "#0a8f8f", "#d14a8f", "#5a6b7b", "#7a4b2a",
)  # fmt: skip
_NAMED: Final = re.compile(r"\{\{(\w+)\}\}")
_STEPS: Final = {"green": "#2f7d32", "orange": "#d9731a", "yellow": "#b58b00", "red": "#c4162a"}
_STYLE: Final = (
    "text{font-family:sans-serif;font-size:11px;fill:#333}.t{font-size:12px;font-weight:bold}.r{font-size:14px}"
    ".p{fill:#fff;stroke:#d5d9de}.g{stroke:#e7eaed}polyline{fill:none;stroke-width:1.4}.b{font-weight:bold}"
    ".e{text-anchor:end}.m{text-anchor:middle}"
)


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    points: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class _Box:
    x: float
    y: float
    width: float
    height: float


def drawn(dashboard: Dashboard, ask: Ask, span: tuple[float, float]) -> str:
    """The whole dashboard from one moment to another (Unix seconds); `ask` answers an expression of it."""
    body = dashboard.body["panels"]
    height = max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in body) * _LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {24 * _COLUMN} {height}" width="{24 * _COLUMN}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="100%" height="100%" fill="#f4f5f7"/><title>{escape(dashboard.title)}</title>',
    ]
    for one in body:
        place = one["gridPos"]
        box = _Box(
            place["x"] * _COLUMN + _GAP / 2,
            place["y"] * _LINE + _GAP / 2,
            place["w"] * _COLUMN - _GAP,
            place["h"] * _LINE - _GAP,
        )
        parts += _row(one, box) if one["type"] == "row" else _panel(one, box, ask, span)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _row(one: Node, box: _Box) -> list[str]:
    return [_text(box.x + 4, box.y + 17, one["title"], "t r")]


def _panel(one: Node, box: _Box, ask: Ask, span: tuple[float, float]) -> list[str]:
    parts = [
        f'<rect class="p" rx="3" x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}"/>',
        _text(box.x + 8, box.y + 16, _fitting(one["title"], box.width - 16), "t"),
    ]
    lines = [line for target in one["targets"] for line in _lines(target, ask)]
    if not lines:
        return [*parts, _text(box.x + box.width / 2, box.y + box.height / 2, "No data", "m")]
    return parts + (_stat(one, box, lines) if one["type"] == "stat" else _chart(one, box, lines, span))


def _lines(target: Node, ask: Ask) -> Iterator[_Line]:
    """A name is as Grafana writes it: the legend's, or the labels."""
    for series in ask(target["expr"]):
        name = _NAMED.sub(partial(_label, series["metric"]), target["legendFormat"])
        points = [(float(time), float(value)) for time, value in series["values"]]
        yield _Line(name.strip(), [(time, value) for time, value in points if math.isfinite(value)])


def _label(labels: dict[str, str], found: re.Match[str]) -> str:
    return labels.get(found[1], "")


def _stat(one: Node, box: _Box, lines: list[_Line]) -> list[str]:
    defaults = one["fieldConfig"]["defaults"]
    filled = [line for line in lines if line.points][:_MOST]
    if len(filled) == 1:
        value = filled[0].points[-1][1]
        text, colour = shown(value, defaults["unit"], defaults.get("decimals")), _colour(defaults, value)
        middle, below = box.x + box.width / 2, box.y + box.height / 2 + 22
        return [
            f'<text class="m b" x="{middle:g}" y="{below:g}" style="font-size:30px;fill:{colour}">{escape(text)}</text>'
        ]
    parts = []
    for number, line in enumerate(filled):
        value, y = line.points[-1][1], box.y + 36 + number * _LEGEND
        text = shown(value, defaults["unit"], defaults.get("decimals"))
        parts.append(_text(box.x + 8, y, _fitting(line.name, box.width - 60)))
        parts.append(
            f'<text class="e b" x="{box.x + box.width - 8:g}" y="{y:g}" '
            f'style="fill:{_colour(defaults, value)}">{escape(text)}</text>'
        )
    return parts


def _colour(defaults: Node, value: float) -> str:
    reached = [
        step["color"]
        for step in defaults["thresholds"]["steps"]
        if step["value"] is None or value >= step["value"]
    ]
    return _STEPS[reached[-1]]


def _chart(one: Node, box: _Box, lines: list[_Line], span: tuple[float, float]) -> list[str]:
    unit = one["fieldConfig"]["defaults"]["unit"]
    every = [point for line in lines for point in line.points]
    if not every:
        return []
    begin, end = span
    marks = ticks(min(0.0, *(value for _, value in every)), max(value for _, value in every))
    named = [line for line in lines if line.name][:_MOST]
    below = _LEGEND * math.ceil(len(named) / 2) + 20
    area = _Box(box.x + 58, box.y + 28, box.width - 70, box.height - 32 - below)

    def at(time: float, value: float) -> tuple[float, float]:
        across = (time - begin) / max(end - begin, 1.0)
        up = (value - marks[0]) / (marks[-1] - marks[0])
        return area.x + across * area.width, area.y + (1 - up) * area.height

    parts = []
    for mark in marks:
        _, y = at(begin, mark)
        parts.append(f'<path class="g" d="M{area.x:.0f} {y:.1f}h{area.width:.0f}"/>')
        parts.append(_text(area.x - 6, y + 4, shown(mark, unit), "e"))
    for minute in range(1, int((end - begin) // 60) + 1):
        x, _ = at(begin + minute * 60, marks[0])
        parts.append(_text(x, area.y + area.height + 14, f"{minute} min", "m"))
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        for piece in _pieces(line.points):
            drawing = " ".join("{:.0f},{:.1f}".format(*at(*point)) for point in piece)
            parts.append(f'<polyline stroke="{colour}" points="{drawing}"/>')
    return parts + _legend(box, area, named, len(lines))


def _pieces(points: list[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    piece: list[tuple[float, float]] = []
    for point in points:
        if piece and point[0] - piece[-1][0] > _HOLE:
            yield piece
            piece = []
        piece.append(point)
    if piece:
        yield piece


def _legend(box: _Box, area: _Box, named: list[_Line], count: int) -> list[str]:
    parts = []
    half = (box.width - 16) / 2
    for number, line in enumerate(named):
        x, y = box.x + 8 + number % 2 * half, area.y + area.height + 32 + number // 2 * _LEGEND
        name = line.name
        if number == _MOST - 1 and count > _MOST:
            name = f"{name}, {count - _MOST} more"
        parts.append(
            f'<path stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="3" d="M{x:g} {y - 4:g}h10"/>'
        )
        parts.append(_text(x + 14, y, _fitting(name, half - 18)))
    return parts


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>'


def _fitting(text: str, width: float) -> str:
    """Cut to a width in pixels; a letter has about 6.3."""
    most = int(width / 6.3)
    return text if len(text) <= most else f"{text[: most - 1]}…"
