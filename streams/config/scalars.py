"""Forms of text that become one number, boolean or word; bounds are checked by msgspec."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec
from msgspec import Meta

T = TypeVar("T")

_LARGEST: Final = 2**31 - 1
_YEAR: Final = 366 * 86400.0
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_DURATION: Final = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_LEVELS: Final = {"debug": "debug", "info": "info", "warn": "warn", "warning": "warn", "error": "error"}


@dataclass(frozen=True, slots=True)
class Form(Generic[T]):
    """A form of text, called with the text to get the value.

    `parse` raises `ValueError` with what is wrong and what is expected. `unit` and `allowed` are for the
    operator's table of settings.
    """

    unit: str
    parse: Callable[[str], T]
    allowed: str = ""

    def __call__(self, text: str) -> T:
        """The value. Raises `ValueError`."""
        return self.parse(text)


def shown(text: str) -> str:
    """A text for an error message, quoted and cut."""
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _checked(kind: Any, decode: Callable[[str], object], problem: str) -> Callable[[str], Any]:
    """A parser: `decode` makes a plain value of the text, `kind` is its type with its bounds, as msgspec has them."""

    def parse(text: str) -> Any:
        try:
            return msgspec.convert(decode(text), kind)
        except msgspec.ValidationError:
            raise ValueError(f"{shown(text)} {problem}") from None

    return parse


def _choice(values: Mapping[str, object], kind: Any, problem: str) -> Callable[[str], Any]:
    """A parser of some words, in any case."""
    return _checked(kind, lambda text: values.get(text.lower(), text), problem)


def number(
    lowest: int, highest: int = _LARGEST, *, also: int | None = None, unit: str = "count"
) -> Form[int]:
    """An integer between two bounds, both allowed; `also` is allowed besides."""
    expected = f"an integer from {lowest} to {highest}" + ("" if also is None else f", or {also}")
    bounded = _checked(
        Annotated[int, Meta(ge=lowest, le=highest)], _integer, f"is not allowed: expected {expected}"
    )
    allowed = f"at least {lowest}" if highest == _LARGEST else f"{lowest} to {highest}"
    return Form(
        unit,
        lambda text: also if also is not None and _integer(text) == also else bounded(text),
        allowed if also is None else f"{allowed}, or {also}",
    )


def _integer(text: str) -> int | str:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text


def duration(lowest: float = 0.0) -> Form[float]:
    """A duration such as `1m30s`, in seconds, at least `lowest`; a bare number is an error."""
    kind = Annotated[float, Meta(ge=lowest, le=_YEAR)]
    problem = f"is out of range: expected {lowest:g}s to {_YEAR / 3600:g}h"
    return Form("duration", _checked(kind, _seconds, problem), f"at least {lowest:g}s" if lowest else "")


def _seconds(text: str) -> float:
    if not _DURATION.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is not a duration: expected numbers with units, such as 500ms, 1s, 1m30s, 1h"
        )
    return sum(float(amount) * _UNITS[unit] for amount, unit in _DURATION_PART.findall(text))


def _minutes(text: str) -> float | str:
    return float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else text


def optional(form: Form[T]) -> Form[T | None]:
    """What `form` makes of the text; None when there is none."""
    return Form(form.unit, lambda text: form(text) if text else None, form.allowed)


TEXT: Final = Form("text", str)
LEVEL: Final = Form("text", lambda text: _LEVELS.get(text.lower(), "info"))
BOOLEAN: Final[Form[bool]] = Form(
    "boolean",
    _choice(
        {"true": True, "1": True, "false": False, "0": False},
        bool,
        "is not a boolean: expected true, false, 1 or 0",
    ),
)
MINUTES: Final[Form[float]] = Form(
    "minutes",
    _checked(
        Annotated[float, Meta(ge=0, le=_YEAR / 60)],
        _minutes,
        "is not a number of minutes: expected for example 5 or 0.5",
    ),
)
# Whether companies that have no schema yet are given one.
PROVISION: Final[Form[bool]] = Form(
    "text",
    _choice({"auto": True, "existing": False}, bool, "is not allowed: expected auto or existing"),
    "auto or existing",
)
# Copies of a stream; 0 is `auto`.
REPLICAS: Final[Form[int]] = Form(
    "text",
    _choice({"auto": 0, "1": 1, "3": 3, "5": 5}, int, "is not allowed: expected auto, 1, 3 or 5"),
    "auto, 1, 3 or 5",
)
COUNT: Final = number(1)
PORT: Final = number(0, 65535, unit="port")
# Beyond a hundred years JetStream's nanoseconds overflow.
DAYS: Final = number(0, 36500, unit="days")
