"""Named SQL statements, read from the `.sql` files beside this module, and timed when they run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from tables.errors import translated

# operation, entity, seconds, whether it succeeded
Observer = Callable[[str, str, float, bool], None]


class StoredRow(Protocol):
    """A row that a statement returned, by column name."""

    def __getitem__(self, column: str, /) -> Any:
        """The value of a column."""
        ...


_FOLDER: Final = Path(__file__).parent / "sql"
_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_ARRAYS: Final = re.compile(r"unnest\(([^)]*)\)\s+AS \w+\s?\(([^)]*)\)")
_PARAMETER: Final = re.compile(r"\$(\d+)::[a-z]+\[\]")


def quoted(identifier: str) -> str:
    """An SQL identifier that means exactly this name."""
    return '"' + identifier.replace('"', '""') + '"'


@cache
def _statements(file: str) -> dict[str, str]:
    pieces = _NAME.split((_FOLDER / f"{file}.sql").read_text(encoding="utf-8"))
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def load(file: str, schema: str) -> dict[str, str]:
    """The statements of `sql/<file>.sql` for one tenant's schema.

    Each begins with `-- name: <name>` and a comment that says what it does; `{schema}` stands for the quoted
    schema.
    """
    return {name: text.replace("{schema}", quoted(schema)) for name, text in _statements(file).items()}


class RowsStatement:
    """A statement that takes rows as arrays: `FROM unnest($1::text[], $2::bigint[]) AS n (name, age)`.

    Its arguments are put in order by these names, so nothing depends on positions but the statement itself.
    """

    def __init__(self, text: str) -> None:
        """Raises `ValueError` unless its arrays are `$1`, `$2` and so on, each with one name."""
        self.text = text
        self.names = _array_names(text)

    def of_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        """The arguments for these rows; NULL for what a row does not have."""
        return [[row.get(name) for row in rows] for name in self.names]

    def of_columns(self, columns: Mapping[str, Sequence[Any]]) -> list[Sequence[Any]]:
        """The arguments from the values of each column, of which there may be more than the statement takes."""
        return [columns[name] for name in self.names]

    def of_objects(self, objects: Sequence[object]) -> list[list[Any]]:
        """The arguments from the attributes of objects."""
        return [[getattr(each, name) for each in objects] for name in self.names]


def by_column(rows: Sequence[NamedTuple]) -> dict[str, Sequence[Any]]:
    """The values of each field of named tuples, of which there is one at least."""
    return dict(zip(rows[0]._fields, zip(*rows, strict=True), strict=True))


def _array_names(text: str) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for arrays, columns in _ARRAYS.findall(text):
        numbers = [int(number) for number in _PARAMETER.findall(arrays)]
        for number, column in zip(numbers, columns.split(","), strict=True):
            if names.setdefault(number, column.strip()) != column.strip():
                raise ValueError(f"${number} has two names in: {text}")
    if not names or sorted(names) != list(range(1, len(names) + 1)):
        raise ValueError(f"arrays are not numbered from $1 on in: {text}")
    return tuple(names[number] for number in sorted(names))


@contextmanager
def operation(observer: Observer, name: str, entity: str) -> Iterator[None]:
    """Time one database operation for the observer; the driver's errors become ours."""
    start = time.perf_counter()
    succeeded = False
    try:
        with translated():
            yield
        succeeded = True
    finally:
        observer(name, entity, time.perf_counter() - start, succeeded)
