"""One environment variable: its declaration, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from typing import Any, TypeVar

from streams.config.scalars import Form

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable.

    `default` is text, as an operator would write it; None when the variable must be set. The `aliases` are read
    when the name itself is not set. `meaning` is Markdown; its part before the first semicolon is used in errors.
    """

    name: str
    default: str | None
    form: Form[Any]
    meaning: str
    aliases: tuple[str, ...] = ()

    def read(self, environ: Mapping[str, str]) -> Any:
        """The value. Raises `ValueError` with what is wrong; an empty variable counts as not set."""
        given = (environ.get(name, "").strip() for name in (self.name, *self.aliases))
        text = next(filter(None, given), self.default)
        if text is None:
            raise ValueError(f"is not set: expected the {self.meaning.partition(';')[0]}")
        return self.form(text)


def variable(
    name: str, default: str | None, form: Form[T], meaning: str, *, alias: str = "", secret: bool = False
) -> T:
    """A field that is read from a `Variable`. A secret is left out of the text of the settings."""
    declaration = Variable(name, default, form, meaning, (alias,) if alias else ())
    value: T = field(metadata={"variable": declaration}, repr=not secret)
    return value


def declared(item: Field[Any]) -> Variable:
    """The variable of a field."""
    declaration: Variable = item.metadata["variable"]
    return declaration
