"""The results as a chart: each bar is how far a line has come on the way to its target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

_WIDTH: Final = 980
_NAMES: Final = 285  # where the bars begin
_TARGET: Final = 330  # length of a bar that has just reached its target
_LONGEST: Final = 1.3
_ROW: Final = 24
_HEADING: Final = 40
_TOP: Final = 58
_MET, _SHORT, _PLAIN, _INK, _FAINT = "#2f7d4f", "#c2402a", "#7d8794", "#1f2933", "#5b6673"


def chart(lines: Sequence[Mapping[str, Any]], headings: Mapping[str, str]) -> str:
    """The lines of the file of results, under the headings of their groups, as SVG."""
    parts: list[str] = []
    y = _TOP
    for group, heading in headings.items():
        chosen = [line for line in lines if line["group"] == group]
        if not chosen:
            continue
        y += _HEADING
        parts.append(_text(16, y - 12, heading, weight=600))
        for line in chosen:
            parts += _bar(line, y)
            y += _ROW
    height = y + 24
    mark = _NAMES + _TARGET
    frame = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13" role="img">',
        "<title>The worker against its targets</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(16, 28, "The worker against its targets", size=17, weight=600),
        _text(16, 48, "A bar that reaches the line has reached its target; longer is better.", fill=_FAINT),
        *parts,
        f'<line x1="{mark}" y1="{_TOP}" x2="{mark}" y2="{height - 16}" stroke="{_INK}" stroke-dasharray="4 3"/>',
        "</svg>",
    ]
    return "\n".join(frame) + "\n"


def _bar(line: Mapping[str, Any], y: int) -> list[str]:
    middle = y + _ROW // 2 + 4
    name = _text(_NAMES - 10, middle, line["name"], anchor="end")
    if line["problem"]:
        return [name, _text(_NAMES + 6, middle, f"not measured: {line['problem'][:80]}", fill=_SHORT)]
    length = round(min(_reached(line), _LONGEST) * _TARGET, 1)
    colour = _PLAIN if line["target"] is None else _MET if line["met"] else _SHORT
    label = line["shown"] if line["target"] is None else f"{line['shown']}   ({line['aim']})"
    beside = _NAMES + max(length, _TARGET) + 12
    return [
        name,
        f'<rect x="{_NAMES}" y="{y + 4}" width="{length}" height="{_ROW - 8}" rx="2" fill="{colour}"/>',
        _text(
            beside, middle, label + ("" if line["met"] else "   short"), fill=_INK if line["met"] else _SHORT
        ),
    ]


def _reached(line: Mapping[str, Any]) -> float:
    """1.0 is the target, more is better than that; without a target half a bar."""
    value, target = line["value"], line["target"]
    if target is None:
        return 0.5
    return float(target / value if value else _LONGEST) if line["at_most"] else float(value / target)


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    fill: str = _INK,
    size: int = 13,
    weight: int = 400,
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{fill}" font-size="{size}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
